package l4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/armon/go-socks5"

	"ambassador/l4/relay"
)

// SOCKS5 is RFC 1928, its user names and passwords RFC 1929. The library reads the
// greeting, the user name and the request, and nothing else: it would dial, answer
// and copy in a session that cannot be cancelled, and has no reply for a timeout.

// What is on the wire.
const (
	socksVersion     = 5
	socksNoMethod    = 0xff
	socksUserVersion = 1
	socksUserFailed  = 1
	socksIPv4        = 1
	socksIPv6        = 4
)

// The replies to a request.
const (
	socksSucceeded          = 0
	socksFailed             = 1
	socksNotAllowed         = 2
	socksNetworkUnreachable = 3
	socksHostUnreachable    = 4
	socksRefused            = 5
	socksExpired            = 6
	socksBadCommand         = 7
	socksBadAddress         = 8
)

// socksReader is the library's server, for one client at a time: it does not tell
// whose request it asks about. There are two since it takes the first method it knows
// of those that the client lists, and nobody may choose to show no password.
type socksReader struct {
	open, guarded *socks5.Server
	client        *socksClient
}

// socksReaders are those that have no client.
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
		Logger:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // the session's record has it all
	})
	if err != nil {
		panic("l4: internal error: " + err.Error())
	}
	return server
}

// readSOCKS5 reads a client's request. The caller bounds the connection, which
// stays its own: nothing is closed, no deadline set, and no goroutine is left. A
// client that is refused was told so as far as SOCKS5 has a word for it. With
// contextAllowed what is behind the first "+" of a user name is the request's context.
func readSOCKS5(ctx context.Context, conn net.Conn, auth credentials, contextAllowed bool) (r request, err error) {
	defer func() {
		if v := recover(); v != nil {
			r, err = request{}, requestError(ReasonInternal, &relay.PanicError{Value: v, Stack: debug.Stack()})
		}
	}()
	c := &socksClient{asking: asking{Conn: conn}, ctx: ctx, auth: auth, contextAllowed: contextAllowed}
	reader := socksReaders.Get().(*socksReader)
	reader.client = c
	server := reader.open
	if auth != nil {
		server = reader.guarded
	}
	err = server.ServeConn(c)
	reader.client = nil
	socksReaders.Put(reader)
	if c.wants == nil {
		return request{}, c.failure(err)
	}
	r, err = c.request()
	if err != nil {
		e := requestError(ReasonBadGreeting, fmt.Errorf("SOCKS5 request: %w", err))
		socksAnswer{}.refuse(conn, e)
		return request{}, e
	}
	return r, nil
}

// socksClient is the client's connection as the library sees it: it reads and
// writes, but for the reply, which is ours. Used by one goroutine at a time.
type socksClient struct {
	asking
	ctx            context.Context
	auth           credentials
	contextAllowed bool

	room    [512]byte // what was read
	read    []byte    // of room, what the library has not got yet
	first   [8]byte   // the beginning of what the client has sent
	said    [2]byte   // our last word before the reply
	reply   byte      // of the library; 0: none, or success
	user    string
	context string
	refused *Error           // of auth
	wants   *socks5.AddrSpec // nil: there is no good request
}

