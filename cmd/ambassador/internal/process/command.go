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
	"ambassador/l4"
)

// child is the COMMAND of `run -- COMMAND`. A nil child has not been started.
type child struct {
	cmd    *exec.Cmd
	reaper *reaper
	done   chan struct{} // closed when COMMAND has ended
	err    error         // an *program.ExitError with its code, nil for 0; readable once done is closed
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

// startCommand starts COMMAND, which learns the addresses of the listeners.
func (p *Process) startCommand() (*child, error) {
	variables, hidden := listenerVariables(p.server.Listening())
	for _, name := range hidden {
		p.log.Warn("COMMAND gets no variable for this listener: another listener has the same one; rename it", "listener", name)
	}
	c, err := startChild(p.world, p.opts.Command, variables, &p.reaper)
	if err == nil {
		p.log.Info("COMMAND is started", "command", p.opts.Command[0], "pid", c.cmd.Process.Pid)
	}
	return c, err
}

// listenerVariables returns the variables that tell COMMAND where the listeners are
// bound: AMBASSADOR_LISTENER_NAME=ADDR, the name in capitals and with _ for -. Of a
// listener with several addresses it is the first. Hidden are the listeners whose
// variable belongs to another one.
func listenerVariables(bound []l4.Bound) (variables, hidden []string) {
	owner := map[string]string{}
	for _, b := range bound {
		variable := "AMBASSADOR_LISTENER_" + strings.ToUpper(strings.ReplaceAll(b.Name, "-", "_"))
		switch name, taken := owner[variable]; {
		case !taken:
			owner[variable] = b.Name
			variables = append(variables, variable+"="+b.Addr)
		case name != b.Name:
			hidden = append(hidden, b.Name)
		}
	}
	return variables, hidden
}

// startChild starts COMMAND with our standard input, output and error. COMMAND gets the
// descriptor limit and the scheduling policy that we were started with, and our
// environment without the service manager's variables for us, with more.
func startChild(w program.World, args, more []string, r *reaper) (*child, error) {
	c := &child{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{}), reaper: r}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = w.Stdin, w.Stdout, w.Stderr
	c.cmd.Env = slices.DeleteFunc(os.Environ(), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return slices.Contains(managerVariables(), name)
	})
	c.cmd.Env = append(c.cmd.Env, more...)
	if err := asStarted(func() error { return r.start(c.cmd) }); err != nil {
		return nil, notStarted(args[0], err)
	}
	go c.wait() // ends with COMMAND, and then closes done
	return c, nil
}

func (c *child) wait() {
	defer close(c.done)
	c.err = exitOf(c.cmd.Wait(), c.cmd.ProcessState)
	c.reaper.release()
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

// signal passes a signal on to COMMAND, except ^C and ^\ of a terminal. The terminal
// sends these to COMMAND as well as to us, and many programs treat a second one
// differently.
func (c *child) signal(s os.Signal) {
	if (s == os.Interrupt || s == syscall.SIGQUIT) && logs.IsTerminal(c.cmd.Stdin) {
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
