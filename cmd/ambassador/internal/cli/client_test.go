package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// serveAPI serves h on ln until the test ends.
func serveAPI(t *testing.T, ln net.Listener, addr string, h http.Handler) string {
	t.Helper()
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ln) }() // the cleanup waits for it
	t.Cleanup(func() { s.Close(); <-done })
	return addr
}

// fakeDeps is what the admin API of a test shows and does.
func fakeDeps(f *cmdtest.FakeServer) admin.Deps {
	return admin.Deps{
		Ready: func() l4.Readiness { return f.Readiness },
		Listeners: func() []l4.ListenerStatus {
			return []l4.ListenerStatus{
				{Bound: l4.Bound{Name: "postgres", Addr: "127.0.0.1:5432"}},
				{Bound: l4.Bound{Name: "inbound", Addr: "0.0.0.0:6432"}, StartTLS: "postgres",
					TLS: &l4.ListenerTLSStatus{Identities: []string{"orders"}, Client: "required", Principals: []string{"spiffe://corp/batch/*", "dns:*.svc"}}},
			}
		},
		Upstreams: func() []upstream.Status { return f.Upstreams },
		Traffic: func() []l4.Traffic {
			return []l4.Traffic{{Listener: "postgres", Upstream: "orders_db", Active: 1, Up: 1512, Down: 3<<20 + 1023}}
		},
		Sessions:   func(int) []outcome.Record { return slices.Clone(f.Live) },
		Recent:     func(int) []outcome.Record { return slices.Clone(f.Over) },
		Kill:       func(id, by string) bool { f.Killed.Store(id + " " + by); return id == "K7QX-41" },
		Identities: func() []certs.Status { return f.Identities },
		Config:     func() ([]byte, error) { return []byte("listeners: {}\n"), nil },
		Reload:     func(context.Context) error { f.Reloads.Add(1); return f.ReloadErr },
		Drain:      func() { f.Drains.Add(1) },
		Quit:       func() { f.Quits.Add(1) },
		Metrics:    http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "metrics\n") }),
		Version:    "v0.1.0",
		Started:    cmdtest.Noon().Add(-3*time.Hour - 12*time.Minute),
	}
}

// commandsWith are the commands with nothing in their environment but pairs ("KEY=value").
func commandsWith(pairs ...string) *commands {
	alone := append(slices.Clip(pairs), "TMPDIR=/nonexistent") // an ambassador of this user may run on the host
	return &commands{program.World{Stdin: strings.NewReader(""), Stdout: &strings.Builder{}, Stderr: &strings.Builder{}, Env: cmdtest.EnvOf(alone...)}}
}

// runningAdmin is an ambassador with a default admin socket, and the commands of its user.
func runningAdmin(t *testing.T, f *cmdtest.FakeServer) (a *commands, out *bytes.Buffer) {
	t.Helper()
	a, out = commandsWith("RUNTIME_DIRECTORY="+cmdtest.ShortDir(t)), &bytes.Buffer{}
	a.Stdout = out
	ln, addr, err := adminsocket.Listen(t.Context(), a.Env, adminsocket.Address{})
	if err != nil {
		t.Fatal(err)
	}
	serveAPI(t, ln, addr, admin.NewHandler(fakeDeps(f), admin.Guard{}))
	return a, out
}

// runClient runs a command line, as the root command would.
func runClient(ctx context.Context, a *commands, args ...string) error {
	root := &cobra.Command{Use: "ambassador", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Commands(a.World)...)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// exitCode is the exit code of an error.
func exitCode(err error) int {
	var e *program.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	}
	return 1
}

func TestClientCommandsHaveExamples(t *testing.T) {
	a := commandsWith()
	for _, cmd := range Commands(a.World) {
		if !strings.Contains(cmd.Example, "ambassador "+cmd.Name()) || cmd.Short == "" {
			t.Errorf("%s: example %q, short %q", cmd.Name(), cmd.Example, cmd.Short)
		}
		for _, flag := range []string{"admin", "json", "token-file"} {
			if cmd.Flags().Lookup(flag) == nil {
				t.Errorf("%s has no --%s", cmd.Name(), flag)
			}
		}
	}
}

