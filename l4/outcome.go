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
	"time"

	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
)

// Stage is where in its life a session is, or ended.
type Stage string

// The stages of a session, in their order.
const (
	StageAccept   Stage = "accept"
	StageAdmit    Stage = "admit"
	StageGreet    Stage = "greet"
	StageRoute    Stage = "route"
	StagePermit   Stage = "permit"
	StageDial     Stage = "dial"
	StageProxy    Stage = "proxy"
	StageStartTLS Stage = "starttls"
	StageTLS      Stage = "tls"
	StageAnswer   Stage = "answer"
	StageDialogue Stage = "dialogue"
	StageRelay    Stage = "relay"
)

// Reason is why a session or an attempt ended: a closed list, the same word in
// the log, the metrics and the API. See Advice for what to do about each.
type Reason string

// The reasons of this version.
const (
	// ReasonOK is success, of an attempt only.
	ReasonOK                  Reason = "ok"
	ReasonClosed              Reason = "closed"
	ReasonDownstreamReset     Reason = "downstream_reset"
	ReasonUpstreamReset       Reason = "upstream_reset"
	ReasonDownstreamLost      Reason = "downstream_lost"
	ReasonUpstreamLost        Reason = "upstream_lost"
	ReasonIdle                Reason = "idle"
	ReasonHalfCloseIdle       Reason = "half_close_idle"
	ReasonLifetime            Reason = "lifetime"
	ReasonDrained             Reason = "drained"
	ReasonShutdown            Reason = "shutdown"
	ReasonKilled              Reason = "killed"
	ReasonLimit               Reason = "limit"
	ReasonLocalExhausted      Reason = "local_exhausted"
	ReasonDenied              Reason = "denied"
	ReasonNoRoute             Reason = "no_route"
	ReasonAuthFailed          Reason = "auth_failed"
	ReasonSpecialAddress      Reason = "special_address"
	ReasonLoop                Reason = "loop"
	ReasonBadGreeting         Reason = "bad_greeting"
	ReasonHandshakeTimeout    Reason = "handshake_timeout"
	ReasonDownstreamTLS       Reason = "downstream_tls"
	ReasonNoIdentity          Reason = "no_identity"
	ReasonNoEndpoint          Reason = "no_endpoint"
	ReasonBreakerOpen         Reason = "breaker_open"
	ReasonDNS                 Reason = "dns"
	ReasonRefused             Reason = "refused"
	ReasonTimeout             Reason = "timeout"
	ReasonUnreachable         Reason = "unreachable"
	ReasonStartTLSRefused     Reason = "starttls_refused"
	ReasonUpstreamTLS         Reason = "upstream_tls"
	ReasonUpstreamTLSRejected Reason = "upstream_tls_rejected"
	ReasonUpstreamEarlyClose  Reason = "upstream_early_close"
	ReasonProbe               Reason = "probe"
	ReasonInternal            Reason = "internal"
)

// Error is a failure on the path of a connection.
type Error struct {
	Stage  Stage
	Reason Reason
	// Upstream, Endpoint and Address are where to; empty before they are known.
	Upstream, Endpoint, Address string
	// Limit is the key of the limit that is exceeded, with ReasonLimit.
	Limit string
	// RetryIn is how long until the next attempt, with ReasonBreakerOpen.
	RetryIn time.Duration
	// Err is what was seen.
	Err error
}

