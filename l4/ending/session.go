package ending

import (
	"errors"
	"io"

	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
)

// Stop is the cause with which the server ends a session from outside.
type Stop struct {
	Reason outcome.Reason
	Text   string
	By     string // Record.KilledBy
}

// Error returns Text.
func (e *Stop) Error() string { return e.Text }

// StopReason returns the reason of a session that was stopped for cause.
func StopReason(cause error) outcome.Reason {
	var s *Stop
	if errors.As(cause, &s) {
		return s.Reason
	}
	return outcome.Internal
}

// PrefaceReason returns the reason of the end of a client that has not sent a valid
// PROXY header or request.
func PrefaceReason(err error) outcome.Reason {
	var (
		bad    *preface.Error
		login  *preface.LoginError
		within *preface.InsideError
	)
	switch {
	case errors.As(err, &login):
		return outcome.AuthFailed
	case errors.As(err, &bad), errors.Is(err, io.ErrUnexpectedEOF):
		return outcome.BadGreeting
	case netconn.IsTimeout(err):
		return outcome.HandshakeTimeout
	case netconn.IsEOF(err), netconn.IsReset(err) && !errors.As(err, &within): // balancers check whether we accept, and some reset
		return outcome.Probe
	case netconn.IsReset(err):
		return outcome.DownstreamReset
	}
	return outcome.DownstreamLost
}

// HandshakeReason returns the reason of a failed TLS handshake with a client. Received says
// whether the client has sent a byte.
func HandshakeReason(err error, received bool) outcome.Reason {
	var notReady *outcome.NotReadyError
	switch {
	case errors.As(err, &notReady):
		return outcome.NoIdentity
	case netconn.IsTimeout(err):
		return outcome.HandshakeTimeout
	case netconn.IsHangUp(err) && !received:
		return outcome.Probe
	case netconn.IsReset(err):
		return outcome.DownstreamReset
	}
	return outcome.DownstreamTLS
}

// RelayReason returns the reason of a relay's end, and the error that caused it.
func RelayReason(r relay.Result, settled bool) (outcome.Reason, error) {
	early := !settled && r.Down == 0 && !r.Settled
	switch r.End {
	case relay.EndClosed:
		switch {
		case early && r.FirstClose == relay.Upstream:
			return outcome.UpstreamEarlyClose, nil
		case !settled && r.Up == 0 && r.Down == 0 && r.FirstClose == relay.Downstream:
			return outcome.Probe, nil
		}
		return outcome.Closed, nil
	case relay.EndDownstreamReset:
		if !settled && r.Up == 0 && r.Down == 0 {
			return outcome.Probe, r.Err
		}
		return outcome.DownstreamReset, r.Err
	case relay.EndUpstreamReset:
		if early && r.FirstClose == relay.Upstream {
			return outcome.UpstreamEarlyClose, r.Err
		}
		return outcome.UpstreamReset, r.Err
	case relay.EndUpstreamTLS:
		if netconn.IsAlert(r.Err) {
			return outcome.UpstreamTLSRejected, r.Err
		}
		return outcome.UpstreamTLS, r.Err
	case relay.EndStopped:
		return StopReason(r.Cause), r.Cause
	}
	if reason, ok := relayReasons[r.End]; ok {
		return reason, r.Err
	}
	return outcome.Internal, r.Err
}

// relayReasons are the reasons that depend only on how the relay ended.
var relayReasons = map[relay.End]outcome.Reason{
	relay.EndDownstreamLost: outcome.DownstreamLost,
	relay.EndUpstreamLost:   outcome.UpstreamLost,
	relay.EndDownstreamTLS:  outcome.DownstreamTLS,
	relay.EndIdle:           outcome.Idle,
	relay.EndHalfCloseIdle:  outcome.HalfCloseIdle,
	relay.EndLifetime:       outcome.Lifetime,
}

// errEndedFirst is the cause where a server resets a session that its client has ended.
var errEndedFirst = errors.New("the client closed first, and the server, which had ended the session too, answered its close with a reset")

// waitedError is a reset of the upstream after the client's own end.
type waitedError struct{ err error }

func (e *waitedError) Error() string { return e.err.Error() + "; " + e.Fix() }
func (e *waitedError) Unwrap() error { return e.err }

// Fix says when something is lost.
func (e *waitedError) Fix() string {
	return "the client had closed first: nothing is lost, unless it still waited for an answer; then the server's log has the reason"
}

// AfterClient judges a reset of the upstream that follows the client's own end. Where
// the servers of the protocol do so, it is a normal end. Elsewhere the client may have
// waited for an answer after its FIN. Without a protocol p is nil.
func AfterClient(p *starttls.Protocol, reason outcome.Reason, err error, r relay.Result) (outcome.Reason, error) {
	switch {
	case reason != outcome.UpstreamReset || r.FirstClose != relay.Downstream:
		return reason, err
	case p != nil && p.ResetsAtEnd:
		return outcome.Closed, errEndedFirst
	}
	return reason, &waitedError{err}
}

// SettleReason returns the reason with which to settle an attempt whose session ended
// for reason before the attempt was settled. Empty is neutral.
func SettleReason(reason outcome.Reason, r relay.Result) outcome.Reason {
	switch {
	case reason == outcome.UpstreamEarlyClose || reason == outcome.UpstreamTLSRejected || reason == outcome.UpstreamTLS:
		return reason
	case r.FirstClose == relay.Downstream && r.End == relay.EndClosed:
		return outcome.OK
	}
	return ""
}
