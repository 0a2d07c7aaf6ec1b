package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// child is the COMMAND of `run -- COMMAND`.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and err is set
	err  error         // an *exitError with its code; nil for 0
}

// findCommand fails where COMMAND could not be started later.
func findCommand(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return fmt.Errorf("COMMAND %s: %w", args[0], errors.Unwrap(err))
	}
	return nil
}

// startChild starts COMMAND with our standard input, output and error.
func (a *app) startChild(args []string) (*child, error) {
	c := &child{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = a.stdin, a.stdout, a.stderr
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("COMMAND %s: %w", args[0], err)
	}
	go c.wait() // ends with the command
	return c, nil
}

func (c *child) wait() {
	defer close(c.done)
	c.err = exitOf(c.cmd.Wait())
}

// exitOf is the exit code of a command as ours: 128+N where signal N ended it.
func exitOf(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return err
	}
	if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return &exitError{Code: 128 + int(w.Signal())}
	}
	return &exitError{Code: exit.ExitCode()}
}

// signal passes a signal on. A terminal sends ^C to the command as well as to
// us, so that one is left to it.
func (a *app) signalChild(c *child, s os.Signal) {
	if f, ok := a.stdin.(*os.File); ok && s == os.Interrupt && isTerminal(f) {
		return
	}
	c.cmd.Process.Signal(s) // it may have ended: then its wait tells
}
