package starttls

import (
	"errors"
	"io"
	"strings"
)

// Protocol is one STARTTLS protocol. It has no state: one Protocol serves any
// number of connections at once; what belongs to one connection is in the
// Dialogue that its Upgrade returns.
type Protocol struct {
	// Name is the value of the configuration key starttls.
	Name string

	// NeedsClient says that TLS cannot begin before the client's first message.
	// Upgrade then says only what comes before it, and Dialogue.Begin begins TLS.
	// The client may have the server's greeting by then, so such a connection is
	// not for another client, and no other address can take its place.
	NeedsClient bool

	// CountsProbes says that to the server a connection that ends after its
	// greeting and before a login is a failed client, and that it locks a host out
	// for too many of them in a row.
	CountsProbes bool

	// LogsIn says that a trial can log in: see Dialogue.LogIn.
	LogsIn bool

	// Upgrade asks the server to begin TLS. It runs on a fresh connection, before
	// TLS, without a client byte. After nil, unless NeedsClient, the next byte
	// either way is TLS's. Errors: *RefusedError, *SideError of Upstream.
	Upgrade func(upstream io.ReadWriter) (*Dialogue, error)

	// Accept is the other side of Upgrade: it answers a client that asks a server
	// for TLS, up to where TLS begins. After nil without Accepted.Cancel the next
	// byte is TLS's, or, of the client, the first of Accepted.Hello. A client that
	// does without TLS is told why it gets no session. Errors: *GreetingError,
	// *SideError of Downstream. Nil: this package does not know that side of the
	// protocol.
	Accept func(downstream io.ReadWriter) (Accepted, error)

	// Refuse tells a client that has been told nothing yet why it gets no
	// connection. Where the client speaks first it waits for that. A
	// RefusedError.Reply in why is passed on as it is. Errors: *GreetingError,
	// *SideError of Downstream, and ErrNoAnswer where the client waits for none.
	Refuse func(downstream io.ReadWriter, why error) error

	// Quit is what a client that has begun nothing says under TLS before it
	// closes, so that the server has nothing to complain of; empty if a close says
	// it as well. The server's answer need not be read.
	Quit string
}

// ErrNoAnswer is a client whose message has no answer in its protocol. It is not
// told anything.
var ErrNoAnswer = errors.New("the client waits for no answer")

// Dialogue is what remains to be said on one connection after Upgrade. Its parts
// run in their order, each at most once.
type Dialogue struct {
	// Begin is the part before TLS that needs the client: nil unless
	// Protocol.NeedsClient. After nil the next byte of upstream either way is
	// TLS's.
	Begin Part

	// BeginProbe is Begin for a trial, which has no client: serverName is whom the
	// trial wants. Nil if Begin is. Errors: those of Upgrade.
	BeginProbe func(upstream io.ReadWriter, serverName string) error

	// LogIn logs a trial in under TLS, after BeginProbe, and takes leave, so that the
	// server has seen a good client. Nil where Protocol.LogsIn is false. Errors:
	// *RefusedError, whose server has given its verdict, and *SideError.
	LogIn func(upstream io.ReadWriter, user, password string) error

	// Encrypted is for the caller to set before Finish: whether the client's own leg
	// has TLS, too. PostgreSQL's then bind their login to it, unless told not to.
	Encrypted bool

	// Confidential is for the caller to set before Finish: whether clients take
	// their own leg for safe, as they do a unix socket. MySQL's then send the
	// password itself where the server wants it.
	Confidential bool

	// Finish is the part once upstream is protected; nil if there is none. After
	// nil without Outcome.Cancel both sides are ready for the relay.
	Finish Part

	// Refuse gives the bytes that tell the client, where it is now in its
	// protocol, why it gets no session; nil if nothing can be said there. To be
	// sent after an error of Begin or Finish, or of TLS between them, that is not
	// the client's own closing.
	Refuse func(why error) []byte
}

// Accepted is how a client has begun.
type Accepted struct {
	// Hello is what was read of a client that has begun TLS without asking.
	Hello []byte

	// Cancel is the whole CancelRequest of a client that wants no TLS for that, as
	// PostgreSQL's before 17 do not. Nil otherwise.
	Cancel []byte
}

// Part is one part of a dialogue between a client and its server. The Outcome's
// counts are right beside an error too. Errors: *RefusedError, *GreetingError,
// *SideError.
type Part func(downstream, upstream io.ReadWriter) (Outcome, error)

// Outcome is what a part of a dialogue did.
type Outcome struct {
	// Cancel is the whole CancelRequest that the client sent instead of beginning
	// a session; the upstream got nothing of it. Nil otherwise.
	Cancel []byte

	// Answered says that the server has sent a byte under TLS: it accepts our
	// certificate.
	Answered bool

	// Up and Down are the bytes of one side passed on to the other. What the
	// dialogue says by itself (PostgreSQL's N) is not among them.
	Up, Down int64
}

// protocols are the implemented ones, in the order of Names.
func protocols() []Protocol {
	return []Protocol{postgres(), mysql(), ldap(), smtp(), imap(), pop3(), xmpp()}
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

// reason is the text for a client of why it gets no session: one line without
// control characters, at most limit bytes.
func reason(why error, limit int) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8("ambassador: "+why.Error(), ""))
	return strings.ToValidUTF8(text[:min(len(text), limit)], "")
}
