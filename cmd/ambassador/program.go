package main

import (
	"fmt"
	"io"
)

// world is what every command is given of the world.
type world struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	version        string // of the program
	alone          bool   // the process is ours, and what is done to it for good harms nobody
}

// exitError is an error that decides the exit code: 2 for usage and
// configuration, that of COMMAND for `run -- COMMAND`. Others are 1. Err may be
// nil: there is nothing to say.
type exitError struct {
	Code int
	Err  error
}

func (e *exitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *exitError) Unwrap() error { return e.Err }
