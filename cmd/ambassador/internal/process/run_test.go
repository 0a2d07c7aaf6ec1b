package process

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/cli"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/secrets"
)

// served is an ambassador that runs in the test's process.
type served struct {
	t        *testing.T
	world    program.World
	out, err *cmdtest.Output
	signals  chan os.Signal
	config   string        // path of the configuration file
	stop     func()        // ends it at once
	done     chan struct{} // closed when serve has returned
	result   error         // result of serve; readable once done is closed
}

// serveFile does what `run -c FILE` does, until the test ends.
func serveFile(t *testing.T, text string, edit ...func(*served, *Options)) *served {
	t.Helper()
	s := &served{t: t, out: cmdtest.NewOutput(), err: cmdtest.NewOutput(), signals: make(chan os.Signal, 8),
		config: cmdtest.WriteConfig(t, text), done: make(chan struct{})}
	s.world = program.World{Stdout: s.out, Stderr: s.err, Env: cmdtest.EnvOf("RUNTIME_DIRECTORY=" + cmdtest.ShortDir(t))}
	opts := FileOptions(s.config, s.world.Env, false, func(*config.File) {})
	opts.Signals = s.signals
	f, err := opts.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(s, &opts)
	}
	s.start(f, opts)
	return s
}

func (s *served) start(f *config.File, opts Options) {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() { // the cleanup waits for it
		defer close(s.done)
		s.result = Run(ctx, s.world, f, opts)
	}()
	s.t.Cleanup(func() {
		cancel()
		s.ended()
		if s.t.Failed() {
			s.t.Logf("stdout:\n%s\nstderr:\n%s", s.out, s.err)
		}
	})
}

// ended waits until serve has returned, and returns its result.
func (s *served) ended() error {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(cmdtest.Patience):
		s.t.Fatalf("it does not end; its log:\n%s", s.err)
	}
	return s.result
}

// running fails the test if serve has returned.
func (s *served) running() {
	s.t.Helper()
	select {
	case <-s.done:
		s.t.Fatalf("it has ended with %v", s.result)
	default:
	}
}

// addr is the address of the listener with that name.
func (s *served) addr(name string) string {
	s.t.Helper()
	return s.out.Await(s.t, `(?m)^listening `+name+` (\S+)$`)[1]
}

// connect opens a connection to a listener.
func (s *served) connect(name string) net.Conn {
	s.t.Helper()
	return cmdtest.DialPrinted(s.t, s.addr(name))
}

// admin sends a request to the admin API at its printed address.
func (s *served) admin(method, path string) (body string, status int) {
	s.t.Helper()
	body, status, err := cmdtest.AskPrinted(s.addr("admin"), method, path)
	if err != nil {
		s.t.Fatal(err)
	}
	return body, status
}

func TestStandardOutputHasTheAddressesAndNothingElse(t *testing.T) {
	s := serveFile(t, cmdtest.OneListener(cmdtest.NamedEcho(t, "one"), "metrics: {listen: \"127.0.0.1:0\"}"))
	cmdtest.Says(t, s.connect("front"), "hello", "one: hello")
	s.addr("admin")
	if body, status, err := cmdtest.AskPrinted(s.addr("metrics"), "GET", "/metrics"); err != nil || status != 200 || !strings.Contains(body, "ambassador_build_info") {
		t.Errorf("the metrics: %v, %d", err, status)
	}
	if _, status, err := cmdtest.AskPrinted(s.addr("metrics"), "GET", "/v1/status"); err != nil || status != 404 {
		t.Errorf("the admin API on the metrics' address: %v, %d; want 404", err, status)
	}
	s.signals <- syscall.SIGTERM
	if err := s.ended(); err != nil {
		t.Errorf("SIGTERM ended in %v", err)
	}
	for l := range strings.Lines(s.out.String()) {
		if !strings.HasPrefix(l, "listening ") {
			t.Errorf("standard output has %q", l)
		}
	}
	if c, err := net.Dial("tcp", s.addr("front")); err == nil {
		c.Close()
		t.Error("the listener outlived serve")
	}
	if _, err := os.Stat(strings.TrimPrefix(s.addr("admin"), "unix:")); err == nil {
		t.Error("the admin socket's file outlived serve")
	}
}

