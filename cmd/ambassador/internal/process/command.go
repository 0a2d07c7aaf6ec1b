package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/program"
)

// child is the COMMAND of `run -- COMMAND`. A nil child has not been started.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // an *program.ExitError with its code, nil for 0; readable once done is closed
}

// Exit codes of a COMMAND that was never started, as shells have them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

// notStarted is the error for a COMMAND that cannot be started.
func notStarted(name string, err error) error {
	code := codeNotExecutable
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = codeNotFound
	}
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		err = lookup.Err
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return &program.ExitError{Code: code, Err: fmt.Errorf("COMMAND %s: %w", name, err)}
}

// findCommand fails where COMMAND could not be started later.
func findCommand(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return notStarted(args[0], err)
	}
	return nil
}

// startChild starts COMMAND with our standard input, output and error. It has our
// environment, but for what the service manager said to us alone, and the
// descriptor limit that we were started with.
func startChild(w program.World, args []string) (*child, error) {
	c := &child{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = w.Stdin, w.Stdout, w.Stderr
	c.cmd.Env = slices.DeleteFunc(os.Environ(), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return slices.Contains(managerVariables(), name)
	})
	if err := c.cmd.Start(); err != nil {
		return nil, notStarted(args[0], err)
	}
	go c.wait() // ends with the command; done says so
	return c, nil
}

func (c *child) wait() {
	defer close(c.done)
	c.err = exitOf(c.cmd.Wait(), c.cmd.ProcessState)
}

// exitOf is how a command ended, as our own end: its exit code, or 128+N where
// signal N ended it.
func exitOf(err error, state *os.ProcessState) error {
	if state == nil {
		return err
	}
	code := state.ExitCode()
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if code == 0 {
		return nil
	}
	return &program.ExitError{Code: code}
}

// ended is closed when the command has ended; nil before it was started.
func (c *child) ended() <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.done
}

// signal passes a signal on. A terminal sends ^C to the command as well as to us,
// and a second one means more to many programs: that one is left to the terminal.
func (c *child) signal(s os.Signal) {
	if s == os.Interrupt && logs.IsTerminal(c.cmd.Stdin) {
		return
	}
	c.cmd.Process.Signal(s) // it may have ended: then done tells
}

// kill ends the command at once and gives its exit code.
func (c *child) kill() error {
	if c == nil {
		return nil
	}
	c.cmd.Process.Kill()
	<-c.done
	return c.err
}
