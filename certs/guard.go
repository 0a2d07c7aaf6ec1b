package certs

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// PanicError is a panic that was recovered. It ended one attempt of a part of the
// process.
type PanicError struct {
	Value any // of the panic
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("internal error: panic: %v", e.Value) }

// The parts of an identity's source that continue after a panic. Source.OnPanic
// gets their names.
const (
	PartSource = "source" // watches the identity's expiry
	PartIssuer = "issuer" // gets certificates
	PartRoots  = "roots"  // follows the CA's roots
	PartFiles  = "files"  // reads and watches files
)

// Parts lists all parts.
func Parts() []string { return []string{PartSource, PartIssuer, PartRoots, PartFiles} }

// Guard calls try. It turns a panic into a *PanicError and calls OnPanic with
// part, which is one of a few names because it becomes the label of a metric.
// Every goroutine of a Source that reads foreign input works within Guard, so
// that a bug in a library does not end the process. Guard cannot reach goroutines
// that libraries start.
func (s *Source) Guard(part string, try func() error) (err error) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		err = &PanicError{v, debug.Stack()}
		if s.OnPanic != nil {
			s.OnPanic(part)
		}
	}()
	return try()
}

// Cause returns the log attributes of a failure: the text and, for a panic, the
// stack.
func Cause(err error) []any {
	args := []any{"cause", err.Error()}
	var p *PanicError
	if errors.As(err, &p) {
		args = append(args, "stack", string(p.Stack))
	}
	return args
}
