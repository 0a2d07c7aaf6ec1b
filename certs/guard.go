package certs

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// PanicError is a panic that has ended one try of a part of the process, and not the
// process.
type PanicError struct {
	Value any // of the panic
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("internal error: panic: %v", e.Value) }

// The parts of an identity's source that go on after a panic in them, as
// Source.OnPanic names them.
const (
	PartSource = "source" // what keeps the identity current
	PartIssuer = "issuer" // what gets a certificate
	PartRoots  = "roots"  // what follows the CA's roots
	PartFiles  = "files"  // what reads and watches files
)

// Parts lists them all.
func Parts() []string { return []string{PartSource, PartIssuer, PartRoots, PartFiles} }

// Guard calls try, and turns a panic in it into a *PanicError, which OnPanic is told.
// Part is one of a few names: it becomes the label of a metric. Everything that runs
// for a Source in a goroutine of its own, and reads what others have sent or written,
// does so within Guard: what a library makes of that must not end the process. Guard
// cannot reach goroutines that libraries start.
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

// Cause are the attributes of a log line that say why something failed: the text,
// and where it was if it is a panic.
func Cause(err error) []any {
	args := []any{"cause", err.Error()}
	var p *PanicError
	if errors.As(err, &p) {
		args = append(args, "stack", string(p.Stack))
	}
	return args
}
