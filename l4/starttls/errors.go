package starttls

import "fmt"

// RefusedError is a server that declined TLS, or answered something that the
// protocol does not have there. Another address of the upstream may do better.
type RefusedError struct {
	Protocol string
	Got      []byte // the first bytes of the answer, at most 16
	What     string // what happened, in words: "the server answered ..."
	Advice   string // the mend; empty if there is none to name
	Reply    []byte // the server's own refusal, whole and fit for a client; mostly nil
	Busy     bool   // the server is at its limit and says so: it is well
}

// Error is what happened and its mend.
func (e *RefusedError) Error() string {
	what := e.What
	if what == "" {
		what = fmt.Sprintf("the server answered %q", e.Got)
	}
	return withAdvice(e.Protocol+": "+what, e.Advice)
}

// gotMax bounds RefusedError.Got: enough to know a protocol by, too little to
// carry a secret into a log.
const gotMax = 16

func got(b []byte) []byte {
	return append([]byte(nil), b[:min(len(b), gotMax)]...)
}

// GreetingError is a client that sent what is no greeting of the protocol.
type GreetingError struct {
	Protocol string
	Detail   string // what it sent, in words, and the mend if there is one
}

// Error is what the client sent.
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

// SideError is an I/O error with the side it came from. io.EOF in Err is a side
// that closed between two messages, io.ErrUnexpectedEOF one that closed within.
type SideError struct {
	Side  Side
	Op    string // "read" or "write"
	Err   error
	Clean bool   // the side had not sent a byte in this part of the dialogue
	Hint  string // what a close at this point usually means, with the mend; often empty
}

// Error is the operation, the side, the cause and the hint.
func (e *SideError) Error() string {
	return withAdvice(fmt.Sprintf("%s %s: %v", e.Op, e.Side, e.Err), e.Hint)
}

// Unwrap gives Err.
func (e *SideError) Unwrap() error { return e.Err }

func withAdvice(s, advice string) string {
	if advice == "" {
		return s
	}
	return s + "; " + advice
}
