package preface

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"ambassador/policy"
)

// Request is what a client asks for in SOCKS5 or HTTP CONNECT. Owned by one session.
type Request struct {
	Host     string     // a name as policy.ParseHost returns it; empty for an address
	Absolute bool       // the name ended in the root's dot: no search domain may be appended
	Addr     netip.Addr // an address, never an IPv4-mapped one; not valid for a name
	Port     uint16     // never 0
	User     string     // whose password was right; empty where none is demanded
	Early    []byte     // the client's own bytes that were read together with the request

	hints     string
	separator byte // of hints
}

// Hints parses the hints of the request. The error is an *Error.
func (r *Request) Hints() (Hints, error) { return parseHints(r.hints, r.separator) }

// setName sets the destination: a name, or an address in its place.
func (r *Request) setName(name string, port uint16) (err error) {
	if r.Host, r.Addr, err = policy.ParseHost(name); err != nil {
		return err
	}
	r.Absolute = policy.IsAbsolute(name)
	return r.setPort(port)
}

func (r *Request) setPort(port uint16) error {
	if port == 0 {
		return errors.New("nobody listens at port 0: the client must name the port")
	}
	r.Port = port
	return nil
}

// Credentials is nil if the user has that password. It may wait. The reading function
// returns its error as it is.
type Credentials func(user, password string) error

// Error is a client that does not say what its protocol demands, or asks for something
// that is not served. Err may be a *MethodError.
type Error struct{ Err error }

// Error says what the client has sent and how to fix it.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

func malformed(format string, args ...any) *Error { return &Error{fmt.Errorf(format, args...)} }

// LoginError is a client that offers no user name and password where they are demanded.
type LoginError struct{ detail string }

// Error says what is missing.
func (e *LoginError) Error() string { return e.detail }

// client is a connection that remembers how it ended, since parsers report that only in
// words.
type client struct {
	net.Conn
	spoke bool  // the client has sent a byte
	err   error // of the connection; nil: it is still there
}

// Read ignores an end that comes with bytes: they may be all that is needed.
func (c *client) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.spoke = true
	} else if err != nil {
		c.err = err
	}
	return n, err
}

func (c *client) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		c.err = err
	}
	return n, err
}

// ended is the end of the connection inside a request of that protocol.
func (c *client) ended(protocol string) error {
	return fmt.Errorf("%s request: %w", protocol, inside(c.err, c.spoke))
}

// inside turns an end inside a message into io.ErrUnexpectedEOF, and another error there
// into an *InsideError.
func inside(err error, begun bool) error {
	switch {
	case !begun || err == nil:
		return err
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return io.ErrUnexpectedEOF
	}
	return &InsideError{err}
}

// InsideError is an error of the connection after the first byte of a message.
type InsideError struct{ Err error }

func (e *InsideError) Error() string { return e.Err.Error() }

// Unwrap returns the error of the connection.
func (e *InsideError) Unwrap() error { return e.Err }
