package preface

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/armon/go-socks5"
)

// SOCKS5 is RFC 1928, its user names and passwords RFC 1929. The library reads the
// greeting, the user name and the request, and nothing else: it would dial, answer
// and copy without a way to cancel it, and has no reply for a timeout.

const (
	socksVersion     = 5
	socksNoMethod    = 0xff
	socksUserVersion = 1
	socksUserFailed  = 1
	socksIPv4        = 1
	socksIPv6        = 4
)

// SOCKSReply is the answer to a SOCKS5 request.
type SOCKSReply byte

// The replies of RFC 1928, section 6.
const (
	SOCKSSucceeded          SOCKSReply = 0
	SOCKSFailed             SOCKSReply = 1
	SOCKSNotAllowed         SOCKSReply = 2
	SOCKSNetworkUnreachable SOCKSReply = 3
	SOCKSHostUnreachable    SOCKSReply = 4
	SOCKSRefused            SOCKSReply = 5
	SOCKSExpired            SOCKSReply = 6
	socksBadCommand         SOCKSReply = 7
	socksBadAddress         SOCKSReply = 8
)

// Write sends the reply. Bound is our end of the connection to the upstream; one that is
// not valid is sent as 0.0.0.0:0, as other servers do.
func (r SOCKSReply) Write(w io.Writer, bound netip.AddrPort) error {
	text := make([]byte, 0, 22)
	text = append(text, socksVersion, byte(r), 0)
	switch addr := bound.Addr().Unmap(); {
	case addr.Is6():
		ip := addr.As16()
		text = append(append(text, socksIPv6), ip[:]...)
	case addr.Is4():
		ip := addr.As4()
		text = append(append(text, socksIPv4), ip[:]...)
	default:
		text = append(text, socksIPv4, 0, 0, 0, 0)
	}
	_, err := w.Write(append(text, byte(bound.Port()>>8), byte(bound.Port())))
	return err
}

// ReadSOCKS5 reads a request. Auth checks the user name and the password; nil: none is
// demanded. With hints, what is behind the first "+" of a user name are the hints of the
// request.
//
// A client that is refused has already got its reply, where SOCKS5 has one. A panic of
// auth or of the library passes through.
func ReadSOCKS5(conn net.Conn, auth Credentials, hints bool) (Request, error) {
	c := &socksClient{client: client{Conn: conn}, auth: auth, hintsAllowed: hints}
	reader := socksReaders.Get().(*socksReader)
	reader.client = c
	server := reader.open
	if auth != nil {
		server = reader.guarded
	}
	err := server.ServeConn(c)
	reader.client = nil
	socksReaders.Put(reader)
	if c.wants == nil {
		return Request{}, c.failure(err)
	}
	r, err := c.request()
	if err != nil {
		SOCKSFailed.Write(conn, netip.AddrPort{})
		return Request{}, malformed("SOCKS5 request: %w", err)
	}
	return r, nil
}

// socksReader is the library's server, for one client at a time: its callbacks do not
// say whose request they are about. There are two servers because the library takes the
// first method it knows of those that the client lists, and a client must not be able to
// choose the one without a password.
type socksReader struct {
	open, guarded *socks5.Server
	client        *socksClient
}

// socksReaders are those without a client.
var socksReaders = sync.Pool{New: func() any {
	r := &socksReader{}
	r.open, r.guarded = newSOCKSServer(r, socks5.NoAuthAuthenticator{}), newSOCKSServer(r, socksPassword{})
	return r
}}

func newSOCKSServer(r *socksReader, method socks5.Authenticator) *socks5.Server {
	server, err := socks5.New(&socks5.Config{
		AuthMethods: []socks5.Authenticator{method},
		Resolver:    r,
		Rules:       r,
		Logger:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // the caller has the error
	})
	if err != nil {
		panic("preface: internal error: " + err.Error())
	}
	return server
}

// socksClient is the client's connection as the library sees it: the library reads and
// writes all but the reply, which is ours. Used by one goroutine at a time.
type socksClient struct {
	client
	auth         Credentials
	hintsAllowed bool

	room    [512]byte // what was read
	read    []byte    // of room, what the library has not read yet
	first   [8]byte   // the first bytes of the client
	said    [2]byte   // the last message before the reply
	reply   SOCKSReply
	user    string
	hints   string
	refused error            // by auth
	wants   *socks5.AddrSpec // nil: there is no good request
}

