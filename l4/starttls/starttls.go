package starttls

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Protocol is one STARTTLS protocol. It has no state: one Protocol serves any
// number of connections at once. The state of one connection is in the Dialogue
// that Upgrade returns.
type Protocol struct {
	// Name is the value of the configuration key starttls.
	Name string

	// NeedsClient says that TLS cannot begin before the client's first message.
	// Upgrade then stops before it, and Dialogue.Begin begins TLS. The client may
	// have received the server's greeting by then, so the connection cannot serve
	// another client, and no other address can replace it.
	NeedsClient bool

	// CountsProbes says that the server counts a connection that ends between its
	// greeting and a login as a failed client, and locks a host out after too many of
	// them in a row.
	CountsProbes bool

	// ResetsAtEnd says that servers answer a client's close with a reset: they have
	// closed by then, at the client's message that ends the session. Nothing is lost,
	// because a client of the protocol that has closed waits for nothing.
	ResetsAtEnd bool

	// LogsIn says that a probe can log in: see Dialogue.LogIn.
	LogsIn bool

	// Upgrade asks the server to begin TLS. It runs on a fresh connection, before
	// TLS, without a byte of a client. After nil, unless NeedsClient, the next
	// byte either way belongs to TLS. Errors: *RefusedError, *SideError of
	// Upstream.
	Upgrade func(upstream io.ReadWriter) (*Dialogue, error)

	// Accept is the server's counterpart of Upgrade: it answers a client that
	// asks for TLS, up to where TLS begins. After nil without Accepted.Cancel the
	// next byte belongs to TLS; the client's first bytes of it may be in
	// Accepted.Hello. A client that continues without TLS is told why it gets no
	// session. Errors: *GreetingError, *SideError of Downstream. Nil: not
	// implemented for this protocol.
	Accept func(downstream io.ReadWriter) (Accepted, error)

	// Refuse tells a client that has received nothing yet why it gets no
	// connection. If the client speaks first in the protocol, it waits for that.
	// A RefusedError.Reply in why is passed on as it is. Errors: *GreetingError,
	// *SideError of Downstream, and ErrNoAnswer if the client expects no answer.
	Refuse func(downstream io.ReadWriter, why error) error

	// Quit is what an idle client sends under TLS before it closes, so that the
	// server logs no error; empty if a close suffices. The server's answer need
	// not be read.
	Quit string

	// IfNoTLS is the hint for a server that does not answer a TLS handshake that begins
	// without a word of the protocol (Options.Direct); empty if there is no such handshake.
	IfNoTLS string

	// with returns the protocol with the options that it has. Nil: it has none.
	with func(Options) (Protocol, error)
}

// Options change how a protocol speaks to its server. The zero value is the default.
type Options struct {
	// EHLOName is the name of this host in the EHLO or LHLO before TLS: a domain, or an
	// address literal in brackets. If empty, [127.0.0.1].
	EHLOName string

	// Direct begins TLS at once, as the protocol allows it with some servers; the rest of
	// the dialogue remains.
	Direct bool
}

// ErrNoAnswer is returned for a client whose message has no answer in its
// protocol. Nothing is sent to it.
var ErrNoAnswer = errors.New("the client waits for no answer")

