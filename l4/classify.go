package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"syscall"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
)

// notReadyError means that our identity cannot be used now.
type notReadyError struct{ err error }

func (e *notReadyError) Error() string { return e.err.Error() }
func (e *notReadyError) Unwrap() error { return e.err }

// stopError is the cause with which stop ends a session.
type stopError struct {
	reason outcome.Reason
	text   string
}

func (e *stopError) Error() string { return e.text }

// The causes of (*session).stop.
var (
	errDownstreamGone = &stopError{outcome.DownstreamReset, "the client reset the connection before it was established"}
	errKilled         = &stopError{outcome.Killed, "killed through the admin API"}
	errAddressDown    = &stopError{outcome.Killed, "the address became unhealthy, and health.kill_on_down is set"}
	errDrained        = &stopError{outcome.Drained, "idle while draining"}
	errDrainTimeout   = &stopError{outcome.Shutdown, "still busy at the end of drain.timeout"}
	errShutdown       = &stopError{outcome.Shutdown, "the ambassador was told to end at once"}
)

// stopReason returns the reason of a cause given to stop.
func stopReason(cause error) outcome.Reason {
	var s *stopError
	if errors.As(cause, &s) {
		return s.reason
	}
	return outcome.Internal
}

// classify returns the reason of a failed attempt. It and the functions below are the
// only ones that look inside errors. They use the type and the number, never the text.
func classify(stage outcome.Stage, err error) outcome.Reason {
	var (
		panicked *panicError
		notReady *notReadyError
		dns      *net.DNSError
		refused  *starttls.RefusedError
		none     *outcome.Refusal
		unmarked *relay.MarkError
	)
	switch {
	case errors.As(err, &panicked):
		return outcome.Internal
	case errors.As(err, &notReady):
		return outcome.NoIdentity
	case errors.As(err, &unmarked):
		return outcome.LocalExhausted
	case errors.As(err, &none):
		return none.Reason
	case errors.As(err, &dns):
		return outcome.DNS
	case errors.Is(err, errTriedAll):
		return outcome.NoEndpoint
	case errors.As(err, &refused):
		return outcome.StartTLSRefused
	case isTimeout(err):
		return outcome.Timeout
	}
	switch stage {
	case outcome.StageTLS:
		if isAlert(err) {
			return outcome.UpstreamTLSRejected
		}
		return outcome.UpstreamTLS
	case outcome.StageStartTLS:
		return outcome.StartTLSRefused
	}
	return dialReason(err)
}

// dialReason returns the reason of a failed connect, by its error number.
func dialReason(err error) outcome.Reason {
	var n syscall.Errno
	if !errors.As(err, &n) {
		return outcome.Unreachable
	}
	switch n {
	case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.EAGAIN: // EAGAIN: a unix listener's backlog is full
		return outcome.Refused
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE:
		return outcome.LocalExhausted
	}
	return outcome.Unreachable
}

// earlyReason returns the reason of the end of an upstream's connection between the
// handshake and the server's first byte.
func earlyReason(err error) outcome.Reason {
	var panicked *panicError
	switch {
	case errors.As(err, &panicked):
		return outcome.Internal
	case isAlert(err):
		return outcome.UpstreamTLSRejected
	case isTimeout(err):
		return outcome.Timeout
	case err == nil || isHangUp(err):
		return outcome.UpstreamEarlyClose
	}
	return outcome.UpstreamTLS
}

// dialogueReason returns the reason of a dialogue that ended before it was complete.
func dialogueReason(err error) outcome.Reason {
	var (
		greeting *starttls.GreetingError
		refused  *starttls.RefusedError
		side     *starttls.SideError
	)
	switch {
	case errors.As(err, &greeting):
		return outcome.BadGreeting
	case errors.As(err, &refused):
		return outcome.StartTLSRefused
	case !errors.As(err, &side):
		return outcome.Internal
	case side.Side == starttls.Upstream:
		return earlyReason(side.Err)
	case isTimeout(side.Err):
		return outcome.HandshakeTimeout
	case isEOF(side.Err) && side.Clean:
		return outcome.Probe
	case isEOF(side.Err): // inside a message, or after our answer to its first message
		return outcome.BadGreeting
	case isReset(side.Err):
		return outcome.DownstreamReset
	}
	return outcome.DownstreamLost
}

