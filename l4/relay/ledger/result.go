package ledger

import "time"

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

// The endings. EndStopped is Stop and FinishIfIdle of the session; EndInternal is a bug.
// After EndDownstreamTLS and EndUpstreamTLS, Result.Err is a *TLSError.
const (
	EndInternal End = iota
	EndClosed
	EndDownstreamReset
	EndUpstreamReset
	EndDownstreamLost
	EndUpstreamLost
	EndDownstreamTLS
	EndUpstreamTLS
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
	case EndDownstreamTLS:
		return "downstream TLS failed"
	case EndUpstreamTLS:
		return "upstream TLS failed"
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
	// FirstClose is the side that ended first, by FIN or RST; None if we ended it, as
	// we do where TLS fails.
	FirstClose Side
	// Truncated: a TLS side's FIN came without close_notify.
	Truncated bool
	// Err is the error of ErrSide if End is a reset, a loss or a failure of TLS, or a
	// *relay.PanicError.
	Err     error
	ErrSide Side
	// Cause is the argument of Stop or FinishIfIdle.
	Cause error
	// Up counts the bytes delivered to the upstream, Down those to the downstream,
	// early bytes included.
	Up, Down int64
	// Settled says whether Settled of the session's owner was called.
	Settled  bool
	Duration time.Duration
}