func TestCommandsAgainstARunningOne(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string // in the output
	}{
		{[]string{"ps"}, "v0.1.0"},
		{[]string{"ps", "--json"}, `"addr": "127.0.0.1:5432"`},
		{[]string{"status"}, "ambassador v0.1.0 (pid "},
		{[]string{"status", "--json"}, `"last_reason": "refused"`},
		{[]string{"sessions"}, "K7QX-41"},
		{[]string{"sessions", "--json"}, `"bytes_up": 1500`},
		{[]string{"sessions", "--recent"}, "upstream_tls_rejected"},
		{[]string{"sessions", "--recent", "--json"}, `"id": "K7QX-39"`},
		{[]string{"why", "127.0.0.1:39998"}, "session K7QX-40: upstream_tls_rejected, in stage tls\n"},
		{[]string{"why", "39998"}, "session K7QX-40"},
		{[]string{"why", ":39998"}, "session K7QX-40"},
		{[]string{"why", "K7QX-41"}, "session K7QX-41: still open, in stage relay\n"},
		{[]string{"why", "K7QX-40", "--json"}, `"reason": "upstream_tls_rejected"`},
		{[]string{"wait"}, "ready\n"},
		{[]string{"wait", "--json"}, "{\n  \"ready\": true,\n  \"waiting\": []\n}"},
		{[]string{"kill", "K7QX-41", "--json"}, `"killed": "K7QX-41"`},
		{[]string{"kill", "K7QX-41"}, "killed K7QX-41\n"},
		{[]string{"report"}, "# no session was allowed by a rule with report since "},
		{[]string{"wait", "--upstream", "orders_db"}, "ready\n"},
		{[]string{"reload"}, "reloaded\n"},
		{[]string{"drain"}, "draining, 1 session open"},
		{[]string{"quit"}, "quitting, 1 session open\n"},
		{[]string{"drain", "--json"}, `"draining": true`},
	} {
		a, out := runningAdmin(t, cmdtest.NewFakeServer())
		if err := runClient(t.Context(), a, tt.args...); err != nil || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: %v, want %q in\n%s", tt.args, err, tt.want, out)
		}
		if tt.args[len(tt.args)-1] == "--json" && !json.Valid(out.Bytes()) {
			t.Errorf("%q: not JSON: %s", tt.args, out)
		}
	}
}

// A session that ends between the two questions of `why` is told of once, as ended.
func TestWhyOfASessionThatEndsMeanwhile(t *testing.T) {
	f := cmdtest.NewFakeServer()
	live := f.Over[0]
	live.Reason = ""
	f.Live = append(f.Live, live)
	a, out := runningAdmin(t, f)
	if err := runClient(t.Context(), a, "why", live.ID); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "session "+live.ID); n != 1 || strings.Contains(out.String(), "still open") {
		t.Errorf("told of %d times:\n%s", n, out)
	}
}

func TestCommandsThatFail(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.ReloadErr = errors.New("ambassador.yaml:1:1: listener: unknown key")
	a, _ := runningAdmin(t, f)
	for _, tt := range []struct {
		args []string
		code int
		want string // in the error
	}{
		{[]string{"why", "1"}, 1, "the last 4096"},
		{[]string{"reload"}, 1, "listener: unknown key\nthe old configuration is still in use"},
		{[]string{"status", "--admin", "ftp://x"}, 2, "unix:/path, HOST:PORT"},
		{[]string{"status", "--admin", "x"}, 2, "unix:/path, HOST:PORT"},
		{[]string{"status", "--admin", "http://127.0.0.1:1/v1"}, 2, "without more"},
		{[]string{"status", "--admin", "127.0.0.1:1"}, 1, "is the ambassador running?"},
		{[]string{"status", "--admin", "/nonexistent/a.sock"}, 1, "no such file"},
		{[]string{"drain", "--token-file", "/nonexistent"}, 2, "--token-file"},
		{[]string{"wait", "--timeout", "0s"}, 2, "above zero"},
		{[]string{"wait", "--upstream", "none"}, 1, "there is none of that name"},
	} {
		err := runClient(t.Context(), a, tt.args...)
		if exitCode(err) != tt.code || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: exit code %d, want %d, with %q in %v", tt.args, exitCode(err), tt.code, tt.want, err)
		}
	}
}