// Read gives the library a byte at a time, so that it takes none that is not its own.
func (c *socksClient) Read(b []byte) (int, error) {
	if len(c.read) == 0 {
		begun := c.heard
		n, err := c.asking.Read(c.room[:])
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

// Write keeps the reply to a good request back, which is ours.
func (c *socksClient) Write(b []byte) (int, error) {
	switch {
	case len(b) == len(c.said):
		c.said = [2]byte(b)
	case c.wants != nil:
		return len(b), nil
	default:
		c.reply = b[1]
	}
	return c.asking.Write(b)
}

// Close is the library's, whose the connection is not.
func (c *socksClient) Close() error { return nil }

// RemoteAddr spares the library a copy that nobody looks at.
func (c *socksClient) RemoteAddr() net.Addr { return nil }

// Valid is the library's question for a user's password.
func (c *socksClient) Valid(user, password string) bool {
	if c.contextAllowed {
		user, c.context, _ = strings.Cut(user, "+")
	}
	c.user, c.refused = user, c.auth.check(c.ctx, user, password)
	return c.refused == nil
}

// request is what the client wants.
func (c *socksClient) request() (request, error) {
	to := c.wants
	r := request{user: c.user, context: c.context, early: bytes.Clone(c.read), answer: socksAnswer{}}
	if addr, ok := netip.AddrFromSlice(to.IP); ok {
		r.addr = addr.Unmap()
		return r, r.goToPort(uint16(to.Port))
	}
	return r, r.goTo(to.FQDN, uint16(to.Port))
}

// failure is why there is no good request, where the library has only words for it.
func (c *socksClient) failure(words error) *Error {
	switch {
	case c.refused != nil: // though it may not have stayed to hear that
		return c.refused
	case c.err != nil:
		return c.lost("SOCKS5")
	case c.first[0] != socksVersion:
		return requestError(ReasonBadGreeting, notSOCKS5(c.first[:]))
	case c.said == [2]byte{socksVersion, socksNoMethod} && c.auth != nil:
		return requestError(ReasonAuthFailed, errors.New("the client offers no user name and password, and the listener has users_file"))
	case c.said == [2]byte{socksVersion, socksNoMethod}:
		return requestError(ReasonBadGreeting, errors.New("the client insists on proving who it is, and socks5 of the listener has no users_file"))
	case c.reply == socksBadCommand:
		return requestError(ReasonBadGreeting, errors.New("the client asks for something else than CONNECT: BIND and UDP ASSOCIATE are not served"))
	case c.reply == socksBadAddress:
		return requestError(ReasonBadGreeting, errors.New("the client's address is none of IPv4, IPv6 and a name"))
	}
	e := requestError(ReasonBadGreeting, fmt.Errorf("SOCKS5 request: %w", words))
	if c.said == [2]byte{socksVersion, socks5.UserPassAuth} {
		c.asking.Write([]byte{socksUserVersion, socksUserFailed})
	} else {
		socksAnswer{}.refuse(&c.asking, e)
	}
	return e
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

func (socksPassword) GetCode() uint8 { return socks5.UserPassAuth }

// Authenticate lets the client's own credentials decide.
func (socksPassword) Authenticate(r io.Reader, w io.Writer) (*socks5.AuthContext, error) {
	return socks5.UserPassAuthenticator{Credentials: w.(*socksClient)}.Authenticate(r, w)
}

// Resolve leaves names to the rules.
func (*socksReader) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// Allow takes a good request, and with it leaves the library nothing to do.
func (r *socksReader) Allow(ctx context.Context, req *socks5.Request) (context.Context, bool) {
	if req.Command != socks5.ConnectCommand {
		return ctx, true // it says itself that there is nothing else
	}
	r.client.wants = req.DestAddr
	return ctx, false
}

// socksAnswer is the reply of SOCKS5.
type socksAnswer struct{}

func (socksAnswer) accept(w io.Writer, bound netip.AddrPort) error {
	return writeSOCKSReply(w, socksSucceeded, bound)
}

func (socksAnswer) refuse(w io.Writer, e *Error) error {
	return writeSOCKSReply(w, socksReply(e), netip.AddrPort{})
}

// writeSOCKSReply tells of an address that is not valid as 0.0.0.0:0, as all do.
func writeSOCKSReply(w io.Writer, code byte, bound netip.AddrPort) error {
	text := make([]byte, 0, 22)
	text = append(text, socksVersion, code, 0)
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

// socksReply is the code for a failure. What has none of its own is a general one.
func socksReply(e *Error) byte {
	switch e.Reason {
	case ReasonDenied, ReasonNoRoute, ReasonSpecialAddress, ReasonLoop:
		return socksNotAllowed
	case ReasonUnreachable:
		if errors.Is(e, syscall.ENETUNREACH) {
			return socksNetworkUnreachable
		}
		return socksHostUnreachable
	case ReasonDNS:
		return socksHostUnreachable
	case ReasonRefused, ReasonBreakerOpen, ReasonNoEndpoint:
		return socksRefused
	case ReasonTimeout:
		return socksExpired
	}
	return socksFailed
}
