package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"syscall"
	"time"

	"ambassador/l4/htpasswd"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// request is a client's request in its own protocol, read before anything is dialled.
// One session owns it.
type request struct {
	preface.Request
	answer answerer // nil: the protocol has no answer
}

// answerer tells the client, in the protocol of its request, the result. It writes
// once, no more than a socket's buffer takes, and closes nothing.
type answerer interface {
	// accept says that bytes flow from now on. bound is our end of the connection to
	// the upstream; the zero value if there is no address to report.
	accept(w io.Writer, bound netip.AddrPort) error
	// refuse says why no bytes flow. Only the close may follow it.
	refuse(w io.Writer, e *outcome.Error) error
}

// readSOCKS5 reads a request. On an error the client has been sent the reply, if SOCKS5
// has one for it.
func readSOCKS5(conn net.Conn, auth preface.Credentials, hints bool) (r request, err error) {
	defer func() {
		if v := recover(); v != nil {
			r, err = request{}, &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.Internal, Err: &relay.PanicError{Value: v, Stack: debug.Stack()}}
		}
	}()
	asked, err := preface.ReadSOCKS5(conn, auth, hints)
	if err != nil {
		return request{}, requestError(err)
	}
	return request{asked, socksAnswer{}}, nil
}

// readConnect reads a request. On an error the client has been sent the response,
// unless it does not speak HTTP.
func readConnect(conn net.Conn, auth preface.Credentials, hints bool) (request, error) {
	asked, answer, err := preface.ReadConnect(conn, auth, hints)
	if err != nil {
		e := requestError(err)
		if answer != nil {
			connectAnswer{answer}.refuse(conn, e)
		}
		return request{}, e
	}
	return request{asked, connectAnswer{answer}}, nil
}

// requestError classifies the error of a request that cannot be served, whatever the
// rules say.
func requestError(err error) *outcome.Error {
	var e *outcome.Error
	if errors.As(err, &e) {
		return e
	}
	return &outcome.Error{Stage: outcome.StageGreet, Reason: prefaceReason(err), Err: err}
}

// limitLogins is what records name as the exceeded limit when a password cannot be
// checked in time.
const limitLogins = "logins"

// loginError is nil if the user's password is right. err is the error of the check.
func loginError(user string, ok bool, err error) error {
	e := &outcome.Error{Stage: outcome.StageGreet}
	switch {
	case err == nil && ok:
		return nil
	case err == nil:
		e.Reason, e.Err = outcome.AuthFailed, fmt.Errorf("%.64q is no user, or has another password", user)
	case errors.Is(err, htpasswd.ErrBusy):
		e.Reason, e.Limit, e.Err = outcome.Limit, limitLogins, fmt.Errorf("the password of %.64q could not be checked: %w", user, err)
	case isTimeout(err):
		e.Reason, e.Err = outcome.HandshakeTimeout, fmt.Errorf("the password of %.64q could not be checked in time: %w", user, err)
	default:
		e.Reason, e.Err = outcome.Internal, fmt.Errorf("the password of %.64q could not be checked: %w", user, err)
	}
	return e
}

// credentials returns the function that checks the client's user and password; nil if
// no login is required.
func (s *session) credentials(ctx context.Context) preface.Credentials {
	if s.route.cfg.Users == nil {
		return nil
	}
	client := s.downstream.source()
	return func(user, password string) error {
		users := orDefault(s.route.listener.route.Load().cfg.Users, s.route.cfg.Users)
		s.downstream.users = users
		if users.Remembered(user, password) {
			return nil
		}
		task.Leave(ctx)
		ok, err := users.Verify(ctx, client, user, password)
		return loginError(user, ok, err)
	}
}

// narrow returns c with the limits that the hints ask for. They must not exceed those
// of c.
func narrow(c ConnectConfig, hints preface.Hints) (ConnectConfig, error) {
	if err := hints.Within(orDefault(c.Attempts, DefaultAttempts), orDefault(c.Timeout, DefaultConnectTimeout)); err != nil {
		return c, err
	}
	c.Attempts, c.Timeout = orDefault(hints.Attempts, c.Attempts), orDefault(hints.Timeout, c.Timeout)
	return c, nil
}

// socksAnswer is the SOCKS5 reply.
type socksAnswer struct{}

func (socksAnswer) accept(w io.Writer, bound netip.AddrPort) error {
	return preface.SOCKSSucceeded.Write(w, bound)
}