func TestNobodyIsRunning(t *testing.T) {
	err := runClient(t.Context(), commandsWith("RUNTIME_DIRECTORY="+cmdtest.ShortDir(t), "TMPDIR="+cmdtest.ShortDir(t)), "status")
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "ambassador run") || !strings.Contains(err.Error(), "--admin") {
		t.Errorf("exit code %d: %v", exitCode(err), err)
	}
}

func TestParseAdmin(t *testing.T) {
	for _, tt := range []struct{ in, network, address string }{
		{"unix:/run/a.sock", "unix", "/run/a.sock"}, {"/run/a.sock", "unix", "/run/a.sock"}, {"./a.sock", "unix", "./a.sock"},
		{"127.0.0.1:9901", "tcp", "127.0.0.1:9901"}, {"localhost:9901", "tcp", "localhost:9901"}, {"[::1]:9901", "tcp", "[::1]:9901"},
		{"http://127.0.0.1:9901", "tcp", "127.0.0.1:9901"}, {"http://127.0.0.1:9901/", "tcp", "127.0.0.1:9901"},
		{"https://127.0.0.1:9901", "", ""}, {"127.0.0.1", "", ""}, {"http://x", "", ""}, {"http://x:1?a", "", ""}, {"http://u@x:1", "", ""}, {"x:", "", ""},
	} {
		network, address, err := parseAdmin(tt.in)
		if network != tt.network || address != tt.address || (err == nil) != (tt.network != "") {
			t.Errorf("%s: %s %s, %v; want %s %s", tt.in, network, address, err, tt.network, tt.address)
		}
	}
}

