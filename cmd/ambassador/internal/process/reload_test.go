package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/cli"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/program"
)

// reloaded waits for n reloads with that result.
func (s *served) reloaded(result string, n string) {
	s.t.Helper()
	want := `ambassador_reloads_total{result="` + result + `"} ` + n + "\n"
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(cmdtest.Patience)
	for {
		body, _ := s.admin("GET", "/metrics")
		if strings.Contains(body, want) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			s.t.Fatalf("the metrics never had %s", want)
		}
	}
}

func TestReload(t *testing.T) {
	one, two := cmdtest.NamedEcho(t, "one"), cmdtest.NamedEcho(t, "two")
	s := serveFile(t, cmdtest.OneListener(one))
	live := s.connect("front")
	cmdtest.Says(t, live, "a", "one: a")
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener(two))
	s.signals <- syscall.SIGHUP
	s.reloaded("ok", "1")
	cmdtest.Says(t, s.connect("front"), "b", "two: b")
	cmdtest.Says(t, live, "c", "one: c")

	for name, text := range map[string]string{
		"unknown key":   strings.Replace(cmdtest.OneListener(one), "upstream:", "upstrm:", 1),
		"port in use":   strings.Replace(cmdtest.OneListener(one), "127.0.0.1:0", cmdtest.Occupied(t), 1),
		"no identity":   cmdtest.OneListener(one, `identities: {me: {files: {cert: absent.crt, key: absent.key}}}`),
		"metrics' port": cmdtest.OneListener(one, "metrics: {listen: "+cmdtest.Occupied(t)+"}"),
	} {
		cmdtest.WriteFile(t, s.config, text)
		body, status := s.admin("POST", "/v1/reload")
		if status != 422 || !strings.Contains(body, "ambassador.yaml:") && !strings.Contains(body, "in use") {
			t.Errorf("%s: %d %s; want 422 and what is wrong", name, status, body)
		}
		cmdtest.Says(t, s.connect("front"), "d", "two: d")
	}
	s.reloaded("error", "4")
	s.err.Await(t, `"level":"ERROR","msg":"reload failed; the old configuration stays in use","cause":".*in use`)
	if body, _ := s.admin("GET", "/v1/config"); !strings.Contains(body, two) || strings.Contains(body, one) {
		t.Errorf("the configuration in use is said to be\n%s", body)
	}

	cmdtest.WriteFile(t, s.config, cmdtest.OneListener(one))
	if body, status := s.admin("POST", "/v1/reload"); status != 200 {
		t.Errorf("reload: %d %s", status, body)
	}
	cmdtest.Says(t, s.connect("front"), "e", "one: e")
	if n := strings.Count(s.out.String(), "listening front"); n != 1 {
		t.Errorf("an unchanged listener was printed %d times", n)
	}
}

// A reload that failed is seen in the status and in the words of readiness, until one
// succeeds. It does not make the process unready.
func TestAFailedReloadIsTold(t *testing.T) {
	s := serveFile(t, cmdtest.OneListener(cmdtest.NamedEcho(t, "one")))
	cmdtest.Says(t, s.connect("front"), "a", "one: a")
	seen := func() (status, ready, command string) {
		t.Helper()
		status, _ = s.admin("GET", "/v1/status")
		ready, code := s.admin("GET", "/readyz?verbose")
		if code != 200 {
			t.Errorf("/readyz: %d %s", code, ready)
		}
		var out strings.Builder
		root := &cobra.Command{Use: "ambassador"}
		root.AddCommand(cli.Commands(program.World{Stdout: &out, Stderr: io.Discard, Env: cmdtest.EnvOf()})...)
		root.SetArgs([]string{"status", "--admin", s.addr("admin")})
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Error(err)
		}
		return status, ready, out.String()
	}
	if status, _, _ := seen(); strings.Contains(status, "last_reload") {
		t.Errorf("before the first reload:\n%s", status)
	}
	cmdtest.WriteFile(t, s.config, "listeners: {}\nnothing: {}\n")
	s.signals <- syscall.SIGHUP
	s.reloaded("error", "1")
	status, ready, command := seen()
	if !strings.Contains(status, `"last_reload"`) || !strings.Contains(status, "unknown key") {
		t.Errorf("/v1/status:\n%s", status)
	}
	for what, text := range map[string]string{"/readyz": ready, "status": command} {
		if !strings.Contains(text, "failed, and the configuration of ") || !strings.Contains(text, "unknown key") {
			t.Errorf("%s:\n%s", what, text)
		}
	}
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener(cmdtest.NamedEcho(t, "two")))
	s.signals <- syscall.SIGHUP
	s.reloaded("ok", "1")
	status, ready, command = seen()
	if all := status + ready + command; strings.Contains(all, "failed, and") || !strings.Contains(status, `"last_reload"`) {
		t.Errorf("after a reload that succeeded:\n%s", all)
	}
}