// prefaceReason returns the reason of the end of a client that has not sent a valid
// PROXY header or request.
func prefaceReason(err error) outcome.Reason {
	var (
		bad   *preface.Error
		login *preface.LoginError
	)
	switch {
	case errors.As(err, &login):
		return outcome.AuthFailed
	case errors.As(err, &bad), errors.Is(err, io.ErrUnexpectedEOF):
		return outcome.BadGreeting
	case isTimeout(err):
		return outcome.HandshakeTimeout
	case isEOF(err):
		return outcome.Probe
	case isReset(err):
		return outcome.DownstreamReset
	}
	return outcome.DownstreamLost
}

// handshakeReason returns the reason of a failed TLS handshake with a client. Heard says
// whether the client has sent a byte.
func handshakeReason(err error, heard bool) outcome.Reason {
	var notReady *notReadyError
	switch {
	case errors.As(err, &notReady):
		return outcome.NoIdentity
	case isTimeout(err):
		return outcome.HandshakeTimeout
	case isEOF(err) && !heard:
		return outcome.Probe
	case isReset(err):
		return outcome.DownstreamReset
	}
	return outcome.DownstreamTLS
}

// relayReason returns the reason of a relay's end, and the error that caused it.
func relayReason(r relay.Result, heard bool) (outcome.Reason, error) {
	early := !heard && r.Down == 0 && !r.Settled
	switch r.End {
	case relay.EndClosed:
		switch {
		case early && r.FirstClose == relay.Upstream:
			return outcome.UpstreamEarlyClose, nil
		case !heard && r.Up == 0 && r.Down == 0 && r.FirstClose == relay.Downstream:
			return outcome.Probe, nil
		}
		return outcome.Closed, nil
	case relay.EndUpstreamReset:
		switch {
		case !heard && r.Down == 0 && isAlert(r.Err):
			return outcome.UpstreamTLSRejected, r.Err
		case early && r.FirstClose == relay.Upstream:
			return outcome.UpstreamEarlyClose, r.Err
		}
		return outcome.UpstreamReset, r.Err
	case relay.EndStopped:
		return stopReason(r.Cause), r.Cause
	}
	if reason, ok := relayReasons[r.End]; ok {
		return reason, r.Err
	}
	return outcome.Internal, r.Err
}

// relayReasons are the reasons that depend only on how the relay ended.
var relayReasons = map[relay.End]outcome.Reason{
	relay.EndDownstreamReset: outcome.DownstreamReset,
	relay.EndDownstreamLost:  outcome.DownstreamLost,
	relay.EndUpstreamLost:    outcome.UpstreamLost,
	relay.EndIdle:            outcome.Idle,
	relay.EndHalfCloseIdle:   outcome.HalfCloseIdle,
	relay.EndLifetime:        outcome.Lifetime,
}

// settleReason returns the reason with which to settle an attempt whose session ended
// for reason before the attempt was settled. Empty is neutral.
func settleReason(reason outcome.Reason, r relay.Result) outcome.Reason {
	switch {
	case reason == outcome.UpstreamEarlyClose || reason == outcome.UpstreamTLSRejected:
		return reason
	case r.FirstClose == relay.Downstream && r.End == relay.EndClosed:
		return outcome.OK
	}
	return ""
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isHangUp(err error) bool { return isEOF(err) || isReset(err) }

// isBusy reports whether the server has answered in its protocol that it is at its
// limit. Such a server is healthy, and may serve another client in a moment.
func isBusy(err error) bool {
	var refused *starttls.RefusedError
	return errors.As(err, &refused) && refused.Busy
}

// blamesCertificate reports whether a TLS failure is about one of the two certificates:
// we reject the server's, or an alert of the server is about ours. No byte of a client
// can cause that.
func blamesCertificate(r outcome.Reason, err error) bool {
	switch r {
	case outcome.UpstreamTLSRejected:
		return isCertificateAlert(alertNumber(err))
	case outcome.UpstreamTLS:
		var header tls.RecordHeaderError
		return !isHangUp(err) && !errors.As(err, &header)
	}
	return false
}

// isCertificateAlert reports whether an alert is about the certificate of the side that
// receives it (RFC 8446, 6.2).
func isCertificateAlert(n uint8) bool {
	switch n {
	case 42, // bad_certificate
		43,  // unsupported_certificate
		44,  // certificate_revoked
		45,  // certificate_expired
		46,  // certificate_unknown
		48,  // unknown_ca
		49,  // access_denied
		116: // certificate_required
		return true
	}
	return false
}

// alertNumber returns the number of the alert that the peer sent; 0, the number of
// close_notify, if it sent none. The type of that number in crypto/tls is not exported.
func alertNumber(err error) uint8 {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0
	}
	if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
		return uint8(v.Uint())
	}
	return 0
}

// isAlert reports whether the peer sent a TLS alert: crypto/tls wraps an alert in an
// OpError of that Op, and exports no type for it.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