func TestTokenOverTCP(t *testing.T) {
	f := cmdtest.NewFakeServer()
	ln, addr, err := adminsocket.Listen(t.Context(), cmdtest.EnvOf(), adminsocket.Address{At: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	serveAPI(t, ln, addr, admin.NewHandler(fakeDeps(f), admin.Guard{TCP: true, Token: "secret"}))
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := runClient(t.Context(), commandsWith(), "drain", "--admin", addr); err == nil || !strings.Contains(err.Error(), "--token-file") {
		t.Errorf("without the token: %v", err)
	}
	a := commandsWith()
	if err := runClient(t.Context(), a, "drain", "--admin", "http://"+addr, "--token-file", file); err != nil || f.Drains.Load() != 1 {
		t.Errorf("with the token: %v, %d drains", err, f.Drains.Load())
	}
}

func TestSomebodyElsesServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := serveAPI(t, ln, ln.Addr().String(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "evil.example" {
			t.Error("a redirect is followed")
		}
		if r.URL.Path == "/v1/sessions" {
			http.Redirect(w, r, "http://evil.example/", http.StatusFound)
			return
		}
		w.Write([]byte("<html>"))
	}))
	for _, args := range [][]string{{"status"}, {"sessions"}, {"drain"}} {
		err := runClient(t.Context(), commandsWith(), append(args, "--admin", addr)...)
		if err == nil || !strings.Contains(err.Error(), "check --admin") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestWaitUntilReady(t *testing.T) {
	f := cmdtest.NewFakeServer()
	d := fakeDeps(f)
	var asked atomic.Int32
	d.Ready = func() l4.Readiness {
		if asked.Add(1) < 3 {
			return l4.Readiness{Waiting: []string{"upstream orders_db: not reached yet"}}
		}
		return l4.Readiness{Ready: true}
	}
	a := commandsWith("RUNTIME_DIRECTORY=" + cmdtest.ShortDir(t))
	ln, addr, err := adminsocket.Listen(t.Context(), a.Env, adminsocket.Address{})
	if err != nil {
		t.Fatal(err)
	}
	serveAPI(t, ln, addr, admin.NewHandler(d, admin.Guard{}))
	if err := runClient(t.Context(), a, "wait"); err != nil || asked.Load() != 3 {
		t.Errorf("%v after %d questions", err, asked.Load())
	}
}

// `wait` may be called before the ambassador is there.
func TestWaitForOneThatIsStarting(t *testing.T) {
	a := commandsWith("RUNTIME_DIRECTORY="+cmdtest.ShortDir(t), "TMPDIR="+cmdtest.ShortDir(t))
	done := make(chan error, 1)
	go func() { done <- runClient(t.Context(), a, "wait", "--timeout", "10s") }() // collected below
	ln, addr, err := adminsocket.Listen(t.Context(), a.Env, adminsocket.Address{})
	if err != nil {
		t.Fatal(err)
	}
	serveAPI(t, ln, addr, admin.NewHandler(fakeDeps(cmdtest.NewFakeServer()), admin.Guard{}))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWaitGivesUpWithTheReasons(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.Readiness = l4.Readiness{Waiting: []string{"upstream a: not reached yet", "upstream b: no_identity: expired"}}
	a, out := runningAdmin(t, f)
	err := runClient(t.Context(), a, "wait", "--timeout", "150ms")
	want := "not ready after 150ms:\n  upstream a: not reached yet\n  upstream b: no_identity: expired"
	if exitCode(err) != 1 || err.Error() != want {
		t.Errorf("exit code %d: %v", exitCode(err), err)
	}
	if err := runClient(t.Context(), a, "wait", "--timeout", "150ms", "--json"); exitCode(err) != 1 {
		t.Errorf("exit code %d: %v", exitCode(err), err)
	}
	if diff := cmp.Diff("{\n  \"ready\": false,\n  \"waiting\": [\n    \"upstream a: not reached yet\",\n    \"upstream b: no_identity: expired\"\n  ]\n}\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("interrupted")
	f := cmdtest.NewFakeServer()
	d := fakeDeps(f)
	d.Ready = func() l4.Readiness { cancel(stopped); return l4.Readiness{} }
	a := commandsWith("RUNTIME_DIRECTORY=" + cmdtest.ShortDir(t))
	ln, addr, err := adminsocket.Listen(t.Context(), a.Env, adminsocket.Address{})
	if err != nil {
		t.Fatal(err)
	}
	serveAPI(t, ln, addr, admin.NewHandler(d, admin.Guard{}))
	if err := runClient(ctx, a, "wait"); !errors.Is(err, stopped) {
		t.Error(err)
	}
}

// An ambassador that accepts and says nothing does not hold a command for longer
// than its bound.
func TestSilentAdminAPI(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(cmdtest.ShortDir(t), "a.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	start := time.Now()
	err = runClient(t.Context(), commandsWith(), "wait", "--timeout", "100ms", "--admin", ln.Addr().String())
	if exitCode(err) != 1 || time.Since(start) > 5*time.Second {
		t.Errorf("exit code %d after %v: %v", exitCode(err), time.Since(start), err)
	}
}

// What a command makes of the answers of the admin API.
func TestCommandsPrintAnswersThatCanBeSeen(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.Readiness = l4.Readiness{Waiting: []string{cmdtest.Evil}}
	f.Over[0].User, f.Over[0].Tag = cmdtest.Evil, cmdtest.Evil
	a, out := runningAdmin(t, f)
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"sessions", "--recent"}, {"sessions", "--recent", "--json"}} {
		out.Reset()
		if err := runClient(t.Context(), a, args...); err != nil {
			t.Errorf("%q: %v", args, err)
		}
		cmdtest.MustBeVisible(t, strings.Join(args, " "), out.String())
	}
}