// Error is "STAGE UPSTREAM ADDRESS: cause".
func (e *Error) Error() string {
	s := string(e.Stage)
	for _, part := range []string{e.Upstream, e.Address} {
		if part != "" {
			s += " " + part
		}
	}
	if e.Err == nil {
		return s + ": " + string(e.Reason)
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns what was seen.
func (e *Error) Unwrap() error { return e.Err }

// Refusal is a decision of ours not to go on, as the error that becomes an Error's cause.
type Refusal struct {
	Stage  Stage // StageRoute or StagePermit
	Reason Reason
	Limit  string // the key of the limit that is exceeded, with ReasonLimit
	// RetryIn is how long until the next attempt, with ReasonBreakerOpen.
	RetryIn time.Duration
	Text    string
	// Public is Text for the client, without addresses; empty: Text is.
	Public string
}

// Error returns Text.
func (r *Refusal) Error() string { return r.Text }

// ours says whether the failure is on our side, so that another address would
// not help.
func (e *Error) ours() bool {
	return e.Reason == ReasonNoIdentity || e.Reason == ReasonLocalExhausted || e.Reason == ReasonInternal
}

// lasting says whether the same address would fail in the same way again.
func (e *Error) lasting() bool {
	switch e.Reason {
	case ReasonUpstreamTLS, ReasonUpstreamTLSRejected, ReasonStartTLSRefused:
		return true
	}
	return e.ours()
}

// notReadyError is an identity that cannot be used now.
type notReadyError struct{ err error }

func (e *notReadyError) Error() string { return e.err.Error() }
func (e *notReadyError) Unwrap() error { return e.err }

// stopError is why a session was stopped from outside.
type stopError struct {
	reason Reason
	text   string
}

func (e *stopError) Error() string { return e.text }

// The causes of (*session).stop.
var (
	errDownstreamGone = &stopError{ReasonDownstreamReset, "the client reset the connection before it was established"}
	errKilled         = &stopError{ReasonKilled, "killed through the admin API"}
	errAddressDown    = &stopError{ReasonKilled, "the address became unhealthy, and health.kill_on_down is set"}
	errDrained        = &stopError{ReasonDrained, "idle while draining"}
	errDrainTimeout   = &stopError{ReasonShutdown, "still busy at the end of drain.timeout"}
	errShutdown       = &stopError{ReasonShutdown, "the ambassador was told to end at once"}
)

// stopReason is the reason of a cause given to stop.
func stopReason(cause error) Reason {
	var s *stopError
	if errors.As(cause, &s) {
		return s.reason
	}
	return ReasonInternal
}

// classify names what went wrong in an attempt. It and the functions below are
// the only ones that look inside errors, and they go by type and number, never
// by text.
func classify(stage Stage, err error) Reason {
	var (
		panicked *panicError
		notReady *notReadyError
		dns      *net.DNSError
		refused  *starttls.RefusedError
		none     *Refusal
		unmarked *relay.MarkError
	)
	switch {
	case errors.As(err, &panicked):
		return ReasonInternal
	case errors.As(err, &notReady):
		return ReasonNoIdentity
	case errors.As(err, &unmarked):
		return ReasonLocalExhausted
	case errors.As(err, &none):
		return none.Reason
	case errors.As(err, &dns):
		return ReasonDNS
	case errors.Is(err, errTriedAll):
		return ReasonNoEndpoint
	case errors.As(err, &refused):
		return ReasonStartTLSRefused
	case isTimeout(err):
		return ReasonTimeout
	}
	switch stage {
	case StageTLS:
		if isAlert(err) {
			return ReasonUpstreamTLSRejected
		}
		return ReasonUpstreamTLS
	case StageStartTLS:
		return ReasonStartTLSRefused
	}
	return dialReason(err)
}

// dialReason names a failed connect by its error number.
func dialReason(err error) Reason {
	var n syscall.Errno
	if !errors.As(err, &n) {
		return ReasonUnreachable
	}
	switch n {
	case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.EAGAIN: // EAGAIN: a unix listener's backlog is full
		return ReasonRefused
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE:
		return ReasonLocalExhausted
	}
	return ReasonUnreachable
}

// earlyReason names the end of an established upstream before its first byte.
func earlyReason(err error) Reason {
	var panicked *panicError
	switch {
	case errors.As(err, &panicked):
		return ReasonInternal
	case isAlert(err):
		return ReasonUpstreamTLSRejected
	case isTimeout(err):
		return ReasonTimeout
	case err == nil || isHangUp(err):
		return ReasonUpstreamEarlyClose
	}
	return ReasonUpstreamTLS
}

// dialogueReason names the end of a dialogue that did not come to its end.
func dialogueReason(err error) Reason {
	var (
		greeting *starttls.GreetingError
		refused  *starttls.RefusedError
		side     *starttls.SideError
	)
	switch {
	case errors.As(err, &greeting):
		return ReasonBadGreeting
	case errors.As(err, &refused):
		return ReasonStartTLSRefused
	case !errors.As(err, &side):
		return ReasonInternal
	case side.Side == starttls.Upstream:
		return earlyReason(side.Err)
	case isTimeout(side.Err):
		return ReasonHandshakeTimeout
	case isEOF(side.Err) && side.Clean:
		return ReasonProbe
	case isEOF(side.Err): // inside a message, or because of our answer to its first
		return ReasonBadGreeting
	case isReset(side.Err):
		return ReasonDownstreamReset
	}
	return ReasonDownstreamLost
}

// prefaceReason names the end of a client that has not sent a good PROXY header or
// request.
func prefaceReason(err error) Reason {
	var (
		bad   *preface.Error
		login *preface.LoginError
	)
	switch {
	case errors.As(err, &login):
		return ReasonAuthFailed
	case errors.As(err, &bad), errors.Is(err, io.ErrUnexpectedEOF):
		return ReasonBadGreeting
	case isTimeout(err):
		return ReasonHandshakeTimeout
	case isEOF(err):
		return ReasonProbe
	case isReset(err):
		return ReasonDownstreamReset
	}
	return ReasonDownstreamLost
}

// handshakeReason names the end of a client's TLS handshake; heard says that it has
// sent a byte.
func handshakeReason(err error, heard bool) Reason {
	var notReady *notReadyError
	switch {
	case errors.As(err, &notReady):
		return ReasonNoIdentity
	case isTimeout(err):
		return ReasonHandshakeTimeout
	case isEOF(err) && !heard:
		return ReasonProbe
	case isReset(err):
		return ReasonDownstreamReset
	}
	return ReasonDownstreamTLS
}

// relayReason names how a relay ended, and gives what was seen.
func relayReason(r relay.Result, heard bool) (Reason, error) {
	early := !heard && r.Down == 0 && !r.Settled
	switch r.End {
	case relay.EndClosed:
		switch {
		case early && r.FirstClose == relay.Upstream:
			return ReasonUpstreamEarlyClose, nil
		case !heard && r.Up == 0 && r.Down == 0 && r.FirstClose == relay.Downstream:
			return ReasonProbe, nil
		}
		return ReasonClosed, nil
	case relay.EndUpstreamReset:
		switch {
		case !heard && r.Down == 0 && isAlert(r.Err):
			return ReasonUpstreamTLSRejected, r.Err
		case early && r.FirstClose == relay.Upstream:
			return ReasonUpstreamEarlyClose, r.Err
		}
		return ReasonUpstreamReset, r.Err
	case relay.EndStopped:
		return stopReason(r.Cause), r.Cause
	}
	if reason, ok := relayReasons[r.End]; ok {
		return reason, r.Err
	}
	return ReasonInternal, r.Err
}

// relayReasons are the endings that need no judgement.
var relayReasons = map[relay.End]Reason{
	relay.EndDownstreamReset: ReasonDownstreamReset,
	relay.EndDownstreamLost:  ReasonDownstreamLost,
	relay.EndUpstreamLost:    ReasonUpstreamLost,
	relay.EndIdle:            ReasonIdle,
	relay.EndHalfCloseIdle:   ReasonHalfCloseIdle,
	relay.EndLifetime:        ReasonLifetime,
}

// settleReason is how an attempt went whose session ended for reason before it
// had settled; empty is neutral.
func settleReason(reason Reason, r relay.Result) Reason {
	switch {
	case reason == ReasonUpstreamEarlyClose || reason == ReasonUpstreamTLSRejected:
		return reason
	case r.FirstClose == relay.Downstream && r.End == relay.EndClosed:
		return ReasonOK
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

// isBusy says whether the server has answered in its protocol that it is at its
// limit: it is well, and another may be served in a moment.
func isBusy(err error) bool {
	var refused *starttls.RefusedError
	return errors.As(err, &refused) && refused.Busy
}

// blamesCertificate says whether a failure of TLS is about one of the two
// certificates, which no byte of a client can bring about: we reject the server's, or
// an alert of the server is about ours.
func blamesCertificate(r Reason, err error) bool {
	switch r {
	case ReasonUpstreamTLSRejected:
		return isCertificateAlert(alertNumber(err))
	case ReasonUpstreamTLS:
		var header tls.RecordHeaderError
		return !isHangUp(err) && !errors.As(err, &header)
	}
	return false
}

// isCertificateAlert says whether an alert is about the certificate of the side that
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

// alertNumber is the number of the alert that the peer sent; 0, which is
// close_notify's, if it sent none. crypto/tls has a number of a type of its own there.
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

// isAlert says whether the peer sent a TLS alert: crypto/tls wraps it in an
// OpError of that Op, and exports no type of its own.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
