package relay

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"ambassador/l4/relay/ledger"
	"ambassador/l4/tlsrecord"
)

// SettleAfter is how long a session must have lived to count as established
// without a byte from upstream.
const SettleAfter = time.Second

// Leg is one side of a session. Make it with Plain or TLS.
type Leg struct {
	raw       net.Conn
	tls       *tls.Conn // nil: plain
	transport *Transport
	shadow    *tlsrecord.Shadow // below transport; nil: none
	early     []byte
	waits     bool // see Renegotiating
}

// Plain is a side without TLS: a *net.TCPConn, a *net.UnixConn or a *Socket; others
// work within the limits in the package's comment. Early was already read from conn
// and goes to the other side first.
func Plain(conn net.Conn, early []byte) Leg { return Leg{raw: conn, early: early} }

// TLS is a side with a completed handshake; t is the Transport below conn. If t is on a
// Shadow, the relay follows the records.
func TLS(conn *tls.Conn, t *Transport, early []byte) Leg {
	l := Leg{raw: t.Conn, tls: conn, transport: t, early: early}
	if s, ok := t.Conn.(*tlsrecord.Shadow); ok {
		l.raw, l.shadow = s.NetConn(), s
	}
	return l
}

// Renegotiating returns the TLS side for a peer that may renegotiate (TLS 1.2 and
// older): a handshake within the relay waits for the peer, which a loop cannot do.
func (l Leg) Renegotiating() Leg {
	l.waits = true
	return l
}

// stream returns the connection with the application's bytes.
func (l *Leg) stream() net.Conn {
	if l.tls != nil {
		return l.tls
	}
	return l.raw
}

// Config describes one session. It is not changed after Start.
type Config struct {
	Downstream, Upstream Leg
	Limits
	// HoldFIN, if not zero, holds the downstream's FIN back until the upstream has
	// ended, too, or no byte has moved for that long.
	HoldFIN time.Duration
	// Owner receives the session's events. It may be nil.
	Owner Owner
}

// Owner receives the events of a session.
type Owner interface {
	// Settled is called at most once: at the first byte from upstream or after
	// SettleAfter, and not after the session's end; Done is called after it has
	// returned. It must not block.
	Settled()
	// Done is called once, as the last call. It must not block for long.
	Done(Result)
}

// Limits bound a session. A zero field is no limit.
type Limits struct {
	// Idle ends a session in which no byte moved either way for that long.
	Idle time.Duration
	// HalfCloseIdle is the same after one side has ended.
	HalfCloseIdle time.Duration
	// Lifetime bounds the session as a whole.
	Lifetime time.Duration
}

// How a session ends is decided, and described, in package ledger.
type (
	Side     = ledger.Side
	End      = ledger.End
	Result   = ledger.Result
	TLSError = ledger.TLSError
)

// The sides. None is neither.
const (
	None       = ledger.None
	Downstream = ledger.Downstream
	Upstream   = ledger.Upstream
)

// The endings: see ledger.End.
const (
	EndInternal        = ledger.EndInternal
	EndClosed          = ledger.EndClosed
	EndDownstreamReset = ledger.EndDownstreamReset
	EndUpstreamReset   = ledger.EndUpstreamReset
	EndDownstreamLost  = ledger.EndDownstreamLost
	EndUpstreamLost    = ledger.EndUpstreamLost
	EndDownstreamTLS   = ledger.EndDownstreamTLS
	EndUpstreamTLS     = ledger.EndUpstreamTLS
	EndIdle            = ledger.EndIdle
	EndHalfCloseIdle   = ledger.EndHalfCloseIdle
	EndLifetime        = ledger.EndLifetime
	EndStopped         = ledger.EndStopped
)

// Session is a pair of connections that is being relayed.
type Session interface {
	// Up is the number of bytes delivered to the upstream so far.
	Up() int64
	// Down is the number of bytes delivered to the downstream so far.
	Down() int64
	// Quiet returns how long no byte has moved, since the start if none ever has,
	// and which side sent the last one.
	Quiet() (time.Duration, Side)
	// Held is how many bytes the session holds for sides that do not accept them now.
	Held() int64
	// HalfClosed reports whether exactly one side has ended.
	HalfClosed() bool
	// Stop ends the session with a RST on both sides. Only the first call has an
	// effect, and none after the session's end.
	Stop(cause error)
	// FinishIfIdle ends the session with a FIN on both sides if no byte has moved
	// for at least that long, none is waiting for a slow reader, and neither side
	// has ended. It reports whether it did. A byte that arrives at that moment may
	// meet a closed connection, as with a server that closes an idle connection.
	FinishIfIdle(atLeast time.Duration, cause error) bool
}

// errResetUnseen stands for a reset whose error was consumed by a failed write.
const errResetUnseen = syscall.ECONNRESET

// forever is the deadline of a limit that is not set.
const forever = 1 << 62 * time.Nanosecond

// next is when, after the start, a limit could next be reached, if no byte
// moves after last.
func (l *Limits) next(last time.Duration, halfClosed bool) time.Duration {
	at := forever
	if l.Idle > 0 {
		at = min(at, last+l.Idle)
	}
	if l.HalfCloseIdle > 0 && halfClosed {
		at = min(at, last+l.HalfCloseIdle)
	}
	if l.Lifetime > 0 {
		at = min(at, l.Lifetime)
	}
	return at
}

// reached reports which limit has been reached at now, after the start.
func (l *Limits) reached(now, last time.Duration, halfClosed bool) (End, bool) {
	switch {
	case l.Lifetime > 0 && now >= l.Lifetime:
		return EndLifetime, true
	case l.HalfCloseIdle > 0 && halfClosed && now-last >= l.HalfCloseIdle:
		return EndHalfCloseIdle, true
	case l.Idle > 0 && now-last >= l.Idle:
		return EndIdle, true
	}
	return 0, false
}

// quiet computes Session.Quiet at now from the times at which each direction last
// moved a byte: in nanoseconds after the start, zero for never.
func quiet(now time.Duration, up, down int64) (time.Duration, Side) {
	switch {
	case up == 0 && down == 0:
		return now, None
	case up > down:
		return now - time.Duration(up), Downstream
	}
	return now - time.Duration(down), Upstream
}
