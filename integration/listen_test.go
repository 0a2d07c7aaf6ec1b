package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestListenFamilies proves with ss and nc which families an address of a listener
// accepts, inside the sandbox and outside it.
func TestListenFamilies(t *testing.T) {
	t.Parallel()
	need(t, "ss")
	needNetcat(t)
	if ln, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skip("this host has no IPv6")
	} else {
		ln.Close()
	}
	srv := startServer(t, nil, echo)
	for _, sandbox := range []string{"auto", "off"} {
		var ports []any
		for range 4 {
			port, err := freePort()
			if err != nil {
				t.Fatal(err)
			}
			ports = append(ports, port)
		}
		text := fmt.Sprintf(`
sandbox: {landlock: "%s"}
admin: {listen: ""}
upstreams: {up: {endpoints: [%q]}}
listeners:
  four: {listen: "0.0.0.0:%s", unsafe_plaintext_listen: true, upstream: up}
  both: {listen: "[::]:%s", unsafe_plaintext_listen: true, upstream: up}
  pair: {listen: ["[::]:%s", "0.0.0.0:%[5]s"], unsafe_plaintext_listen: true, upstream: up}
  local: {listen: %s, upstream: up}
`, append([]any{sandbox, srv.addr}, ports...)...)
		a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", text))
		a.addr("local")
		shown := run(t, exec.Command("ss", "-ltnH"))
		for i, want := range [][]string{{"0.0.0.0:"}, {"*:"}, {"0.0.0.0:", "[::]:"}, {"127.0.0.1:", "[::1]:"}} {
			for _, at := range want {
				if !regexp.MustCompile(`(?m)\s` + regexp.QuoteMeta(at+ports[i].(string)) + `\s`).MatchString(shown) {
					t.Errorf("sandbox %s: nothing listens at %s%s:\n%s", sandbox, at, ports[i], shown)
				}
			}
			for _, host := range []string{"127.0.0.1", "::1"} {
				cmd := exec.Command("nc", "-N", "-w", "10", host, ports[i].(string))
				cmd.Stdin = strings.NewReader("hello\n")
				got, _, err := try(cmd)
				if ok := err == nil && got == "hello"; ok == (i == 0 && host == "::1") {
					t.Errorf("sandbox %s: nc %s %s: %q, %v", sandbox, host, ports[i], got, err)
				}
			}
		}
	}
}

// TestTmpfilesKeepsOurSockets proves that systemd-tmpfiles does not take the sockets of a
// running process for old files, and that a socket whose file is removed nevertheless is
// told by readiness and made anew by a reload.
func TestTmpfilesKeepsOurSockets(t *testing.T) {
	t.Parallel()
	need(t, "systemd-tmpfiles")
	needNetcat(t)
	srv, dir := startServer(t, nil, echo), shortDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: in("dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
admin: {listen: "unix:%s"}
metrics: {listen: "127.0.0.1:0"}
upstreams: {up: {endpoints: [%q]}}
listeners: {front: {listen: "unix:%s", socket: {mode: "0666"}, upstream: up}}
`, in("admin"), srv.addr, in("front"))))
	a.addr("front")
	echoed := func() {
		t.Helper()
		cmd := exec.Command("nc", "-N", "-U", in("front"))
		cmd.Stdin = strings.NewReader("hello\n")
		if got, _, err := try(cmd); err != nil || got != "hello" {
			t.Errorf("nc -U: %q, %v", got, err)
		}
	}
	run(t, exec.Command("systemd-tmpfiles", "--clean", writeFile(t, "old.conf", "d "+dir+" 0755 - - 0\n")))
	if _, err := os.Lstat(in("dead")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("systemd-tmpfiles removes nothing: %v", err)
	}
	echoed()
	if _, code := a.ask("status"); code != 0 {
		t.Errorf("status: exit code %d", code)
	}

	for _, name := range []string{"front", "admin"} {
		if err := os.Remove(in(name)); err != nil {
			t.Fatal(err)
		}
	}
	a.metricsReady(503, "listener front: the file of unix:"+in("front")+" was removed or replaced")
	a.signal(syscall.SIGHUP)
	a.await(`"msg":"reloaded"`)
	a.metricsReady(200, "ready")
	echoed()
	if _, code := a.ask("status"); code != 0 {
		t.Errorf("status after the reload: exit code %d", code)
	}
	if info, err := os.Lstat(in("front")); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the file that was made anew: %v, %v", info, err)
	}
}

// metricsReady waits until /readyz of the metrics' listener answers so.
func (a *ambassador) metricsReady(want int, words string) {
	a.t.Helper()
	err := eventually(patience, func() error {
		body, status, err := requestAt(a.addr("metrics"), "GET", "/readyz?verbose")
		if err != nil || status != want || !strings.Contains(body, words) {
			return fmt.Errorf("GET /readyz: %d %q, %v; want %d with %q", status, body, err, want, words)
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
}