// The mode and owner of the admin socket are configured, and a reload changes them.
func TestModeOfTheAdminSocket(t *testing.T) {
	path := filepath.Join(cmdtest.ShortDir(t), "a")
	config := func(keys string) string {
		return cmdtest.OneListener("127.0.0.1:1", `admin: {listen: "unix:`+path+`"`+keys+`}`)
	}
	owner := strconv.Itoa(os.Getuid())
	if os.Getuid() == 0 {
		owner = "12345:54321"
	}
	is := func(mode os.FileMode, owner string) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); info.Mode().Perm() != mode || !strings.HasPrefix(got, owner) {
			t.Errorf("mode %o, owner %s; want %o, %s", info.Mode().Perm(), got, mode, owner)
		}
	}
	s := serveFile(t, config(""))
	s.addr("admin")
	is(0o600, strconv.Itoa(os.Getuid()))
	cmdtest.WriteFile(t, s.config, config(`, mode: "0660", owner: "`+owner+`"`))
	if body, status := s.admin("POST", "/v1/reload"); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
	is(0o660, owner)
	cmdtest.WriteFile(t, s.config, config(`, mode: "0600"`)+"metrics: {listen: "+cmdtest.Occupied(t)+"}\n")
	if body, status := s.admin("POST", "/v1/reload"); status != 422 {
		t.Fatalf("reload: %d %s", status, body)
	}
	is(0o660, owner)
}

// The host part of the address of metrics and of admin may change: the port is ours.
func TestReloadOfTheHostPartOfHTTPSockets(t *testing.T) {
	var ports [2]string
	for i := range ports {
		_, ports[i], _ = net.SplitHostPort(cmdtest.Nobody(t))
	}
	config := func(host string) string {
		return cmdtest.OneListener("127.0.0.1:1", fmt.Sprintf(`admin: {listen: "%s%s", unsafe_admin_listen: true}`, host, ports[0]), fmt.Sprintf(`metrics: {listen: "%s%s"}`, host, ports[1]))
	}
	s := serveFile(t, config("127.0.0.1:"))
	s.addr("metrics")
	for i, host := range []string{"0.0.0.0:", "localhost:", "0.0.0.0:", "127.0.0.1:"} {
		cmdtest.WriteFile(t, s.config, config(host))
		s.signals <- syscall.SIGHUP
		want := fmt.Sprintf("ambassador_reloads_total{result=\"ok\"} %d\n", i+1)
		tick := time.NewTicker(10 * time.Millisecond)
		for end := time.After(cmdtest.Patience); ; {
			body, _, err := cmdtest.AskPrinted("127.0.0.1:"+ports[1], "GET", "/metrics")
			if err == nil && strings.Contains(body, want) {
				break
			}
			select {
			case <-tick.C:
				continue
			case <-end:
				t.Fatalf("%s: %v; the log:\n%s", host, err, s.err)
			}
		}
		tick.Stop()
		if body, status, err := cmdtest.AskPrinted("127.0.0.1:"+ports[0], "GET", "/livez"); err != nil || status != 200 {
			t.Errorf("%s: admin: %d %s, %v", host, status, body, err)
		}
	}
}

func TestReloadMovesTheHTTPSockets(t *testing.T) {
	folder := cmdtest.ShortDir(t)
	socket := func(name string) string { return filepath.Join(folder, name) }
	s := serveFile(t, cmdtest.OneListener("127.0.0.1:1", `admin: {listen: "unix:`+socket("a")+`"}`))
	if got := s.addr("admin"); got != "unix:"+socket("a") {
		t.Fatalf("listening admin %s", got)
	}
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener("127.0.0.1:1", `admin: {listen: "unix:`+socket("b")+`"}`, `metrics: {listen: "127.0.0.1:0"}`))
	body, status, err := cmdtest.AskPrinted("unix:"+socket("a"), "POST", "/v1/reload")
	if err != nil || status != 200 {
		t.Fatalf("the reload that gives up its own socket: %v, %d %s", err, status, body)
	}
	metrics := s.addr("metrics")
	for _, addr := range []string{"unix:" + socket("b"), metrics} {
		if _, status, err := cmdtest.AskPrinted(addr, "GET", "/livez"); err != nil || status != 200 {
			t.Errorf("%s: %v, %d", addr, err, status)
		}
	}
	if _, err := os.Stat(socket("a")); err == nil {
		if c, err := net.Dial("unix", socket("a")); err == nil {
			c.Close()
			t.Error("the old admin socket is still served")
		}
	}
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener("127.0.0.1:1", `admin: {listen: ""}`, `metrics: {listen: "127.0.0.1:0"}`))
	if _, status, err := cmdtest.AskPrinted("unix:"+socket("b"), "POST", "/v1/reload"); err != nil || status != 200 {
		t.Fatalf("reload: %v, %d", err, status)
	}
	if body, status, err := cmdtest.AskPrinted(metrics, "GET", "/metrics"); err != nil || status != 200 || !strings.Contains(body, `ambassador_reloads_total{result="ok"} 2`) {
		t.Errorf("the metrics' unchanged socket: %v, %d", err, status)
	}
	s.signals <- syscall.SIGTERM
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

