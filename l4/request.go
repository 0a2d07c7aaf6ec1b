package l4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"ambassador/l4/htpasswd"
	"ambassador/policy"
)

// request is what a client has asked for in its own protocol, before anything is
// dialled. Owned by one session.
type request struct {
	host    string     // a name as policy.ParseHost gives it; empty for a literal
	addr    netip.Addr // of a literal, never an IPv4-mapped one; not valid for a name
	port    uint16     // never 0
	user    string     // proved; empty where nobody asks for one
	context string     // what the client says about the connection, not parsed yet
	early   []byte     // of the client's own bytes, read together with the request
	answer  answerer   // nil: the protocol has no answer
}

// answerer tells the client, in the protocol of its request, how that went. It
// writes once, what a socket's buffer takes, and closes nothing.
type answerer interface {
	// accept says that bytes flow from now on. Bound is our end of the connection to
	// the upstream; the zero value where there is none to tell.
	accept(w io.Writer, bound netip.AddrPort) error
	// refuse says why they do not; nothing may follow it but the end.
	refuse(w io.Writer, e *Error) error
}

// limitLogins names the limit of a login whose password cannot be checked in time, in
// records.
const limitLogins = "logins"

// credentials says whether a user has that password. It may wait, bounded by ctx.
// An error is not a wrong password but something of ours. Nil: nobody is asked.
type credentials func(ctx context.Context, user, password string) (ok bool, err error)

// check is nil if the client is who it says.
func (auth credentials) check(ctx context.Context, user, password string) *Error {
	ok, err := auth(ctx, user, password)
	switch {
	case errors.Is(err, htpasswd.ErrBusy):
		return &Error{Stage: StageGreet, Reason: ReasonLimit, Limit: limitLogins, Err: fmt.Errorf("the password of %.64q could not be checked: %w", user, err)}
	case err != nil && isTimeout(err):
		return requestError(ReasonHandshakeTimeout, fmt.Errorf("the password of %.64q could not be checked in time: %w", user, err))
	case err != nil:
		return requestError(ReasonInternal, fmt.Errorf("the password of %.64q could not be checked: %w", user, err))
	case !ok:
		return requestError(ReasonAuthFailed, fmt.Errorf("%.64q is no user, or has another password", user))
	}
	return nil
}

// requestError is a request that cannot be served, whatever the rules say.
func requestError(reason Reason, err error) *Error {
	return &Error{Stage: StageGreet, Reason: reason, Err: err}
}

// goTo takes down where the client wants to go: a name, or a literal in its place.
func (r *request) goTo(name string, port uint16) (err error) {
	if r.host, r.addr, err = policy.ParseHost(name); err != nil {
		return err
	}
	return r.goToPort(port)
}

func (r *request) goToPort(port uint16) error {
	if port == 0 {
		return errors.New("nobody listens at port 0: the client must name the port")
	}
	r.port = port
	return nil
}

// asking is the connection of a client that says where it wants to go. It keeps
// what became of it, which parsers tell in words only.
type asking struct {
	net.Conn
	heard bool  // the client has sent a byte
	err   error // what ended the connection; nil: it is still there
}

// Read takes no end for one that comes with bytes: they may be all that is needed.
func (a *asking) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if n > 0 {
		a.heard = true
	} else if err != nil {
		a.err = err
	}
	return n, err
}

func (a *asking) Write(b []byte) (int, error) {
	n, err := a.Conn.Write(b)
	if err != nil {
		a.err = err
	}
	return n, err
}

// lost is the end of a client within its request in that protocol.
func (a *asking) lost(protocol string) *Error {
	err := inside(a.err, a.heard)
	return requestError(proxyReason(err), fmt.Errorf("%s request: %w", protocol, err))
}