// Dialogue is the rest of the dialogue on one connection after Upgrade. Its parts
// run in their order, each at most once.
type Dialogue struct {
	// Begin is the part before TLS that needs the client: nil unless
	// Protocol.NeedsClient. After nil the next byte of upstream either way belongs to
	// TLS.
	Begin Part

	// BeginProbe is Begin for a health check, which has no client; serverName is the
	// name of the server. Nil if Begin is. Errors: those of Upgrade.
	BeginProbe func(upstream io.ReadWriter, serverName string) error

	// LogIn logs a health check in under TLS, after BeginProbe, and quits, so that
	// the server does not count it as a failed client. Nil if Protocol.LogsIn is
	// false. Errors: *RefusedError for the server's verdict, and *SideError.
	LogIn func(upstream io.ReadWriter, user, password string) error

	// Encrypted is set by the caller before Finish: whether the client's own
	// connection has TLS, too. A PostgreSQL client then binds its login to that TLS,
	// unless it is configured otherwise.
	Encrypted bool

	// Confidential is set by the caller before Finish: whether clients consider their
	// own connection secure, as they do a unix socket. A MySQL client then sends the
	// password itself if the server asks for it.
	Confidential bool

	// Finish is the part after upstream's TLS has begun; nil if there is none. After
	// nil without Result.Cancel both sides are ready for the relay.
	Finish Part

	// NotTLS explains plaintext that the server sends instead of its TLS handshake; first
	// is the beginning of it, at least 5 bytes. It returns a *RefusedError, or nil if it
	// does not know it. Nil: the protocol has nothing to say there.
	NotTLS func(first []byte) error

	// Refuse returns the bytes that tell the client, at its current point of the
	// protocol, why it gets no session; nil if nothing can be sent there. Send them
	// after an error of Begin or Finish, or of TLS between them, unless the client
	// itself has closed.
	Refuse func(why error) []byte
}

// Accepted is how a client began.
type Accepted struct {
	// Hello has the bytes read from a client that began TLS without asking.
	Hello []byte

	// Cancel is the complete CancelRequest of a client that sends it without TLS, as
	// PostgreSQL's clients before 17 do. Nil otherwise.
	Cancel []byte
}

// Part is one part of a dialogue between a client and its server. The Result's
// counts are valid even with an error. Errors: *RefusedError, *GreetingError,
// *SideError.
type Part func(downstream, upstream io.ReadWriter) (Result, error)

// Result is the result of a part of a dialogue.
type Result struct {
	// Cancel is the complete CancelRequest that the client sent instead of a startup
	// message; the upstream received nothing of it. Nil otherwise.
	Cancel []byte

	// Answered says that the server has sent a byte under TLS: it accepts our
	// certificate.
	Answered bool

	// Up and Down are the bytes of one side passed on to the other. The dialogue's
	// own bytes (PostgreSQL's N) are not counted.
	Up, Down int64
}

// protocols returns the implemented protocols, in the order of Names.
func protocols() []Protocol {
	return []Protocol{postgres(), mysql(), ldap(), smtp(), lmtp(), imap(), pop3(), sieve(), nntp(), nats(), xmpp()}
}

// Lookup finds an implemented protocol by its name.
func Lookup(name string) (*Protocol, bool) {
	for _, p := range protocols() {
		if p.Name == name {
			return &p, true
		}
	}
	return nil, false
}

// New returns an implemented protocol with options. Errors: the name is not known, or the
// protocol has no such option.
func New(name string, o Options) (*Protocol, error) {
	p, ok := Lookup(name)
	switch {
	case !ok:
		return nil, fmt.Errorf("starttls %s: unknown; this version has %v", name, Names())
	case o == Options{}:
		return p, nil
	case p.with == nil:
		return nil, fmt.Errorf("starttls %s has no options", name)
	}
	changed, err := p.with(o)
	if err != nil {
		return nil, fmt.Errorf("starttls %s: %w", name, err)
	}
	return &changed, nil
}

// The errors of New about one option.
var (
	errNotDirect  = errors.New("TLS cannot begin at once with this protocol; remove direct, or remove starttls if the server speaks TLS at once")
	errNoEHLOName = errors.New("it sends no EHLO; remove ehlo_name")
)

// AcceptNames lists the protocols that have Accept.
func AcceptNames() []string {
	var names []string
	for _, p := range protocols() {
		if p.Accept != nil {
			names = append(names, p.Name)
		}
	}
	return names
}

// Names lists the implemented protocols.
func Names() []string {
	var names []string
	for _, p := range protocols() {
		names = append(names, p.Name)
	}
	return names
}

// reason is the text that tells a client why it gets no session: one line without
// control characters, of at most limit bytes.
func reason(why error, limit int) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8("ambassador: "+why.Error(), ""))
	return strings.ToValidUTF8(text[:min(len(text), limit)], "")
}