// startDrain starts an ambassador with a session that does not end by itself, and tells
// it to end.
func startDrain(t *testing.T, tell func(*served)) (*served, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	answered := make(chan struct{})
	go func() { // ends with its only client
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(io.Discard, c)
		c.Write([]byte("half"))
		<-answered // the answer is never completed
	}()
	t.Cleanup(func() { close(answered) })
	s := serveFile(t, strings.Replace(cmdtest.OneListener(ln.Addr().String()), "timeout: 20s", "timeout: 10m", 1))
	c := s.connect("front")
	c.(*net.TCPConn).CloseWrite()
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	tell(s)
	s.err.Await(t, "draining")
	return s, c
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  func(*served)
		second func(*served)
	}{
		{"TERM TERM", func(s *served) { s.signals <- syscall.SIGTERM }, func(s *served) { s.signals <- syscall.SIGTERM }},
		{"INT TERM", func(s *served) { s.signals <- syscall.SIGINT }, func(s *served) { s.signals <- syscall.SIGTERM }},
		{"quit INT", func(s *served) { s.admin("POST", "/v1/quit") }, func(s *served) { s.signals <- syscall.SIGINT }},
		{"TERM quit", func(s *served) { s.signals <- syscall.SIGTERM }, func(s *served) { s.admin("POST", "/v1/quit") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, conn := startDrain(t, c.first)
			s.signals <- syscall.SIGHUP
			s.err.Await(t, "no reload: the process is ending")
			s.running()
			if body, status := s.admin("GET", "/readyz"); status != 503 || !strings.Contains(body, "draining") {
				t.Errorf("/readyz: %d %q", status, body)
			}
			c.second(s)
			if err := s.ended(); err != nil {
				t.Errorf("it ended with %v, want exit code 0", err)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the session ended with %v, want a reset", err)
			}
			if !strings.Contains(s.err.String(), `"reason":"shutdown"`) {
				t.Errorf("no record of the session:\n%s", s.err)
			}
		})
	}
}

func TestTheEndOfTheContextEndsAtOnce(t *testing.T) {
	s, conn := startDrain(t, func(s *served) { s.signals <- syscall.SIGTERM })
	s.stop()
	if err := s.ended(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the session ended with %v, want a reset", err)
	}
}

func TestDrainStays(t *testing.T) {
	s := serveFile(t, cmdtest.OneListener(cmdtest.NamedEcho(t, "one")))
	live := s.connect("front")
	cmdtest.Says(t, live, "before", "one: before")
	if _, status := s.admin("POST", "/v1/drain"); status != 202 {
		t.Errorf("drain: %d", status)
	}
	s.err.Await(t, `"msg":"stopped accepting"`)
	s.running()
	cmdtest.Says(t, live, "after", "one: after") // sessions are not ended before the process is
	s.signals <- syscall.SIGTERM
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

func TestUnsafeSettingsAreLogged(t *testing.T) {
	s := serveFile(t, strings.Replace(cmdtest.OneListener("127.0.0.1:1"), "upstream: up", "upstream: up, unsafe_plaintext_listen: true", 1))
	s.err.Await(t, `"level":"WARN","msg":"unsafe setting","setting":"listeners.front.unsafe_plaintext_listen`)
}

func TestADefaultAdminSocketThatCannotBeMadeIsAWarning(t *testing.T) {
	s := &served{t: t, out: cmdtest.NewOutput(), err: cmdtest.NewOutput(), signals: make(chan os.Signal, 1), done: make(chan struct{})}
	s.world = program.World{Stdout: s.out, Stderr: s.err, Env: cmdtest.EnvOf("RUNTIME_DIRECTORY=" + filepath.Join(t.TempDir(), "absent"))}
	f, err := secrets.LoadFile(cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1")), s.world.Env)
	if err != nil {
		t.Fatal(err)
	}
	s.start(f, Options{Signals: s.signals})
	s.addr("front")
	s.err.Await(t, `"level":"WARN","msg":"no admin socket`)
	s.signals <- syscall.SIGINT
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

// token_for says which requests need the token, and a reload can change it.
func TestTokenForAll(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	cmdtest.WriteFile(t, token, "0123456789abcdef\n")
	cfgPath := func(tokenFor string) string {
		return cmdtest.OneListener("127.0.0.1:1", `admin: {listen: "127.0.0.1:0", token_file: `+token+", token_for: "+tokenFor+"}")
	}
	s := serveFile(t, cfgPath("all"))
	open := func(command string) error {
		return runCommand(t.Context(), command, "--admin", s.addr("admin"))
	}
	with := func(command string) error {
		return runCommand(t.Context(), command, "--admin", s.addr("admin"), "--token-file", token)
	}
	if err := open("status"); err == nil || !strings.Contains(err.Error(), "--token-file") {
		t.Errorf("without the token: %v", err)
	}
	if err := open("wait"); err != nil {
		t.Errorf("probes need the token: %v", err)
	}
	for _, command := range []string{"status", "wait", "reload"} {
		if err := with(command); err != nil {
			t.Errorf("%s with the token: %v", command, err)
		}
	}
	cmdtest.WriteFile(t, s.config, cfgPath("changes"))
	if err := with("reload"); err != nil {
		t.Fatal(err)
	}
	if err := open("status"); err != nil {
		t.Errorf("after the reload: %v", err)
	}
}

// runCommand runs a command that talks to a running ambassador.
func runCommand(ctx context.Context, args ...string) error {
	root := &cobra.Command{Use: "ambassador", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(cli.Commands(program.World{Stdout: io.Discard, Stderr: io.Discard, Env: cmdtest.EnvOf()})...)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}
