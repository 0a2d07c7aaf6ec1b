package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// withCommand runs the test binary as COMMAND.
func withCommand(t *testing.T, args ...string) func(*served, *serveOptions) {
	t.Helper()
	t.Setenv(testAs, "command")
	return func(_ *served, o *serveOptions) { o.command = append([]string{self(t)}, args...) }
}

// codeOf is the exit code that an error stands for.
func codeOf(err error) int {
	var exit *exitError
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
			s := serveFile(t, oneListener("127.0.0.1:1"), withCommand(t, c.args...))
			if got := codeOf(s.ended()); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			if want := map[string]string{"exit": "started\n"}[c.args[0]]; s.out.String() != want {
				t.Errorf("standard output is %q, want %q: it is COMMAND's alone", s.out, want)
			}
			if !strings.Contains(s.err.String(), "listening front 127.0.0.1:") {
				t.Errorf("standard error does not have the addresses:\n%s", s.err)
			}
			if exit := new(exitError); errors.As(s.result, &exit) && exit.Err != nil {
				t.Errorf("there is nothing to say, and it says %v", exit.Err)
			}
		})
	}
}

func TestCommandGetsStandardInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Setenv(testAs, "command")
	out, log := newOutput(), newOutput()
	w.WriteString("for the command")
	w.Close()
	t.Setenv("RUNTIME_DIRECTORY", shortDir(t))
	code := run(t.Context(), []string{"run", "-c", writeConfig(t, oneListener("127.0.0.1:1")), "--", self(t), "cat"}, r, out, log)
	if code != 0 || out.String() != "for the command" {
		t.Errorf("exit code %d, output %q:\n%s", code, out, log)
	}
}

func TestCommandStartsOnceReady(t *testing.T) {
	dead := nobody(t)
	s := serveFile(t, strings.Replace(oneListener(dead), "required: false", "required: true", 1), withCommand(t, "exit", "5"))
	front := s.err.await(t, `listening front (\S+)\n`)[1]
	s.err.await(t, "listening admin")
	if c := dialPrinted(t, front); c == nil { // connections are taken meanwhile
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
	serveEcho(ln, "late")
	if got := codeOf(s.ended()); got != 5 || s.out.String() != "started\n" {
		t.Errorf("exit code %d, output %q", got, s.out)
	}
}

func TestASignalBeforeCommandIsTheEnd(t *testing.T) {
	s := serveFile(t, strings.Replace(oneListener(nobody(t)), "required: false", "required: true", 1), withCommand(t, "exit", "5"))
	s.err.await(t, "listening admin")
	s.signals <- syscall.SIGTERM
	if err := s.ended(); err != nil || s.out.String() != "" {
		t.Errorf("%v, output %q; want a clean end without COMMAND", err, s.out)
	}
}

func TestSignalsGoToCommand(t *testing.T) {
	for name, send := range map[string]func(*served){
		"terminated": func(s *served) { s.signals <- syscall.SIGTERM },
		"interrupt":  func(s *served) { s.signals <- syscall.SIGINT },
		"quit": func(s *served) {
			addr := s.err.await(t, `listening admin (\S+)\n`)[1]
			if _, status, err := askPrinted(addr, "POST", "/v1/quit"); err != nil || status != 202 {
				t.Errorf("quit: %d, %v", status, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveFile(t, oneListener("127.0.0.1:1"), withCommand(t, "await"))
			s.out.await(t, "up\n")
			s.signals <- syscall.SIGHUP // ours alone
			s.err.await(t, `"msg":"reloaded"`)
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
	s := serveFile(t, oneListener("127.0.0.1:1"), withCommand(t, "await"))
	s.out.await(t, "up\n")
	s.stop()
	if got := codeOf(s.ended()); got != 128+9 {
		t.Errorf("exit code %d, want 137", got)
	}
}

// TestDescriptorLimit: Go raises our soft limit at its start. A COMMAND that uses
// select(2) breaks with more than 1024 descriptors, so it must not inherit that.
func TestDescriptorLimit(t *testing.T) {
	config := writeConfig(t, oneListener("127.0.0.1:1", `admin: {listen: ""}`))
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("this test needs a shell")
	}
	tell := `ulimit -S -n; [ ! -r /proc/$PPID/limits ] || while read -r l; do case $l in *"open files"*) echo "$l";; esac; done </proc/$PPID/limits`
	cmd := exec.Command("sh", "-c", `ulimit -S -n 300 && exec "$0" run -c "$1" -- sh -c "$2"`, self(t), config, tell)
	cmd.Env = append(os.Environ(), testAs+"=ambassador")
	var log strings.Builder
	cmd.Stderr = &log
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v:\n%s", err, &log)
	}
	theirs, ours, _ := strings.Cut(string(text), "\n")
	if theirs != "300" {
		t.Errorf("COMMAND may have %s descriptors, want the 300 that we were started with", theirs)
	}
	var soft, hard int
	if n, _ := fmt.Sscanf(ours, "Max open files %d %d", &soft, &hard); n == 2 && soft < hard-1 { // Go stays one below it, to know its own value again
		t.Errorf("we may have %d descriptors, want the hard limit %d", soft, hard)
	}
}
