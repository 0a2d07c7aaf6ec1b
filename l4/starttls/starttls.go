package starttls

import "io"

// Protocol is one STARTTLS dialogue, in two parts. It has no state: one Protocol
// serves any number of connections at once.
type Protocol struct {
	// Name is the value of the configuration key starttls.
	Name string

	// Upgrade asks the server to begin TLS. It runs on a fresh connection, before
	// TLS, without a client byte. After nil the next byte either way is TLS's.
	// Errors: *RefusedError, *SideError of Upstream.
	Upgrade func(upstream io.ReadWriter) error

	// Dialogue is the client's part, run once the upstream leg is protected; nil
	// if the protocol has none. After nil without Outcome.Cancel both sides are
	// ready for the relay. The Outcome's counts are right beside an error too.
	// Errors: *RefusedError, *GreetingError, *SideError.
	Dialogue func(downstream, upstream io.ReadWriter) (Outcome, error)

	// Refuse gives the bytes that tell a client, in its protocol, why it gets no
	// connection; to be sent after an error of Dialogue that is not its own
	// closing. Nil if the protocol has no such message.
	Refuse func(reason string) []byte
}

// Outcome is what a Dialogue did.
type Outcome struct {
	// Cancel is the whole CancelRequest that the client sent instead of beginning
	// a session; the upstream got nothing of it. Nil otherwise.
	Cancel []byte

	// Up and Down are the bytes forwarded to each side. The dialogue's own answers
	// (PostgreSQL's N) are not among them.
	Up, Down int64
}

// protocols are the implemented ones, in the order of Names.
func protocols() []Protocol {
	return []Protocol{postgres()}
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

// Names lists the implemented protocols.
func Names() []string {
	var names []string
	for _, p := range protocols() {
		names = append(names, p.Name)
	}
	return names
}
