package request

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/htpasswd"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
)

// Request is a client's request in its own protocol, read before anything is dialled.
// One session owns it.
type Request struct {
	preface.Request
	Answer Answerer // nil: the protocol has no answer
}

// Answerer tells the client, in the protocol of its request, the result. It writes
// once, no more than a socket's buffer takes, and closes nothing.
type Answerer interface {
	// Accept says that bytes flow from now on. bound is our end of the connection to
	// the upstream; the zero value if there is no address to report.
	Accept(w io.Writer, bound netip.AddrPort) error
	// Refuse says why no bytes flow. Only the close may follow it.
	Refuse(w io.Writer, e *outcome.Error) error
}

// ReadSOCKS5 reads a request. On an error the client has been sent the reply, if SOCKS5
// has one for it.
func ReadSOCKS5(conn net.Conn, auth preface.Credentials, hints bool) (r Request, err error) {
	defer func() {
		if v := recover(); v != nil {
			r, err = Request{}, &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.Internal, Err: &relay.PanicError{Value: v, Stack: debug.Stack()}}
		}
	}()
	asked, err := preface.ReadSOCKS5(conn, auth, hints)
	if err != nil {
		return Request{}, requestError(err)
	}
	return Request{asked, socksAnswer{}}, nil
}

// ReadConnect reads a request. On an error the client has been sent the response,
// unless it does not speak HTTP.
func ReadConnect(conn net.Conn, auth preface.Credentials, hints bool) (Request, error) {
	asked, answer, err := preface.ReadConnect(conn, auth, hints)
	if err != nil {
		e := requestError(err)
		if answer != nil {
			connectAnswer{answer}.Refuse(conn, e)
		}
		return Request{}, e
	}
	return Request{asked, connectAnswer{answer}}, nil
}

// requestError classifies the error of a request that cannot be served, whatever the
// rules say.
func requestError(err error) *outcome.Error {
	var e *outcome.Error
	if errors.As(err, &e) {
		return e
	}
	return &outcome.Error{Stage: outcome.StageGreet, Reason: ending.PrefaceReason(err), Err: err}
}

// LimitLogins is what records name as the exceeded limit when a password cannot be
// checked in time.
const LimitLogins = "logins"

// LoginError is nil if the user's password is right. err is the error of the check.
func LoginError(user string, ok bool, err error) error {
	e := &outcome.Error{Stage: outcome.StageGreet}
	switch {
	case err == nil && ok:
		return nil
	case err == nil:
		e.Reason, e.Err = outcome.AuthFailed, fmt.Errorf("%.64q is no user, or has another password", user)
	case errors.Is(err, htpasswd.ErrBusy):
		e.Reason, e.Limit, e.Err = outcome.Limit, LimitLogins, fmt.Errorf("the password of %.64q could not be checked: %w", user, err)
	case netconn.IsTimeout(err):
		e.Reason, e.Err = outcome.HandshakeTimeout, fmt.Errorf("the password of %.64q could not be checked in time: %w", user, err)
	default:
		e.Reason, e.Err = outcome.Internal, fmt.Errorf("the password of %.64q could not be checked: %w", user, err)
	}
	return e
}

// socksAnswer is the SOCKS5 reply.
type socksAnswer struct{}

func (socksAnswer) Accept(w io.Writer, bound netip.AddrPort) error {
	return preface.SOCKSSucceeded.Write(w, bound)
}

func (socksAnswer) Refuse(w io.Writer, e *outcome.Error) error {
	return ending.SOCKSReply(e).Write(w, netip.AddrPort{})
}

// connectAnswer is the HTTP CONNECT response.
type connectAnswer struct{ response *preface.ConnectAnswer }

func (a connectAnswer) Accept(w io.Writer, _ netip.AddrPort) error { return a.response.Accept(w) }

func (a connectAnswer) Refuse(w io.Writer, e *outcome.Error) error {
	r := preface.Refusal{Text: string(e.Reason) + ": " + e.Error()}
	r.Status, r.Error = ending.ConnectReply(e)
	if e.Reason == outcome.BreakerOpen {
		r.RetryAfter = max(e.RetryIn, time.Second)
	}
	return a.response.Refuse(w, r)
}
