package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSystemdSockets proves that the sockets of one unit, which systemd passes by one
// name, are all served, before a reload and after it.
func TestSystemdSockets(t *testing.T) {
	t.Parallel()
	need(t, "sh")
	srv := startServer(t, nil, echoLines)
	var files []*os.File
	var addrs []string
	for _, at := range []string{"127.0.0.1:0", "127.0.0.1:0"} { // two ListenStream of one unit
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addrs = append(files, f), append(addrs, ln.Addr().String())
	}
	config := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "systemd:front.socket", upstream: up}
upstreams:
  up: {endpoints: ["%s"]}
`, srv.addr))
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=front.socket:front.socket exec "$@"`, "sh", binary, "run", "-c", config)
	cmd.ExtraFiles = files
	a := startCmd(t, cmd)
	served := func() {
		t.Helper()
		for _, addr := range addrs {
			c, err := dial(t.Context(), addr)
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			line(t, c, "by systemd")
			c.Close()
		}
	}
	a.addr("admin") // printed after the listeners
	for _, addr := range addrs {
		if !strings.Contains(a.stdout.String(), "listening front "+addr+"\n") {
			t.Errorf("%s was not printed:\n%s", addr, a.stdout)
		}
	}
	served()
	if _, code := a.ask("reload"); code != 0 {
		t.Errorf("reload: exit code %d", code)
	}
	served()

	nothing := start(t, "run", "-c", config)
	nothing.ended(1)
	if !strings.Contains(nothing.stderr.String(), "front.socket") {
		t.Errorf("without the socket: %s; want its name", nothing.stderr)
	}
}

// TestNotify proves that systemd hears READY=1 only after the upstream has been
// reached, RELOADING=1 around a reload, and STOPPING=1 when the drain begins.
func TestNotify(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: up}
upstreams:
  up: {endpoints: ["127.0.0.1:%s"]}
`, port))
	cmd := exec.Command(binary, "run", "-c", config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+conn.LocalAddr().String())
	a := startCmd(t, cmd)
	a.addr("front")
	a.await(`"upstream not reached yet".*"reason":"refused"`)
	srv, err := serveAt("127.0.0.1:"+port, nil, echoLines)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.close)
	notified(t, conn, "READY=1")
	a.signal(syscall.SIGHUP)
	notified(t, conn, "RELOADING=1")
	notified(t, conn, "READY=1")
	a.signal(syscall.SIGTERM)
	notified(t, conn, "STOPPING=1")
	a.ended(0)
}

// notified reads messages until one has that line, and fails at any message
// about readiness that should not come before it.
func notified(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no %s: %v", want, err)
		}
		for l := range strings.SplitSeq(string(buf[:n]), "\n") {
			switch l {
			case want:
				return
			case "READY=1", "STOPPING=1":
				t.Fatalf("%s came before %s", l, want)
			}
		}
	}
}

// TestReady proves that /readyz turns 200 once every required upstream has been
// reached, stays so when the upstream goes away, and turns 503 for a drain.
func TestReady(t *testing.T) {
	t.Parallel()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, "forward", "--plain", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:"+port)
	ready := func(want int, words string) {
		t.Helper()
		err := eventually(patience, func() error {
			body, status, err := get(a.process, "/readyz?verbose")
			if err != nil || status != want || !strings.Contains(body, words) {
				return fmt.Errorf("GET /readyz: %d %q, %v; want %d with %q", status, body, err, want, words)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	ready(503, "refused")
	srv, err := serveAt("127.0.0.1:"+port, nil, echoLines)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.close)
	ready(200, "")
	conn := a.connect("forward")
	line(t, conn, "live")
	if _, code := a.ask("drain"); code != 0 {
		t.Errorf("drain: exit code %d", code)
	}
	ready(503, "drain")
	if body, status, err := get(a.process, "/livez"); status != 200 || err != nil {
		t.Errorf("GET /livez while draining: %d %q %v", status, body, err)
	}
}

// TestReloadUnderLoad proves that reloads, good and bad, under a load of sessions fail
// none of them.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	one, two := startServer(t, nil, echo), startServer(t, nil, echo)
	file := filepath.Join(t.TempDir(), "ambassador.yaml")
	write := func(upstream string) {
		t.Helper()
		text := fmt.Sprintf("listeners:\n  front: {listen: \"127.0.0.1:0\", upstream: up}\nupstreams:\n  up: {endpoints: [%q]}\n  known: {endpoints: [%q, %q]}\n", upstream, one.addr, two.addr)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(one.addr)
	a := start(t, "run", "-c", file)
	addr := a.addr("front")
	live := a.connect("front")
	done, errs := make(chan struct{}), make(chan error, 4)
	for range cap(errs) {
		go func() { // the end of the test waits for it
			var err error
			for n := 0; err == nil; n++ {
				select {
				case <-done:
					errs <- nil
					return
				default:
					err = exchange(addr, strings.Repeat("y", 1+n%60000))
				}
			}
			errs <- err
		}()
	}
	for i := range 10 {
		write([]string{two.addr, one.addr, "no port"}[i%3])
		a.ask("reload")
	}
	close(done)
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if _, err := live.Write([]byte("still\n")); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 6)
	if _, err := live.Read(buf); err != nil || string(buf) != "still\n" {
		t.Errorf("the session from before the reloads says %q, %v", buf, err)
	}
	a.metric("ambassador_reloads_total{result=ok}", 7)
	a.metric("ambassador_reloads_total{result=error}", 3)
}

// TestDrainUnderLoad proves that SIGTERM under a load of sessions fails none of them:
// accepted connections are served to their end, later ones are refused, and the process
// ends cleanly.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	srv := startServer(t, keys.mtls(t), echo)
	a := start(t, append([]string{"forward", "--listen", "127.0.0.1:0", "--to", srv.addr, "--server-name", "localhost"}, keys.client()...)...)
	addr := a.addr("forward")
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { // the loop below waits for it
			for n := 0; ; n++ {
				if err := exchange(addr, strings.Repeat("z", 1+n*997%200000)); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	a.metric("ambassador_sessions_total{reason=closed}", 100)
	a.signal(syscall.SIGTERM)
	for range cap(errs) {
		// A connection that waits in the queue of a socket that closes is reset by
		// the kernel; later ones are refused.
		if err := <-errs; !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client ended with %v, want refused", err)
		}
	}
	a.ended(0)
	if m := regexp.MustCompile(`(?m)^.*"reason":"(shutdown|internal|drained|upstream_\w+|downstream_\w+)".*$`).FindString(a.stderr.String()); m != "" {
		t.Errorf("a session was not served to its end: %s", m)
	}
}
