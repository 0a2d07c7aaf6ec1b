package integration

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// onlyLinux skips a test of upgrades elsewhere: there are none.
func onlyLinux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux upgrades in place")
	}
}

// several is an upstream whose client says on its first line what to do: echo, or, after
// the client's end and a word of the test, the SHA-256 of what came.
func several(answer <-chan struct{}) func(*server, duplex) {
	return func(s *server, c duplex) {
		in := bufio.NewReader(c)
		how, err := in.ReadString('\n')
		switch {
		case err != nil:
		case how == "echo\n":
			io.Copy(c, in)
			c.CloseWrite()
		default:
			h := sha256.New()
			if _, err := io.Copy(h, in); err != nil {
				s.report("sum: " + err.Error())
				return
			}
			select {
			case <-answer:
			case <-s.done:
			}
			fmt.Fprintf(c, "%x\n", h.Sum(nil))
			c.CloseWrite()
		}
	}
}

// opened connects and says the first line.
func opened(t testing.TB, addr, how string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintln(c, how)
	return c.(*net.TCPConn)
}

// pinged sends a text through an echo and waits for it.
func pinged(c net.Conn, text string) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		return fmt.Errorf("echo of %q is %q, %w", text, got, err)
	}
	return nil
}

// pingedAll is pinged for many at once.
func pingedAll(t testing.TB, conns []net.Conn, text string) {
	t.Helper()
	failures := make(chan error, len(conns))
	for _, c := range conns {
		go func() { failures <- pinged(c, text) }() // ends by pinged's bound; awaited below
	}
	for range conns {
		if err := <-failures; err != nil {
			t.Fatal(err)
		}
	}
}

// bulk sends noise through an echo until stop, then ends, and compares all that comes
// back. It is one of that many: together they send 50 MB a second, so that the machine has
// time for the others.
func bulk(c duplex, seed uint64, many int, stop *atomic.Bool) error {
	sent, got := sha256.New(), sha256.New()
	failed := make(chan error, 1)
	go func() { // ends with the connection; awaited below
		b, from := make([]byte, 256<<10), noise(seed)
		for wait := int(seed); !stop.Load(); wait = many { // each at its time
			time.Sleep(time.Duration(wait) * 5 * time.Millisecond)
			io.ReadFull(from, b)
			sent.Write(b)
			if _, err := c.Write(b); err != nil {
				failed <- err
				return
			}
		}
		failed <- c.CloseWrite()
	}()
	_, err := io.Copy(got, c)
	if err = errors.Join(err, <-failed); err == nil && !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		err = errors.New("other bytes came back")
	}
	return err
}

// pulse sends short texts through an echo, one after the other, and keeps the longest
// time that an answer took.
type pulse struct {
	conn    net.Conn
	stop    chan struct{}
	err     chan error
	longest time.Duration // valid after end
}

func newPulse(c net.Conn) *pulse {
	p := &pulse{conn: c, stop: make(chan struct{}), err: make(chan error, 1)}
	go func() { p.err <- p.run() }() // end waits for it
	return p
}

func (p *pulse) run() error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		began := time.Now()
		if err := pinged(p.conn, "pulse\n"); err != nil {
			return err
		}
		p.longest = max(p.longest, time.Since(began))
		select {
		case <-tick.C:
		case <-p.stop:
			return nil
		}
	}
}

// end stops the pulse and returns the longest time of an answer.
func (p *pulse) end(t testing.TB) time.Duration {
	t.Helper()
	close(p.stop)
	if err := <-p.err; err != nil {
		t.Errorf("a session with a short text every millisecond: %v", err)
	}
	return p.longest
}

// counters are the values of all series that must not fall.
func (a *ambassador) counters() map[string]float64 {
	a.t.Helper()
	text, status, err := get(a.process, "/metrics")
	if err != nil || status != 200 {
		a.t.Fatalf("/metrics: %d %v", status, err)
	}
	out, counts := map[string]float64{}, map[string]bool{}
	for l := range strings.SplitSeq(text, "\n") {
		if f := strings.Fields(l); len(f) == 4 && f[1] == "TYPE" {
			counts[f[2]] = f[3] == "counter" || f[3] == "histogram"
			continue
		}
		name, value, ok := strings.Cut(l, " ")
		series, _, _ := strings.Cut(name, "{")
		for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
			if base, is := strings.CutSuffix(series, suffix); ok && is && counts[base] && strings.HasPrefix(base, "ambassador_") {
				if v, err := strconv.ParseFloat(value, 64); err == nil {
					out[name] = v
				}
			}
		}
	}
	return out
}

