package program

import (
	"fmt"
	"io"
)

// World is what every command is given from outside: its streams and its environment.
type World struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Env            func(string) (string, bool)
	Version        string // of the program
	Alone          bool   // the process is ours alone, and may be changed for good
}

// ExitError is an error that decides the exit code: 2 for usage and
// configuration, that of COMMAND for `run -- COMMAND`. Others are 1. Err may be
// nil: there is nothing to say.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }
