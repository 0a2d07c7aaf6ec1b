package relay

import "fmt"

// PanicError is a panic that ended one session. The process continues.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine, as debug.Stack has it
}

// Error leaves the stack out: it is part of a session's record.
func (e *PanicError) Error() string {
	return fmt.Sprintf("panic: %v; this is a bug: please report it with the stack in the log", e.Value)
}
