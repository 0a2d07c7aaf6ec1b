package starttls

import "fmt"

// RefusedError says that a server declined TLS, or sent an answer that is not one
// of the protocol. Another address of the upstream may work.
type RefusedError struct {
	Protocol string
	Got      []byte // the first bytes of the answer, at most 16
	What     string // what happened: "the server answered ..."
	Advice   string // how to fix it; empty if not known
	Reply    []byte // the server's own refusal, complete and suitable for a client; usually nil
	Busy     bool   // the server is healthy, and reports that its limit is reached
}

// Error says what happened and how to fix it.
func (e *RefusedError) Error() string {
	what := e.What
	if what == "" {
		what = fmt.Sprintf("the server answered %q", e.Got)
	}
	return withAdvice(e.Protocol+": "+what, e.Advice)
}

// Fix returns Advice.
func (e *RefusedError) Fix() string { return e.Advice }

// gotMax bounds RefusedError.Got: enough to recognize a protocol, too little to
// put a secret into a log.
const gotMax = 16

func got(b []byte) []byte {
	return append([]byte(nil), b[:min(len(b), gotMax)]...)
}

// GreetingError says that a client sent something that is not the protocol's
// greeting.
type GreetingError struct {
	Protocol string
	Detail   string // describes what it sent, and how to fix it if that is known
}

// Error says what the client sent.
func (e *GreetingError) Error() string {
	return e.Protocol + ": the client sent " + e.Detail
}

// Side is one of the two connections of a dialogue.
type Side int

// The sides.
const (
	Downstream Side = iota + 1 // the application
	Upstream                   // the remote service
)

// String is the side's name in errors.
func (s Side) String() string {
	switch s {
	case Downstream:
		return "downstream"
	case Upstream:
		return "upstream"
	}
	return fmt.Sprintf("side %d", int(s))
}

// SideError is an I/O error of one side. If Err is io.EOF, the side closed
// between two messages; if it is io.ErrUnexpectedEOF, within one.
type SideError struct {
	Side  Side
	Op    string // "read" or "write"
	Err   error
	Clean bool   // the side had not sent a byte in this part of the dialogue
	Hint  string // what a close at this point usually means, and how to fix it; often empty
}

// Error has the operation, the side, the cause and the hint.
func (e *SideError) Error() string {
	return withAdvice(fmt.Sprintf("%s %s: %v", e.Op, e.Side, e.Err), e.Hint)
}

// Unwrap returns Err.
func (e *SideError) Unwrap() error { return e.Err }

// Fix returns Hint.
func (e *SideError) Fix() string { return e.Hint }

func withAdvice(s, advice string) string {
	if advice == "" {
		return s
	}
	return s + "; " + advice
}
