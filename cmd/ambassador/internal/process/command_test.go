package process

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/program"
)

// withCommand runs the test binary as COMMAND.
func withCommand(t *testing.T, args ...string) func(*served, *Options) {
	t.Helper()
	t.Setenv(cmdtest.As, "command")
	return func(_ *served, o *Options) { o.Command = append([]string{cmdtest.Self(t)}, args...) }
}

// codeOf is the exit code of an error.
func codeOf(err error) int {
	var exit *program.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return 1
}

func TestTheExitCodeOfCommandIsOurs(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"exit", "0"}, 0},
		{[]string{"exit", "7"}, 7},
		{[]string{"exit", "1"}, 1},
		{[]string{"kill"}, 128 + 9},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			s := serveFile(t, cmdtest.OneListener("127.0.0.1:1"), withCommand(t, c.args...))
			if got := codeOf(s.ended()); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			if want := map[string]string{"exit": "started\n"}[c.args[0]]; s.out.String() != want {
				t.Errorf("standard output is %q, want %q: it is COMMAND's alone", s.out, want)
			}
			if !strings.Contains(s.err.String(), "listening front 127.0.0.1:") {
				t.Errorf("standard error does not have the addresses:\n%s", s.err)
			}
			if exit := new(program.ExitError); errors.As(s.result, &exit) && exit.Err != nil {
				t.Errorf("there is nothing to say, and it says %v", exit.Err)
			}
		})
	}
}

func TestCommandStartsOnceReady(t *testing.T) {
	dead := cmdtest.Nobody(t)
	s := serveFile(t, strings.Replace(cmdtest.OneListener(dead), "required: false", "required: true", 1), withCommand(t, "exit", "5"))
	front := s.err.Await(t, `listening front (\S+)\n`)[1]
	s.err.Await(t, "listening admin")
	if c := cmdtest.DialPrinted(t, front); c == nil { // connections are accepted meanwhile
		t.Fatal("not listening")
	}
	s.running()
	if s.out.String() != "" {
		t.Fatalf("COMMAND was started before the upstream was reached: %q", s.out)
	}
	ln, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmdtest.ServeEcho(ln, "late")
	if got := codeOf(s.ended()); got != 5 || s.out.String() != "started\n" {
		t.Errorf("exit code %d, output %q", got, s.out)
	}
}

// A supervisor must not take a COMMAND that never ran for one that ended well.
func TestASignalBeforeCommandIsTheEnd(t *testing.T) {
	for _, c := range []struct {
		signal syscall.Signal
		code   int
	}{{syscall.SIGTERM, 143}, {syscall.SIGINT, 130}, {syscall.SIGQUIT, 131}} {
		t.Run(c.signal.String(), func(t *testing.T) {
			s := serveFile(t, strings.Replace(cmdtest.OneListener(cmdtest.Nobody(t)), "required: false", "required: true", 1), withCommand(t, "exit", "5"))
			s.err.Await(t, "listening admin")
			for _, dropped := range []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH} {
				s.signals <- dropped
			}
			s.signals <- c.signal
			err := s.ended()
			if got := codeOf(err); got != c.code || s.out.String() != "" {
				t.Errorf("exit code %d, output %q; want %d without COMMAND", got, s.out, c.code)
			}
			if err == nil || !strings.Contains(err.Error(), "COMMAND was not started: "+c.signal.String()+" came first, while it waited for: upstream up: not reached yet") {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// Nothing tries an upstream with probe: on_failure before its first session, and COMMAND
// would wait for that in vain.
func TestTheWaitOfCommandTriesUpstreams(t *testing.T) {
	text := strings.Replace(cmdtest.OneListener(cmdtest.NamedEcho(t, "one")), "required: false, health: {interval: 0s}", "required: true, health: {probe: on_failure}", 1)
	s := serveFile(t, text, withCommand(t, "exit", "5"))
	if got := codeOf(s.ended()); got != 5 {
		t.Errorf("exit code %d, want COMMAND's 5", got)
	}
}

func TestTheWaitOfCommandIsBounded(t *testing.T) {
	s := serveFile(t, strings.Replace(cmdtest.OneListener(cmdtest.Nobody(t)), "required: false", "required: true", 1), withCommand(t, "exit", "5"),
		func(_ *served, o *Options) { o.WaitTimeout = 300 * time.Millisecond })
	err := s.ended()
	if got := codeOf(err); got != 1 || s.out.String() != "" || err == nil || !strings.Contains(err.Error(), "COMMAND was not started: not ready within 300ms:\n  upstream up: not reached yet; dial up") {
		t.Errorf("exit code %d, output %q, %v", got, s.out, err)
	}
}

func TestSignalsGoToCommand(t *testing.T) {
	for name, send := range map[string]func(*served){
		"terminated":            func(s *served) { s.signals <- syscall.SIGTERM },
		"interrupt":             func(s *served) { s.signals <- syscall.SIGINT },
		"user defined signal 1": func(s *served) { s.signals <- syscall.SIGUSR1 },
		"window changed":        func(s *served) { s.signals <- syscall.SIGWINCH },
		"quit": func(s *served) {
			addr := s.err.Await(t, `listening admin (\S+)\n`)[1]
			if _, status, err := cmdtest.AskPrinted(addr, "POST", "/v1/quit"); err != nil || status != 202 {
				t.Errorf("quit: %d, %v", status, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveFile(t, cmdtest.OneListener("127.0.0.1:1"), withCommand(t, "await"))
			s.out.Await(t, "up\n")
			s.signals <- syscall.SIGHUP // not passed on to COMMAND
			s.err.Await(t, `"msg":"reloaded"`)
			send(s)
			if got := codeOf(s.ended()); got != 3 {
				t.Errorf("exit code %d, want COMMAND's 3", got)
			}
			want := "up\ngot " + strings.Replace(name, "quit", "terminated", 1) + "\n"
			if s.out.String() != want {
				t.Errorf("output %q, want %q", s.out, want)
			}
		})
	}
}

func TestTheEndOfTheContextEndsCommand(t *testing.T) {
	s := serveFile(t, cmdtest.OneListener("127.0.0.1:1"), withCommand(t, "await"))
	s.out.Await(t, "up\n")
	s.stop()
	if got := codeOf(s.ended()); got != 128+9 {
		t.Errorf("exit code %d, want 137", got)
	}
}
