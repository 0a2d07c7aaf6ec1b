package preface

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"github.com/armon/go-socks5"
)

// SOCKS5 is RFC 1928, its user names and passwords RFC 1929. The library reads the user
// name and the request. The rest of its server is not used: it would dial, answer and
// copy without a way to cancel it, and has no reply for a timeout.

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
	if err := c.choose(); err != nil {
		return Request{}, err
	}
	if auth != nil {
		if err := c.login(); err != nil {
			return Request{}, err
		}
	}
	asked, err := socks5.NewRequest(c)
	if c.err != nil {
		return Request{}, c.ended("SOCKS5")
	}
	refuse := func(reply SOCKSReply, err error) (Request, error) {
		reply.Write(conn, netip.AddrPort{})
		return Request{}, err
	}
	switch {
	case err == errAddressKind:
		return refuse(socksBadAddress, malformed("the client's address is none of IPv4, IPv6 and a name"))
	case err != nil:
		return refuse(SOCKSFailed, malformed("SOCKS5 request: %w", err))
	case asked.Command != socks5.ConnectCommand:
		return refuse(socksBadCommand, malformed("the client asks for something else than CONNECT: BIND and UDP ASSOCIATE are not served"))
	}
	r, err := c.request(asked.DestAddr)
	if err != nil {
		return refuse(SOCKSFailed, malformed("SOCKS5 request: %w", err))
	}
	return r, nil
}

// errAddressKind is the library's error for an address of an unknown kind, which has no
// name outside of it.
var errAddressKind = func() error {
	_, err := socks5.NewRequest(strings.NewReader("\x05\x01\x00\x00"))
	return err
}()

// socksClient is the client's connection as the library reads it. Used by one goroutine
// at a time.
type socksClient struct {
	client
	auth         Credentials
	hintsAllowed bool

	room    [512]byte // what was read
	read    []byte    // of room, what nothing has used yet
	one     [1]byte   // storage of next
	user    string
	hints   string
	refused error // by auth
}

func (c *socksClient) Read(b []byte) (int, error) {
	if len(c.read) == 0 {
		n, err := c.client.Read(c.room[:])
		if n == 0 {
			return 0, err
		}
		c.read = c.room[:n]
	}
	n := copy(b, c.read)
	c.read = c.read[n:]
	return n, nil
}

// next reads a byte.
func (c *socksClient) next() (byte, error) {
	if _, err := io.ReadFull(c, c.one[:]); err != nil {
		return 0, c.ended("SOCKS5")
	}
	return c.one[0], nil
}

// choose reads the methods that the client offers, and takes the one that the listener
// demands: a client must not be able to choose the one without a password.
func (c *socksClient) choose() error {
	version, err := c.next()
	if err != nil {
		return err
	}
	if version != socksVersion {
		return &Error{notSOCKS5(append([]byte{version}, c.read[:min(7, len(c.read))]...))}
	}
	count, err := c.next()
	if err != nil {
		return err
	}
	demanded, answer, offered := socks5.NoAuth, byte(socksNoMethod), byte(0)
	if c.auth != nil {
		demanded = socks5.UserPassAuth
	}
	for range count {
		if offered, err = c.next(); err != nil {
			return err
		}
		if offered == demanded {
			answer = demanded
		}
	}
	if answer == socks5.UserPassAuth {
		return nil // the library answers it
	}
	if c.Write([]byte{socksVersion, answer}); c.err != nil {
		return c.ended("SOCKS5")
	}
	switch {
	case answer == socks5.NoAuth:
		return nil
	case c.auth != nil:
		return &LoginError{"the client offers no user name and password, and the listener has users_file"}
	}
	return malformed("the client insists on proving who it is, and socks5 of the listener has no users_file")
}

// login lets the library read the user name and the password, and answer them.
func (c *socksClient) login() error {
	_, err := socks5.UserPassAuthenticator{Credentials: c}.Authenticate(c, c)
	switch {
	case err == nil:
		return nil
	case c.refused != nil: // even if the client has left without waiting for the answer
		return c.refused
	case c.err != nil:
		return c.ended("SOCKS5")
	}
	c.Write([]byte{socksUserVersion, socksUserFailed})
	return malformed("SOCKS5 request: %w", err)
}

// Valid checks a user's password for the library.
func (c *socksClient) Valid(user, password string) bool {
	if c.hintsAllowed {
		user, c.hints, _ = strings.Cut(user, "+")
	}
	c.user, c.refused = user, c.auth(user, password)
	return c.refused == nil
}

// request is the good request.
func (c *socksClient) request(to *socks5.AddrSpec) (Request, error) {
	r := Request{User: c.user, hints: c.hints, separator: '+', Early: bytes.Clone(c.read)}
	if addr, ok := netip.AddrFromSlice(to.IP); ok {
		r.Addr = addr.Unmap()
		return r, r.setPort(uint16(to.Port))
	}
	return r, r.setName(to.FQDN, uint16(to.Port))
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
