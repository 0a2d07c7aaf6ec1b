package relay

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// SettleAfter is how long a session must have lived to count as established
// without a byte from upstream.
const SettleAfter = time.Second

// Leg is one side of a session. Make it with Plain or TLS.
type Leg struct {
	raw       net.Conn
	tls       *tls.Conn // nil: plain
	transport *Transport
	early     []byte
}

// Plain is a side without TLS: a *net.TCPConn or *net.UnixConn; others work with
// the limits of the package's comment. Early was read from it already and goes
// to the other side first.
func Plain(conn net.Conn, early []byte) Leg { return Leg{raw: conn, early: early} }

// TLS is a side whose handshake is complete; t is what conn was made on.
func TLS(conn *tls.Conn, t *Transport, early []byte) Leg {
	return Leg{raw: t.Conn, tls: conn, transport: t, early: early}
}

// stream is where the application's bytes are.
func (l *Leg) stream() net.Conn {
	if l.tls != nil {
		return l.tls
	}
	return l.raw
}

// Config is one session. It is not changed after Start.
type Config struct {
	Downstream, Upstream Leg
	// Idle ends a session that moved no byte either way for so long.
	// HalfCloseIdle is the same once one side has ended. Lifetime bounds the
	// whole. Zero is none.
	Idle, HalfCloseIdle, Lifetime time.Duration
	// Settled is called at most once: at the first byte from upstream or after
	// SettleAfter, and not if the session has ended before. It must not block.
	Settled func()
	// Done is called once, after everything. It must not block for long.
	Done func(Result)
}

// Side is one of the two sides.
type Side int

// The sides. None is neither.
const (
	None Side = iota
	Downstream
	Upstream
)

// String is the side's name, empty for None.
func (s Side) String() string {
	switch s {
	case Downstream:
		return "downstream"
	case Upstream:
		return "upstream"
	}
	return ""
}

// End is how a session ended: a closed list.
type End int

// The endings. EndStopped is Stop and FinishIfIdle; EndInternal is a bug.
const (
	EndInternal End = iota
	EndClosed
	EndDownstreamReset
	EndUpstreamReset
	EndDownstreamLost
	EndUpstreamLost
	EndIdle
	EndHalfCloseIdle
	EndLifetime
	EndStopped
)

// String is the ending in words.
func (e End) String() string {
	switch e {
	case EndClosed:
		return "closed"
	case EndDownstreamReset:
		return "downstream reset"
	case EndUpstreamReset:
		return "upstream reset"
	case EndDownstreamLost:
		return "downstream lost"
	case EndUpstreamLost:
		return "upstream lost"
	case EndIdle:
		return "idle"
	case EndHalfCloseIdle:
		return "half-close idle"
	case EndLifetime:
		return "lifetime"
	case EndStopped:
		return "stopped"
	}
	return "internal error"
}

// Result is the account of a session.
type Result struct {
	End End
	// FirstClose is the side that ended first, by FIN or RST; None if we did.
	FirstClose Side
	// Truncated: a TLS side's FIN came without close_notify.
	Truncated bool
	// Err is what was seen where End is a reset or a loss, on ErrSide.
	Err     error
	ErrSide Side
	// Cause is what Stop or FinishIfIdle was given.
	Cause error
	// Up went from downstream to upstream, Down the other way, early bytes included.
	Up, Down int64
	// Settled says whether Config.Settled was called.
	Settled  bool
	Duration time.Duration
}

// Engine runs sessions. It holds nothing while there are none.
type Engine struct {
	buffers sync.Pool
	spliced atomic.Int64 // bytes moved by splice, for tests
}

// bufferSize is what a pump reads at once. It is a power of two above the usual
// 16 KiB of a TLS record; a read that fills it is taken as a bulk flow.
const bufferSize = 32 << 10

// New makes an engine.
func New() *Engine {
	return &Engine{buffers: sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}}
}

// Start takes both connections over and begins to move bytes.
func (e *Engine) Start(c Config) *Session {
	s := &Session{engine: e, done: c.Done, settled: c.Settled, start: time.Now(),
		idle: c.Idle, halfCloseIdle: c.HalfCloseIdle, lifetime: c.Lifetime}
	for i, l := range []Leg{c.Downstream, c.Upstream} {
		s.legs[i] = l
		if l.transport != nil {
			l.transport.handOver()
		}
	}
	s.pumps = 2
	s.mu.Lock()
	s.timer = time.AfterFunc(s.untilNext(), s.tick)
	s.mu.Unlock()
	go s.pump(up)   // finish waits for it
	go s.pump(down) // finish waits for it
	return s
}
