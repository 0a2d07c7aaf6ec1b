package outcome

import (
	"errors"
	"strings"
	"syscall"
	"time"
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
	// OK is success, of an attempt only.
	OK                  Reason = "ok"
	Closed              Reason = "closed"
	DownstreamReset     Reason = "downstream_reset"
	UpstreamReset       Reason = "upstream_reset"
	DownstreamLost      Reason = "downstream_lost"
	UpstreamLost        Reason = "upstream_lost"
	Idle                Reason = "idle"
	HalfCloseIdle       Reason = "half_close_idle"
	Lifetime            Reason = "lifetime"
	Drained             Reason = "drained"
	Shutdown            Reason = "shutdown"
	Killed              Reason = "killed"
	Limit               Reason = "limit"
	LocalExhausted      Reason = "local_exhausted"
	Denied              Reason = "denied"
	NoRoute             Reason = "no_route"
	AuthFailed          Reason = "auth_failed"
	SpecialAddress      Reason = "special_address"
	Loop                Reason = "loop"
	BadGreeting         Reason = "bad_greeting"
	HandshakeTimeout    Reason = "handshake_timeout"
	DownstreamTLS       Reason = "downstream_tls"
	NoIdentity          Reason = "no_identity"
	NoEndpoint          Reason = "no_endpoint"
	BreakerOpen         Reason = "breaker_open"
	DNS                 Reason = "dns"
	Refused             Reason = "refused"
	Timeout             Reason = "timeout"
	Unreachable         Reason = "unreachable"
	StartTLSRefused     Reason = "starttls_refused"
	UpstreamTLS         Reason = "upstream_tls"
	UpstreamTLSRejected Reason = "upstream_tls_rejected"
	UpstreamEarlyClose  Reason = "upstream_early_close"
	Probe               Reason = "probe"
	Internal            Reason = "internal"
)

// CountsAgainstAddress reports whether an attempt that ended for the reason may say
// something about the address. Other reasons are ours or the client's.
func (r Reason) CountsAgainstAddress() bool {
	switch r {
	case Refused, Timeout, Unreachable, StartTLSRefused, UpstreamTLS, UpstreamTLSRejected, UpstreamEarlyClose:
		return true
	}
	return false
}

// OfDial returns the reason of a failed connect, by its error number.
func OfDial(err error) Reason {
	var n syscall.Errno
	if !errors.As(err, &n) {
		return Unreachable
	}
	switch n {
	case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.EAGAIN: // EAGAIN: a unix listener's backlog is full
		return Refused
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE:
		return LocalExhausted
	}
	return Unreachable
}

// Error is a failure on the path of a connection.
type Error struct {
	Stage  Stage
	Reason Reason
	// Upstream, Endpoint and Address are where to; empty before they are known.
	Upstream, Endpoint, Address string
	// Limit is the key of the limit that is exceeded, with the reason limit.
	Limit string
	// RetryIn is how long until the next attempt, with the reason breaker_open.
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
	Limit  string // the key of the limit that is exceeded, with the reason limit
	// RetryIn is how long until the next attempt, with the reason breaker_open.
	RetryIn time.Duration
	Text    string
	// Public is Text for the client, without addresses; empty: Text is.
	Public string
}

// Error returns Text.
func (r *Refusal) Error() string { return r.Text }

// DiscoveryError means that the source which pushes an endpoint's addresses cannot be
// asked. Its text is not for clients: it has addresses and names of our own.
type DiscoveryError struct {
	Endpoint string
	Err      error
}

// Error returns the endpoint and the cause.
func (e *DiscoveryError) Error() string { return "discovery of " + e.Endpoint + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DiscoveryError) Unwrap() error { return e.Err }

// CauseAndFix splits the text of err into what happened and how to fix it. Fix is empty
// if the error does not know it: then Advice is all that there is. An error that knows
// it has a method Fix() string, and "; FIX" is the end of its text.
func CauseAndFix(err error) (cause, fix string) {
	cause = err.Error()
	var knows interface {
		error
		Fix() string
	}
	for e := err; errors.As(e, &knows); e = errors.Unwrap(knows) {
		if fix := knows.Fix(); fix != "" {
			return strings.TrimSuffix(cause, "; "+fix), fix
		}
	}
	return cause, ""
}

// Ours says whether the failure is on our side, so that another address would
// not help.
func (e *Error) Ours() bool {
	return e.Reason == NoIdentity || e.Reason == LocalExhausted || e.Reason == Internal
}

// Lasting says whether the same address would fail in the same way again.
func (e *Error) Lasting() bool {
	switch e.Reason {
	case UpstreamTLS, UpstreamTLSRejected, StartTLSRefused:
		return true
	}
	return e.Ours()
}

// NotReadyError means that our identity cannot be used now, for the reason Err.
type NotReadyError struct{ Err error }

func (e *NotReadyError) Error() string { return e.Err.Error() }
func (e *NotReadyError) Unwrap() error { return e.Err }
