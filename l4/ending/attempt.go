package ending

import (
	"crypto/tls"
	"errors"
	"net"

	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/l4/tlscause"
	"ambassador/policy"
)

// Classify returns the reason of a failed attempt. It and the functions below look at the
// type and the number of errors, never at their text.
func Classify(stage outcome.Stage, err error) outcome.Reason {
	var (
		panicked *task.PanicError
		notReady *outcome.NotReadyError
		dns      *net.DNSError
		source   *outcome.DiscoveryError
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
	case errors.As(err, &dns), errors.As(err, &source):
		return outcome.DNS
	case errors.Is(err, ErrTriedAll):
		return outcome.NoEndpoint
	case errors.As(err, &refused):
		return outcome.StartTLSRefused
	case netconn.IsTimeout(err):
		return outcome.Timeout
	}
	switch stage {
	case outcome.StageTLS:
		if netconn.IsAlert(err) {
			return outcome.UpstreamTLSRejected
		}
		return outcome.UpstreamTLS
	case outcome.StageStartTLS:
		return outcome.StartTLSRefused
	}
	return outcome.OfDial(err)
}

// EarlyReason returns the reason of the end of an upstream's connection between the
// handshake and the server's first byte.
func EarlyReason(err error) outcome.Reason {
	var panicked *task.PanicError
	switch {
	case errors.As(err, &panicked):
		return outcome.Internal
	case netconn.IsAlert(err):
		return outcome.UpstreamTLSRejected
	case netconn.IsTimeout(err):
		return outcome.Timeout
	case err == nil || netconn.IsHangUp(err):
		return outcome.UpstreamEarlyClose
	}
	return outcome.UpstreamTLS
}

// DialogueReason returns the reason of a dialogue that ended before it was complete.
func DialogueReason(err error) outcome.Reason {
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
		return EarlyReason(side.Err)
	case netconn.IsTimeout(side.Err):
		return outcome.HandshakeTimeout
	case netconn.IsEOF(side.Err) && side.Clean:
		return outcome.Probe
	case netconn.IsEOF(side.Err): // inside a message, or after our answer to its first message
		return outcome.BadGreeting
	case netconn.IsReset(side.Err) && side.Clean:
		return outcome.Probe
	case netconn.IsReset(side.Err):
		return outcome.DownstreamReset
	}
	return outcome.DownstreamLost
}

// isBusy reports whether the server has answered in its protocol that it is at its
// limit. Such a server is healthy, and may serve another client in a moment.
func isBusy(err error) bool {
	var refused *starttls.RefusedError
	return errors.As(err, &refused) && refused.Busy
}

// blamesCertificate reports whether a TLS failure is about one of the two certificates:
// we reject the server's in the handshake, or an alert of the server is about ours. No
// byte of a client can cause that. It can cause what follows the handshake.
func blamesCertificate(r outcome.Reason, err error) bool {
	switch r {
	case outcome.UpstreamTLSRejected:
		return tlscause.OfCertificate(netconn.Alert(err))
	case outcome.UpstreamTLS:
		var (
			header    tls.RecordHeaderError
			handshake *HandshakeError
		)
		return errors.As(err, &handshake) && !netconn.IsHangUp(err) && !errors.As(err, &header)
	}
	return false
}

// OutcomeOf returns what the end of an attempt says about its address. A server that
// reports that it is full has answered, which is a success. Spoken means that a byte of
// the client, or a byte that depends on the client, was sent before the end. The client
// may then have caused the end, and what a client sends must never harm others.
func OutcomeOf(r outcome.Reason, err error, spoken bool) policy.Outcome {
	switch {
	case r == outcome.OK, r.CountsAgainstAddress() && isBusy(err):
		return policy.Success
	case !r.CountsAgainstAddress() || spoken && !blamesCertificate(r, err):
		return policy.Neutral
	}
	return policy.Failure
}

// ErrTriedAll means that this round has tried every address that may be tried.
var ErrTriedAll = errors.New("every address was tried")