// notLess checks that no counter has fallen or gone.
func (a *ambassador) notLess(before map[string]float64) {
	a.t.Helper()
	after := a.counters()
	for name, was := range before {
		if is, ok := after[name]; !ok || is < was {
			a.t.Errorf("%s was %v and is %v (there: %v)", name, was, is, ok)
		}
	}
}

// upgradeResult is what `upgrade --json` prints.
type upgradeResult struct {
	Carried, Ended int
	Pause          float64
	Error          string
}

// upgrade runs `ambassador upgrade` and expects that it succeeds.
func (a *ambassador) upgrade(args ...string) (r upgradeResult) {
	a.t.Helper()
	stdout, code := a.ask(append([]string{"upgrade", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != 0 {
		a.t.Fatalf("upgrade: exit code %d, %v: %s", code, err, stdout)
	}
	return r
}

// size is how many sessions and upgrades a test has.
func size(sessions, upgrades, longSessions, longUpgrades int) (int, int) {
	if long() {
		return longSessions, longUpgrades
	}
	return sessions, upgrades
}

// TestUpgrade proves that plain sessions go on through upgrades: quiet ones, bulk in both
// directions, and those whose client has ended and waits for its answer; with listeners of
// TCP and unix; that no counter falls, and that `why` knows sessions from before.
func TestUpgrade(t *testing.T) {
	onlyLinux(t)
	if !long() { // else each needs most of the descriptors of this process
		t.Parallel()
	}
	sessions, upgrades := size(300, 3, 3000, 10)
	answer := make(chan struct{})
	srv := startServer(t, nil, several(answer))
	path := filepath.Join(shortDir(t), "in.sock")
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: up, timeouts: {idle: 10m}}
  local: {listen: "unix:%s", upstream: up}
upstreams: {up: {endpoints: ["%s"]}}
metrics: {listen: "127.0.0.1:0"}
`, path, srv.addr)))
	addr, metrics := a.addr("front"), a.addr("metrics")
	pid := a.cmd.Process.Pid

	over := opened(t, addr, "echo")
	if err := pinged(over, "x"); err != nil {
		t.Fatal(err)
	}
	over.CloseWrite()
	io.Copy(io.Discard, over)
	ended := a.endsAs(over, "relay", "closed")

	var conns []net.Conn
	unix, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	fmt.Fprintln(unix, "echo")
	conns = append(conns, unix)
	for range sessions {
		conns = append(conns, opened(t, addr, "echo"))
	}
	half := opened(t, addr, "sum")
	io.WriteString(half, "a question")
	half.CloseWrite()
	pingedAll(t, conns, "before\n")
	var stop atomic.Bool
	var running sync.WaitGroup
	failures := make(chan error, sessions)
	for i := range sessions / 10 {
		c := opened(t, addr, "echo")
		running.Go(func() { // awaited below
			if err := bulk(c, uint64(i), sessions/10, &stop); err != nil {
				failures <- fmt.Errorf("bulk session %v: %w", c.LocalAddr(), err)
			}
		})
	}
	for i := range upgrades {
		before := a.counters()
		p := newPulse(conns[len(conns)-1])
		r := a.upgrade()
		longest := p.end(t)
		if want := sessions + sessions/10 + 2; r.Carried != want || r.Ended != 0 {
			t.Fatalf("upgrade %d: %+v, want %d carried", i, r, want)
		}
		a.notLess(before)
		pingedAll(t, conns, fmt.Sprintf("after upgrade %d\n", i))
		t.Logf("upgrade %d: %d carried, pause %.3f s, longest answer %.3f s", i, r.Carried, r.Pause, longest.Seconds())
	}
	stop.Store(true)
	running.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	close(answer)
	half.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(half); err != nil || string(got) != fmt.Sprintf("%x\n", sha256.Sum256([]byte("a question"))) {
		t.Errorf("the late answer is %q, %v", got, err)
	}

	if out, code := a.ask("why", ended.ID); code != 0 || !strings.Contains(out, ended.ID) {
		t.Errorf("why does not know a session from before: %q", out)
	}
	_, port, _ := net.SplitHostPort(conns[1].LocalAddr().String())
	if out, code := a.ask("why", port); code != 0 || !strings.Contains(out, "still open, in stage relay") || !strings.Contains(out, ":"+port+" on listener front") {
		t.Errorf("why does not know a session that began before: %q", out)
	}
	if out, code := a.ask("status"); code != 0 || !strings.Contains(out, "carried over") || !strings.Contains(out, fmt.Sprintf("pid %d", pid)) {
		t.Errorf("status says %q", out)
	}
	fresh := opened(t, addr, "echo")
	if err := pinged(fresh, "a new session\n"); err != nil {
		t.Error(err)
	}
	if body, status, err := requestAt(metrics, "GET", "/metrics"); err != nil || status != 200 || !strings.Contains(body, fmt.Sprintf(`ambassador_upgrade_sessions_total{result="carried"} %d`, upgrades*(sessions+sessions/10+2))) {
		t.Errorf("metrics.listen answers %d, %v", status, err)
	}
	for _, c := range conns {
		c.(duplex).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Error(err)
		}
	}
	a.signal(syscall.SIGTERM)
	fresh.Close()
	a.ended(0)
}

// otherProgram writes a script that takes the place of the ambassador.
func otherProgram(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestUpgradeRefused proves that the running program goes on with every session when the
// next one cannot take its place, and that the reason is told.
func TestUpgradeRefused(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	srv := startServer(t, nil, echo)
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
upstreams: {up: {endpoints: ["%s"]}}
sandbox: {landlock: off}
`, srv.addr))
	a := start(t, "run", "-c", file)
	c, err := net.Dial("tcp", a.addr("front"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	refused := func(want string, args ...string) {
		t.Helper()
		_, stderr, code, err := ask(a.process, append([]string{"upgrade"}, args...)...)
		if err != nil || code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("upgrade %v: exit code %d, %v, stderr %q, want %q", args, code, err, stderr, want)
		}
		if err := pinged(c, "still here\n"); err != nil {
			t.Fatal(err)
		}
	}
	refused("no such file", "--binary", "/nonexistent/ambassador")
	plain := filepath.Join(t.TempDir(), "plain")
	os.WriteFile(plain, []byte("text"), 0o644)
	refused("permission denied", "--binary", plain)
	refused("not that of an ambassador", "--binary", "/bin/true")
	refused("takes over sessions in form 99", "--binary", otherProgram(t, `echo '{"version":"v9","handover":99}'`))
	refused("takes over sessions in form 0", "--binary", otherProgram(t, `echo '{"version":"v0"}'`))
	refused("it is broken", "--binary", otherProgram(t, `[ "$1" = version ] && exec `+binary+` version --json; echo it is broken >&2; exit 1`))
	refused("has changed since it was checked", "--binary", otherProgram(t, `[ "$1" = version ] && exec `+binary+` version --json; cp "$0" "$0.new" && mv "$0.new" "$0"; exec `+binary+` "$@"`))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(file, append(good, "nonsense: true\n"...), 0o600)
	refused("nonsense", "--dry-run")
	refused("nonsense")
	os.WriteFile(file, good, 0o600)
	gate := filepath.Join(t.TempDir(), "gate")
	slow := otherProgram(t, "touch "+gate+"; while [ -e "+gate+" ]; do sleep 0.1; done; exec "+binary+` "$@"`)
	slowly := make(chan int, 1)
	go func() {
		_, _, code, _ := ask(a.process, "upgrade", "--dry-run", "--binary", slow)
		slowly <- code
	}()
	if err := eventually(patience, func() error { _, err := os.Stat(gate); return err }); err != nil {
		t.Fatal("the slow program is not asked: ", err)
	}
	refused("another upgrade is running")
	refused("another upgrade is running", "--dry-run")
	os.Rename(slow, slow+".old") // its next question goes at once to the program itself
	os.Symlink(binary, slow)
	os.Remove(gate)
	if code := <-slowly; code != 0 {
		t.Errorf("the slow dry run: exit code %d", code)
	}
	if out, code := a.ask("upgrade", "--dry-run"); code != 0 || !strings.Contains(out, "1 session carried over") {
		t.Errorf("dry run: %d %q", code, out)
	}
	if r := a.upgrade(); r.Carried != 1 {
		t.Errorf("the upgrade that can succeed: %+v", r)
	}
	if err := pinged(c, "upgraded\n"); err != nil {
		t.Error(err)
	}
}

func stated(t testing.TB, path string) os.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestUpgradeGoesBack proves that the program before goes on with the same sessions, and
// the same files of unix sockets, if the next one fails after it has replaced it.
func TestUpgradeGoesBack(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	srv := startServer(t, nil, echo)
	local := filepath.Join(shortDir(t), "in.sock")
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {local: {listen: "unix:%s", upstream: up}, front: {listen: "127.0.0.1:0", upstream: up}}
upstreams: {up: {endpoints: ["%s"]}}
sandbox: {landlock: off}
`, local, srv.addr))
	a := start(t, "run", "-c", file)
	c, err := net.Dial("tcp", a.addr("front"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := pinged(c, "before\n"); err != nil {
		t.Fatal(err)
	}
	admin := strings.TrimPrefix(a.addr("admin"), "unix:")
	files := []os.FileInfo{stated(t, local), stated(t, admin)}
	// The next program binds a port that is taken: the checks cannot know that.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	good, _ := os.ReadFile(file)
	os.WriteFile(file, []byte(strings.Replace(string(good), "upstream: up}}", `upstream: up}, taken: {listen: "`+ln.Addr().String()+`", upstream: up}}`, 1)), 0o600)
	for range 2 {
		before := a.counters()
		_, stderr, code, err := ask(a.process, "upgrade")
		if err != nil || code != 1 || !strings.Contains(stderr, "went back") || !strings.Contains(stderr, "in use") {
			t.Fatalf("upgrade: exit code %d, %v, stderr %q", code, err, stderr)
		}
		if err := pinged(c, "after\n"); err != nil {
			t.Fatal(err)
		}
		for i, path := range []string{local, admin} {
			if !os.SameFile(stated(t, path), files[i]) {
				t.Errorf("%s was made anew", path)
			}
		}
		a.notLess(before)
	}
	os.WriteFile(file, good, 0o600)
	if r := a.upgrade(); r.Carried != 1 {
		t.Errorf("the upgrade that can succeed: %+v", r)
	}
	if err := pinged(c, "upgraded\n"); err != nil {
		t.Error(err)
	}
}

// TestUpgradeTLS proves that sessions with TLS 1.3 go on through upgrades: those that we
// originate and those that we terminate, quiet ones and bulk.
func TestUpgradeTLS(t *testing.T) {
	onlyLinux(t)
	if !long() { // else each needs most of the descriptors of this process
		t.Parallel()
	}
	sessions, upgrades := size(100, 3, 3000, 10)
	keys := newPKI(t)
	srv, plain := startServer(t, keys.mtls(t), echo), startServer(t, nil, echo)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  out: {listen: "127.0.0.1:0", upstream: secure}
  in: {listen: "127.0.0.1:0", upstream: plain, tls: {identity: server, client: none}}
upstreams:
  secure: {endpoints: ["%s"], tls: {identity: me, server_name: localhost, ca: %s}}
  plain: {endpoints: ["%s"]}
identities:
  me: {files: {cert: %s, key: %s}}
  server: {files: {cert: %s, key: %s}}
`, srv.addr, keys.file("ca.crt"), plain.addr, keys.file("client.crt"), keys.file("client.key"), keys.file("server.crt"), keys.file("server.key"))))
	dial := func(i int) net.Conn {
		var c net.Conn
		var err error
		if i%2 == 0 {
			c, err = net.Dial("tcp", a.addr("out"))
		} else {
			c, err = tls.Dial("tcp", a.addr("in"), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var conns []net.Conn
	for i := range sessions {
		conns = append(conns, dial(i))
	}
	pingedAll(t, conns, "before\n")
	var stop atomic.Bool
	var running sync.WaitGroup
	failures := make(chan error, sessions)
	for i := range sessions / 10 {
		c := dial(i)
		running.Go(func() { // awaited below
			if err := bulk(c.(duplex), uint64(i), sessions/10, &stop); err != nil {
				failures <- fmt.Errorf("bulk session %v: %w", c.LocalAddr(), err)
			}
		})
	}
	for i := range upgrades {
		p := newPulse(conns[i%2])
		r := a.upgrade()
		longest := p.end(t)
		if want := sessions + sessions/10; r.Carried != want || r.Ended != 0 {
			t.Fatalf("upgrade %d: %+v, want %d carried", i, r, want)
		}
		pingedAll(t, conns, fmt.Sprintf("after upgrade %d\n", i))
		t.Logf("upgrade %d: %d carried, pause %.3f s, longest answer %.3f s", i, r.Carried, r.Pause, longest.Seconds())
	}
	stop.Store(true)
	running.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	for _, c := range conns {
		c.(duplex).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Error(err)
		}
	}
}

// TestUpgradeEndsTLS proves that sessions with TLS 1.2 are counted beforehand, end with a
// reset, and have a record; and that --wait lets idle ones end in good order.
func TestUpgradeEndsTLS(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	keys := newPKI(t)
	srv := startServer(t, keys.mtls(t), echo)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
drain: {timeout: 10s}
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
upstreams:
  up: {endpoints: ["%s"], tls: {identity: me, server_name: localhost, ca: %s, max_version: "1.2"}}
identities: {me: {files: {cert: %s, key: %s}}}
`, srv.addr, keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"))))
	dial := func() net.Conn {
		c, err := net.Dial("tcp", a.addr("front"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := pinged(c, "over TLS\n"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := dial()
	if out, code := a.ask("upgrade", "--dry-run"); code != 0 || !strings.Contains(out, "0 sessions carried over, 1 with TLS 1.2") {
		t.Errorf("dry run: %d %q", code, out)
	}
	if r := a.upgrade(); r.Carried != 0 || r.Ended != 1 {
		t.Errorf("upgrade: %+v, want 1 ended", r)
	}
	resetByPeer(t, c)
	a.endsAs(c, "relay", "shutdown")
	a.metric(`ambassador_upgrade_sessions_total{result="ended"}`, 1)
	c = dial()
	if r := a.upgrade("--wait"); r.Carried != 0 || r.Ended != 0 {
		t.Errorf("upgrade --wait: %+v, want none", r)
	}
	if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
		t.Errorf("after --wait: %q, %v", got, err)
	}
	a.endsAs(c, "relay", "drained")
}

// TestUpgradeKilled proves that no session ends as if it were complete when the next
// program is killed before it has taken the sessions over.
func TestUpgradeKilled(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	times, _ := size(2, 0, 50, 0)
	srv := startServer(t, nil, echo)
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
upstreams: {up: {endpoints: ["%s"]}}
sandbox: {landlock: off}
`, srv.addr))
	killed := otherProgram(t, `[ -n "$AMBASSADOR_HANDOVER" ] && kill -9 $$; exec `+binary+` "$@"`)
	for range times {
		a := start(t, "run", "-c", file)
		var conns []net.Conn
		for range 20 {
			c, err := net.Dial("tcp", a.addr("front"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		pingedAll(t, conns, "here\n")
		q, err := launch(exec.Command(binary, "upgrade", "--admin", a.addr("admin"), "--binary", killed))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(patience))
			resetByPeer(t, c)
		}
		a.ended(128 + 9)
		q.signal(os.Kill)
		q.exit(patience)
	}
}