func (socksAnswer) refuse(w io.Writer, e *outcome.Error) error {
	return socksReply(e).Write(w, netip.AddrPort{})
}

// socksReply maps a failure to a SOCKS5 reply: the general failure if its reason has no
// reply of its own.
func socksReply(e *outcome.Error) preface.SOCKSReply {
	switch e.Reason {
	case outcome.Denied, outcome.NoRoute, outcome.SpecialAddress, outcome.Loop:
		return preface.SOCKSNotAllowed
	case outcome.Unreachable:
		if errors.Is(e, syscall.ENETUNREACH) {
			return preface.SOCKSNetworkUnreachable
		}
		return preface.SOCKSHostUnreachable
	case outcome.DNS:
		return preface.SOCKSHostUnreachable
	case outcome.Refused, outcome.BreakerOpen, outcome.NoEndpoint:
		return preface.SOCKSRefused
	case outcome.Timeout:
		return preface.SOCKSExpired
	}
	return preface.SOCKSFailed
}

// connectAnswer is the HTTP CONNECT response.
type connectAnswer struct{ *preface.ConnectAnswer }

func (a connectAnswer) accept(w io.Writer, _ netip.AddrPort) error { return a.Accept(w) }

func (a connectAnswer) refuse(w io.Writer, e *outcome.Error) error {
	r := preface.Refusal{Text: string(e.Reason) + ": " + e.Error()}
	r.Status, r.Error = connectReply(e)
	if e.Reason == outcome.BreakerOpen {
		r.RetryAfter = max(e.RetryIn, time.Second)
	}
	return a.Refuse(w, r)
}

// connectReplies maps a reason to its status and its error type in RFC 9209, section
// 2.3. A reason that is not in the map is our own fault.
var connectReplies = map[outcome.Reason]struct {
	status int
	kind   string
}{
	outcome.BadGreeting:         {http.StatusBadRequest, "http_request_error"},
	outcome.HandshakeTimeout:    {http.StatusRequestTimeout, "http_request_error"},
	outcome.AuthFailed:          {http.StatusProxyAuthRequired, "http_request_denied"},
	outcome.Denied:              {http.StatusForbidden, "http_request_denied"},
	outcome.NoRoute:             {http.StatusForbidden, "http_request_denied"},
	outcome.SpecialAddress:      {http.StatusForbidden, "destination_ip_prohibited"},
	outcome.Loop:                {http.StatusForbidden, "proxy_loop_detected"},
	outcome.DNS:                 {http.StatusBadGateway, "dns_error"},
	outcome.Refused:             {http.StatusBadGateway, "connection_refused"},
	outcome.Unreachable:         {http.StatusBadGateway, "destination_ip_unroutable"},
	outcome.StartTLSRefused:     {http.StatusBadGateway, "tls_protocol_error"},
	outcome.UpstreamTLS:         {http.StatusBadGateway, "tls_certificate_error"},
	outcome.UpstreamTLSRejected: {http.StatusBadGateway, "tls_alert_received"},
	outcome.UpstreamEarlyClose:  {http.StatusBadGateway, "connection_terminated"},
	outcome.UpstreamReset:       {http.StatusBadGateway, "connection_terminated"},
	outcome.Timeout:             {http.StatusGatewayTimeout, "connection_timeout"},
	outcome.BreakerOpen:         {http.StatusServiceUnavailable, "destination_unavailable"},
	outcome.NoEndpoint:          {http.StatusServiceUnavailable, "destination_unavailable"},
	outcome.Limit:               {http.StatusServiceUnavailable, "connection_limit_reached"},
	outcome.LocalExhausted:      {http.StatusServiceUnavailable, "proxy_internal_error"},
	outcome.NoIdentity:          {http.StatusServiceUnavailable, "proxy_internal_error"},
}

// connectReply returns the status and the error type for a failure.
func connectReply(e *outcome.Error) (status int, kind string) {
	var (
		method      *preface.MethodError
		certificate *tls.CertificateVerificationError
	)
	reply, ok := connectReplies[e.Reason]
	switch {
	case !ok:
		return http.StatusInternalServerError, "proxy_internal_error"
	case errors.As(e, &method):
		return http.StatusMethodNotAllowed, reply.kind
	case e.Reason == outcome.UpstreamTLS && !errors.As(e, &certificate):
		return reply.status, "tls_protocol_error"
	}
	return reply.status, reply.kind
}
