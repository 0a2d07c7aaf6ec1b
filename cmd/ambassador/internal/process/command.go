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
	done chan struct{} // closed when COMMAND has ended
	err  error         // an *program.ExitError with its code, nil for 0; readable once done is closed
}

// Exit codes for a COMMAND that was never started, as in shells.
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

// findCommand returns an error if COMMAND could not be started later.
func findCommand(args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		return notStarted(args[0], err)
	}
	return nil
}

// startChild starts COMMAND with our standard input, output and error. COMMAND gets the
// descriptor limit that we were started with, and our environment without the service
// manager's variables for us.
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
	go c.wait() // ends with COMMAND, and then closes done
	return c, nil
}

func (c *child) wait() {
	defer close(c.done)
	c.err = exitOf(c.cmd.Wait(), c.cmd.ProcessState)
}

// exitOf converts the end of COMMAND to our own: its exit code, or 128+N if signal N
// ended it.
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

// ended returns a channel that is closed when COMMAND has ended; nil if it was not
// started.
func (c *child) ended() <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.done
}

// signal passes a signal on to COMMAND, except an interrupt from a terminal. The
// terminal sends ^C to COMMAND as well as to us, and many programs treat a second one
// differently.
func (c *child) signal(s os.Signal) {
	if s == os.Interrupt && logs.IsTerminal(c.cmd.Stdin) {
		return
	}
	c.cmd.Process.Signal(s) // if COMMAND has ended, done is closed
}

// kill ends COMMAND at once and returns its exit code.
func (c *child) kill() error {
	if c == nil {
		return nil
	}
	c.cmd.Process.Kill()
	<-c.done
	return c.err
}
