package main

import (
	"context"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// runSOCKS5 runs `socks5` until stop, which returns all that it has printed.
func runSOCKS5(t *testing.T, args ...string) (at string, log *cmdtest.Output, stop func() string) {
	t.Helper()
	t.Setenv("RUNTIME_DIRECTORY", cmdtest.ShortDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	out, code := cmdtest.NewOutput(), make(chan int, 1)
	log = cmdtest.NewOutput()
	go func() { // stop waits for it
		code <- run(ctx, append([]string{"socks5", "--admin", "", "--listen", "127.0.0.1:0"}, args...), strings.NewReader(""), out, log)
	}()
	at = out.Await(t, `listening socks5 (\S+)\n`)[1]
	return at, log, func() string {
		cancel()
		if got := <-code; got != 0 {
			t.Errorf("exit code %d:\n%s", got, log)
		}
		return out.String()
	}
}

func TestWhatSOCKS5Does(t *testing.T) {
	echo, other := cmdtest.NamedEcho(t, "one"), cmdtest.NamedEcho(t, "two")
	at, _, stop := runSOCKS5(t, "--allow", cmdtest.Localhost(echo))
	c, code := cmdtest.AskSOCKS5(t, at, "", cmdtest.Localhost(echo))
	if code != 0 {
		t.Fatalf("what is allowed is refused with %d", code)
	}
	cmdtest.Says(t, c, "hello", "one: hello")
	for _, dest := range []string{cmdtest.Localhost(other), "nowhere.invalid:443", echo} {
		if _, code := cmdtest.AskSOCKS5(t, at, "", dest); code != 2 {
			t.Errorf("%s: reply %d, want 2", dest, code)
		}
	}
	if out := stop(); out != "listening socks5 "+at+"\n" {
		t.Errorf("it printed %q", out)
	}
}

func TestWhatReportDoes(t *testing.T) {
	echo := cmdtest.NamedEcho(t, "one")
	at, log, stop := runSOCKS5(t, "--report", "--allow", cmdtest.Localhost(echo))
	c, code := cmdtest.AskSOCKS5(t, at, "", cmdtest.Localhost(echo))
	if code != 0 {
		t.Fatalf("what is allowed is refused with %d", code)
	}
	c.Close()
	if _, code := cmdtest.AskSOCKS5(t, at, "", cmdtest.Localhost(cmdtest.Nobody(t))); code != 2 {
		t.Errorf("--report opens loopback: reply %d, want 2", code)
	}
	if _, code := cmdtest.AskSOCKS5(t, at, "", "10.0.0.7:80"); code != 2 {
		t.Errorf("--report opens private addresses: reply %d, want 2", code)
	}
	log.Await(t, `(?s)("reason":"special_address".*){2}`)
	out := stop()
	for _, want := range []string{"# not in --allow, and allowed by --report:\n# --allow '10.0.0.7:80'  # private address; 1 session, 1 special_address\n# --allow 'localhost:", "# - {ip: \"10.0.0.7\", port: 80, upstream: direct}  # private address; 1 session, 1 special_address\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("it printed\n%s\nwithout\n%s", out, want)
		}
	}
	if strings.Contains(out, cmdtest.Localhost(echo)) {
		t.Errorf("what is allowed is reported:\n%s", out)
	}
}