// Read gives the library a byte at a time, so that it reads nothing behind its messages.
func (c *socksClient) Read(b []byte) (int, error) {
	if len(c.read) == 0 {
		begun := c.spoke
		n, err := c.client.Read(c.room[:])
		if n == 0 {
			return 0, err
		}
		if c.read = c.room[:n]; !begun {
			copy(c.first[:], c.read)
		}
	}
	n := copy(b[:1], c.read)
	c.read = c.read[n:]
	return n, nil
}

// Write drops the library's reply to a good request, and notes what else it writes.
func (c *socksClient) Write(b []byte) (int, error) {
	switch {
	case len(b) == len(c.said):
		c.said = [2]byte(b)
	case c.wants != nil:
		return len(b), nil
	default:
		c.reply = SOCKSReply(b[1])
	}
	return c.client.Write(b)
}

// Close does nothing: the library does not own the connection.
func (c *socksClient) Close() error { return nil }

// RemoteAddr is nil, which saves a copy: nothing reads the one in the library's request.
func (c *socksClient) RemoteAddr() net.Addr { return nil }

// Valid checks a user's password for the library.
func (c *socksClient) Valid(user, password string) bool {
	if c.hintsAllowed {
		user, c.hints, _ = strings.Cut(user, "+")
	}
	c.user, c.refused = user, c.auth(user, password)
	return c.refused == nil
}

// request is the good request.
func (c *socksClient) request() (Request, error) {
	to := c.wants
	r := Request{User: c.user, hints: c.hints, separator: '+', Early: bytes.Clone(c.read)}
	if addr, ok := netip.AddrFromSlice(to.IP); ok {
		r.Addr = addr.Unmap()
		return r, r.setPort(uint16(to.Port))
	}
	return r, r.setName(to.FQDN, uint16(to.Port))
}

// failure is why there is no good request. The library's own error has only words for
// it.
func (c *socksClient) failure(words error) error {
	switch {
	case c.refused != nil: // even if the client has left without waiting for the answer
		return c.refused
	case c.err != nil:
		return c.ended("SOCKS5")
	case c.first[0] != socksVersion:
		return &Error{notSOCKS5(c.first[:])}
	case c.said == [2]byte{socksVersion, socksNoMethod} && c.auth != nil:
		return &LoginError{"the client offers no user name and password, and the listener has users_file"}
	case c.said == [2]byte{socksVersion, socksNoMethod}:
		return malformed("the client insists on proving who it is, and socks5 of the listener has no users_file")
	case c.reply == socksBadCommand:
		return malformed("the client asks for something else than CONNECT: BIND and UDP ASSOCIATE are not served")
	case c.reply == socksBadAddress:
		return malformed("the client's address is none of IPv4, IPv6 and a name")
	}
	if c.said == [2]byte{socksVersion, socks5.UserPassAuth} {
		c.client.Write([]byte{socksUserVersion, socksUserFailed})
	} else {
		SOCKSFailed.Write(&c.client, netip.AddrPort{})
	}
	return malformed("SOCKS5 request: %w", words)
}

// notSOCKS5 says what the client speaks instead.
func notSOCKS5(first []byte) error {
	switch b := first[0]; {
	case b == 4:
		return errors.New("the client speaks SOCKS4, which has no passwords and no IPv6, and leaves names to the client: let it speak SOCKS5 (socks5h://, socks5://, nc -X 5)")
	case b == 0x16:
		return errors.New("the client begins with TLS, and the listener speaks SOCKS5 without: let the client do so too, or give the listener tls")
	case 'A' <= b && b <= 'Z':
		return fmt.Errorf("the client sends an HTTP request (%q), and the listener speaks SOCKS5: let the client do so too (curl -x socks5h://…), or give the listener http_connect instead (curl -x http://…)", first)
	}
	return fmt.Errorf("the client begins with %q, and not with SOCKS5, as the listener does", first)
}

// socksPassword is the method with a user name and a password.
type socksPassword struct{}

// GetCode is the number of the method.
func (socksPassword) GetCode() uint8 { return socks5.UserPassAuth }

// Authenticate lets the client's own Credentials decide.
func (socksPassword) Authenticate(r io.Reader, w io.Writer) (*socks5.AuthContext, error) {
	return socks5.UserPassAuthenticator{Credentials: w.(*socksClient)}.Authenticate(r, w)
}

// Resolve resolves nothing: names are for the rules.
func (*socksReader) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// Allow keeps a good request and refuses it, so that the library does nothing more.
func (r *socksReader) Allow(ctx context.Context, req *socks5.Request) (context.Context, bool) {
	if req.Command != socks5.ConnectCommand {
		return ctx, true // the library refuses it itself
	}
	r.client.wants = req.DestAddr
	return ctx, false
}