// TestUpgradeSignal proves that a signal that comes while the program is replaced does not
// kill the next one with its sessions.
func TestUpgradeSignal(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	srv := startServer(t, nil, echo)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
upstreams: {up: {endpoints: ["%s"]}}
sandbox: {landlock: off}
`, srv.addr)))
	c, err := net.Dial("tcp", a.addr("front"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := pinged(c, "here\n"); err != nil {
		t.Fatal(err)
	}
	var storm sync.WaitGroup
	stop := make(chan struct{})
	storm.Go(func() { // awaited below
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				a.signal(syscall.SIGHUP)
			}
		}
	})
	for range 3 {
		if r := a.upgrade(); r.Carried != 1 {
			t.Errorf("upgrade: %+v", r)
		}
	}
	close(stop)
	storm.Wait()
	a.await(`"msg":"reloaded"`)
	if err := pinged(c, "still here\n"); err != nil {
		t.Fatal(err)
	}
}

// TestUpgradeParked proves that an upgrade neither ends clients that have sent nothing yet,
// where they have to speak first, nor waits for them; and that their time limit goes on.
func TestUpgradeParked(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	keys := newPKI(t)
	srv := startServer(t, nil, echo)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  in: {listen: "127.0.0.1:0", upstream: up, tls: &tls {identity: server, client: none}, timeouts: {handshake: 10m}}
  brief: {listen: "127.0.0.1:0", upstream: up, tls: *tls, timeouts: {handshake: 3s}}
upstreams: {up: {endpoints: ["%s"]}}
identities: {server: {files: {cert: %s, key: %s}}}
`, srv.addr, keys.file("server.crt"), keys.file("server.key"))))
	var silent []net.Conn
	for range 20 {
		silent = append(silent, a.connect("in"))
	}
	a.metric(`ambassador_sessions_active{listener="in"}`, 20)
	if out, code := a.ask("upgrade", "--dry-run"); code != 0 || !strings.Contains(out, "20 sessions carried over") {
		t.Errorf("dry run: %d %q", code, out)
	}
	before := a.counters()
	brief := a.connect("brief")
	for range 3 {
		if r := a.upgrade(); r.Carried < 20 || r.Ended != 0 {
			t.Fatalf("upgrade: %+v, want at least 20 carried and none ended", r)
		}
	}
	a.notLess(before)
	for _, c := range silent {
		if err := pinged(tls.Client(c, &tls.Config{InsecureSkipVerify: true}), "at last\n"); err != nil {
			t.Fatal(err)
		}
	}
	brief.SetReadDeadline(time.Now().Add(patience))
	resetByPeer(t, brief)
	a.endsAs(brief, "greet", "handshake_timeout")
}
