package relay

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
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

// Plain is a side without TLS: a *net.TCPConn, a *net.UnixConn or a *Socket; others
// work within the limits in the package's comment. Early was already read from conn
// and goes to the other side first.
func Plain(conn net.Conn, early []byte) Leg { return Leg{raw: conn, early: early} }

// TLS is a side with a completed handshake; t is the Transport below conn.
func TLS(conn *tls.Conn, t *Transport, early []byte) Leg {
	return Leg{raw: t.Conn, tls: conn, transport: t, early: early}
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

// Side is one of the two sides.
type Side int8

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

// Result says how a session ended.
type Result struct {
	End End
	// FirstClose is the side that ended first, by FIN or RST; None if we ended it.
	FirstClose Side
	// Truncated: a TLS side's FIN came without close_notify.
	Truncated bool
	// Err is the error of ErrSide if End is a reset or a loss, or a *PanicError.
	Err     error
	ErrSide Side
	// Cause is the argument of Stop or FinishIfIdle.
	Cause error
	// Up counts the bytes delivered to the upstream, Down those to the downstream,
	// early bytes included.
	Up, Down int64
	// Settled says whether Owner.Settled was called.
	Settled  bool
	Duration time.Duration
}

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

// ending classifies the ending of a session whose side failed with err.
func ending(side Side, err error) End {
	lost := isLost(err)
	switch {
	case side == Downstream && lost:
		return EndDownstreamLost
	case side == Downstream:
		return EndDownstreamReset
	case lost:
		return EndUpstreamLost
	}
	return EndUpstreamReset
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isLost reports whether the network gave up on the peer: keepalive or
// retransmission went unanswered.
func isLost(err error) bool {
	for _, n := range []syscall.Errno{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, n) {
			return true
		}
	}
	return false
}