func TestReloadTakesUpTheLogSection(t *testing.T) {
	s := serveFile(t, cmdtest.OneListener("127.0.0.1:1", "log: {level: error}"))
	s.addr("admin")
	if got := s.err.String(); got != "" {
		t.Errorf("at level error it logged\n%s", got)
	}
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener("127.0.0.1:1", "log: {level: debug, format: text}"))
	s.signals <- syscall.SIGHUP
	s.err.Await(t, "level=INFO msg=reloaded")
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener("127.0.0.1:1", "log: {format: json}", "metrics: {listen: "+cmdtest.Occupied(t)+"}"))
	s.signals <- syscall.SIGHUP
	s.err.Await(t, "level=ERROR msg=\"reload failed") // the log format is still text
}

func TestWithoutAFileThereIsNothingToReload(t *testing.T) {
	s := serveFile(t, cmdtest.OneListener("127.0.0.1:1"), func(_ *served, o *Options) { o.Load = nil })
	s.signals <- syscall.SIGHUP
	s.err.Await(t, "no configuration file to reload; the certificates and users are looked at")
	if body, status := s.admin("POST", "/v1/reload"); status != 409 {
		t.Errorf("reload: %d %s", status, body)
	}
	s.running()
}

func TestFileWatch(t *testing.T) {
	path := cmdtest.WriteConfig(t, "one")
	synctest.Test(t, func(t *testing.T) {
		w := newFileWatch(path)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var changes atomic.Int32
		go w.run(ctx, func() { changes.Add(1) }) // ends with ctx
		after := func(looks int, want int32, what string) {
			t.Helper()
			time.Sleep(time.Duration(looks) * watchInterval) // in the bubble: no real time
			synctest.Wait()
			if got := changes.Load(); got != want {
				t.Errorf("%s: %d changes, want %d", what, got, want)
			}
		}
		after(10, 0, "nothing happens")
		cmdtest.WriteFile(t, path, "two, half writ")
		after(1, 0, "it is being written")
		cmdtest.WriteFile(t, path, "two, half written")
		after(1, 0, "it was written a moment ago")
		after(2, 1, "it is another one")
		after(10, 1, "nothing happens again")
		os.Remove(path)
		after(10, 1, "it is gone")
		cmdtest.WriteFile(t, path, "two, half written")
		after(10, 1, "it is back, unchanged")
		cmdtest.WriteFile(t, path+".new", "three")
		os.Rename(path+".new", path)
		after(3, 2, "it was replaced")
	})
}

func TestWatchReloads(t *testing.T) {
	one, two := cmdtest.NamedEcho(t, "one"), cmdtest.NamedEcho(t, "two")
	s := serveFile(t, cmdtest.OneListener(one), func(s *served, o *Options) { o.watch = newFileWatch(s.config) })
	cmdtest.Says(t, s.connect("front"), "a", "one: a")
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener(two))
	s.err.Await(t, `"msg":"reloaded"`)
	cmdtest.Says(t, s.connect("front"), "b", "two: b")
}

// A reload that finds a pipe fails at once, and the next reload works as usual.
func TestReloadWithAPipe(t *testing.T) {
	one, two := cmdtest.NamedEcho(t, "one"), cmdtest.NamedEcho(t, "two")
	s := serveFile(t, cmdtest.OneListener(one))
	folder := t.TempDir()
	token := cmdtest.Fifo(t, filepath.Join(folder, "token"))
	refused := func(want string) {
		t.Helper()
		body, status := s.admin("POST", "/v1/reload")
		if status != 422 || !strings.Contains(body, want) {
			t.Errorf("reload: %d %s; want 422 and %q", status, body, want)
		}
		cmdtest.Says(t, s.connect("front"), "a", "one: a")
	}
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener(two, fmt.Sprintf("admin: {token_file: %q}", token)))
	refused("admin.token_file: read " + token + ": it is a pipe, not a regular file")
	if err := os.Remove(s.config); err != nil {
		t.Fatal(err)
	}
	cmdtest.Fifo(t, s.config) // nothing writes to it
	refused(s.config + ": a pipe cannot be read again")
	if err := os.Remove(s.config); err != nil {
		t.Fatal(err)
	}
	cmdtest.WriteFile(t, s.config, cmdtest.OneListener(two))
	if body, status := s.admin("POST", "/v1/reload"); status != 200 {
		t.Errorf("the reload after that: %d %s", status, body)
	}
	cmdtest.Says(t, s.connect("front"), "b", "two: b")
}
