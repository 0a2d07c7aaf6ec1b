package integration

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// insideVariable says to a copy of this test's binary that it runs in the container of
// TestRestart.
const insideVariable = "AMBASSADOR_TEST_INSIDE"

// TestRestart proves with a real systemd, and with the unit as it is shipped, that sessions
// go on through `systemctl restart`, that a stop drains them, and that they end with a reset
// if the next process does not live. TestInsideRestart is what runs in the container.
func TestRestart(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	inContainer(t, "TestInsideRestart")
}

// inContainer runs another test of this binary in a container with a real systemd.
func inContainer(t *testing.T, name string) {
	t.Helper()
	need(t, "systemd-nspawn")
	dir := shortDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "self"), text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	script := "cd /test && export " + insideVariable + "=1 AMBASSADOR_TEST_BINARY=/opt/ambassador"
	for _, v := range []string{"AMBASSADOR_TEST_LONG", "AMBASSADOR_REQUIRE_SERVERS", "AMBASSADOR_TEST_PGBIN"} {
		script += fmt.Sprintf(" %s='%s'", v, os.Getenv(v))
	}
	out := bootIn(t, dir, nil, script+"\n/test/self -test.v -test.run '^"+name+"$' 2>&1\n",
		"--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self")
	for l := range strings.Lines(out) {
		if strings.Contains(l, "restart") {
			t.Log(strings.TrimSpace(l))
		}
	}
	switch {
	case strings.Contains(out, "\n--- SKIP: "+name):
		missing(t, "a program that "+name+" needs")
	case !strings.Contains(out, "\n--- PASS: "+name):
		t.Error("the test in the container has failed")
	}
}

// shipped is the shipped unit in the container.
type shipped struct {
	t    testing.TB
	a    *ambassador // for questions alone: its process is systemd's
	keys *pki
}

// systemctl runs it and expects that it succeeds.
func (s *shipped) systemctl(args ...string) {
	s.t.Helper()
	if text, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		status, _ := exec.Command("systemctl", "status", "--no-pager", "ambassador").CombinedOutput()
		s.t.Fatalf("systemctl %v: %v: %s\n%s\n%s", args, err, text, status, tail(s.logged(), 16<<10))
	}
}

// logged is the log of the service.
func (s *shipped) logged() string {
	text, _ := os.ReadFile("/test/log")
	return string(text)
}

// override gives the unit more settings.
func (s *shipped) override(text string) {
	s.t.Helper()
	if err := os.MkdirAll("/test/units/ambassador.service.d", 0o755); err != nil {
		s.t.Fatal(err)
	}
	// Without a start limit, a journal and what the default dependencies would start.
	text = "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nStandardOutput=append:/test/log\nStandardError=append:/test/log\n" + text
	if err := os.WriteFile("/test/units/ambassador.service.d/test.conf", []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.systemctl("daemon-reload")
}

// echoInMemory is echo without the pipe that each plain connection would splice through:
// the descriptors of this process are for the sessions.
func echoInMemory(_ *server, c duplex) {
	io.Copy(struct{ io.Writer }{c}, c)
	c.CloseWrite()
}

// newShipped installs the unit, with the configuration that config returns.
func newShipped(t testing.TB, config func(keys *pki) string) *shipped {
	t.Helper()
	keys, err := writePKI("/etc/ambassador/keys")
	if err != nil {
		t.Fatal(err)
	}
	s := &shipped{t: t, keys: keys}
	unit, err := exec.Command(binary, "print", "unit").Output()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("chmod", "-R", "a+rX", keys.dir).CombinedOutput(); err != nil { // the service has a user of its own
		t.Fatalf("%v: %s", err, text)
	}
	for name, text := range map[string]string{
		"/test/units/ambassador.service":  string(unit),
		"/etc/ambassador/ambassador.yaml": "drain: {timeout: 5s}\n" + config(keys),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(binary, "/usr/local/bin/ambassador"); err != nil {
		t.Fatal(err)
	}
	said := newOutput()
	fmt.Fprintln(said, "listening admin unix:/run/ambassador/admin.sock")
	s.a = &ambassador{&process{stdout: said, stderr: newOutput(), exited: make(chan struct{})}, t}
	return s
}

// echoShipped is newShipped with an echo server behind each listener.
func echoShipped(t testing.TB) *shipped {
	t.Helper()
	return newShipped(t, func(keys *pki) string {
		plain, secure := startServer(t, nil, echoInMemory), startServer(t, keys.mtls(t), echoInMemory)
		return fmt.Sprintf(`
limits: {connections: 20000}
listeners:
  front: {listen: "127.0.0.1:7001", upstream: plain}
  out: {listen: "127.0.0.1:7002", upstream: secure}
  in: {listen: "127.0.0.1:7003", upstream: plain, tls: {identity: server, client: required, principals: [any], ca: %[3]s/ca.crt}}
  local: {listen: "unix:/run/ambassador/in.sock", upstream: plain, socket: {mode: "0666"}}
upstreams:
  plain: {endpoints: ["%[1]s"]}
  secure: {endpoints: ["%[2]s"], tls: {identity: me, server_name: localhost, ca: %[3]s/ca.crt}}
identities:
  me: {files: {cert: %[3]s/client.crt, key: %[3]s/client.key}}
  server: {files: {cert: %[3]s/server.crt, key: %[3]s/server.key}}
`, plain.addr, secure.addr, keys.dir)
	})
}

// dial connects in one of the ways that sessions have.
func (s *shipped) dial(i int) net.Conn {
	s.t.Helper()
	var c net.Conn
	var err error
	switch i % 4 {
	case 0, 1:
		c, err = net.Dial("tcp", "127.0.0.1:7001")
	case 2:
		c, err = net.Dial("tcp", "127.0.0.1:7002")
	case 3:
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(s.keys.file("client.crt"), s.keys.file("client.key")); err == nil {
			c, err = tls.Dial("tcp", "127.0.0.1:7003", &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}})
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// pinger sends pings without a pause until stop, and notes the longest answer.
type pinger struct {
	stop    atomic.Bool
	running sync.WaitGroup
	mu      sync.Mutex
	answers []int         // guarded by mu; how many each connection got
	longest time.Duration // guarded by mu
	errs    []error       // guarded by mu
}

// run pings c; end waits for it.
func (p *pinger) run(c net.Conn) {
	p.mu.Lock()
	i := len(p.answers)
	p.answers = append(p.answers, 0)
	p.mu.Unlock()
	p.running.Go(func() {
		for n := 0; !p.stop.Load(); n++ {
			began := time.Now()
			err := pinged(c, fmt.Sprintf("ping %d\n", n))
			took := time.Since(began)
			p.mu.Lock()
			p.longest = max(p.longest, took)
			p.answers[i]++
			if err != nil {
				p.errs = append(p.errs, err)
			}
			p.mu.Unlock()
			if err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond) // leave the machine to others
		}
	})
}

// pause waits until each connection has an answer to a ping of before the call, and
// returns took.
func (p *pinger) pause(t testing.TB) time.Duration {
	t.Helper()
	p.mu.Lock()
	before := slices.Clone(p.answers)
	p.mu.Unlock()
	if err := eventually(patience, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, n := range p.answers {
			if n == before[i] {
				return errors.Join(append(p.errs, fmt.Errorf("a ping has no answer yet"))...)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return p.took()
}

// took returns the longest answer since it was last called.
func (p *pinger) took() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	took := p.longest
	p.longest = 0
	return took
}

func (p *pinger) end() error {
	p.stop.Store(true)
	p.running.Wait()
	return errors.Join(p.errs...)
}

// TestInsideRestart runs in the container of TestRestart.
func TestInsideRestart(t *testing.T) {
	if !on(insideVariable) {
		t.Skip("TestRestart runs it in a container")
	}
	s := echoShipped(t)
	s.override("")
	s.systemctl("start", "ambassador")
	sessions, restarts := size(200, 2, 6000, 5)
	ended := s.dial(0)
	if err := pinged(ended, "x"); err != nil {
		t.Fatal(err)
	}
	ended.(duplex).CloseWrite()
	io.Copy(io.Discard, ended)
	var conns []net.Conn
	for i := range sessions - sessions/10 {
		conns = append(conns, s.dial(i))
	}
	unix, err := net.Dial("unix", "/run/ambassador/in.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	conns = append(conns, unix)
	pingedAll(t, conns, "before\n")
	var stop atomic.Bool
	var loads sync.WaitGroup
	failures := make(chan error, sessions)
	for i := range sessions / 10 {
		c := s.dial(i)
		loads.Go(func() { // awaited below
			if err := bulk(c.(duplex), uint64(i), sessions/10, &stop); err != nil {
				failures <- fmt.Errorf("bulk session %d: %w", i, err)
			}
		})
	}
	pings := &pinger{}
	for i := range 8 {
		pings.run(s.dial(i))
	}
	id := s.lastRecord()
	for i := range restarts {
		before := s.a.counters()
		pings.took()
		began := time.Now()
		s.systemctl("restart", "ambassador")
		took := time.Since(began)
		pause := pings.pause(t)
		pingedAll(t, conns, fmt.Sprintf("after restart %d\n", i))
		s.a.notLess(before)
		s.a.metric(`ambassador_upgrade_sessions_total{result="carried"}`, float64((i+1)*(len(conns)+sessions/10+8)))
		t.Logf("restart %d: %d sessions, systemctl took %v, longest answer to a ping %v", i, len(conns)+sessions/10+8, took.Round(time.Millisecond), pause.Round(time.Millisecond))
	}
	if out, code := s.a.ask("why", id); code != 0 || !strings.Contains(out, id) {
		t.Errorf("why does not know a session from before: %q", out)
	}
	if got, err := sample(s.a.process, `ambassador_upgrade_sessions_total{result="ended"}`); err != nil || got != 0 {
		t.Errorf("%v sessions ended, %v", got, err)
	}
	if err := pings.end(); err != nil {
		t.Error(err)
	}
	stop.Store(true)
	loads.Wait()
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
	if err := eventually(patience, func() error { // systemd has removed the folder of the socket
		c, err := net.Dial("unix", "/run/ambassador/in.sock")
		if err == nil {
			defer c.Close()
			err = pinged(c, "a new client\n")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if log := s.logged(); !strings.Contains(log, `"state":"landlock`) {
		t.Errorf("the service has no sandbox, which a restart needs to leave:\n%s", tail(log, 8<<10))
	}
	s.failures()
	if t.Failed() {
		t.Logf("the log:\n%s", tail(s.logged(), 16<<10))
	}
}

// lastRecord is the id of the last session that ended.
func (s *shipped) lastRecord() string {
	s.t.Helper()
	out, code := s.a.ask("sessions", "--recent", "--json")
	_, rest, ok := strings.Cut(out, `"id":`)
	fields := strings.SplitN(rest, `"`, 3)
	if code != 0 || !ok || len(fields) < 3 {
		s.t.Fatalf("sessions --recent: %d %q", code, out)
	}
	return fields[1]
}

// failures proves what happens to sessions that a restart cannot keep.
func (s *shipped) failures() {
	t := s.t
	open := func() (conns []net.Conn) {
		for i := range 4 {
			conns = append(conns, s.dial(i))
		}
		pingedAll(t, conns, "here\n")
		return conns
	}
	complete := func(what string, conns []net.Conn) {
		t.Helper()
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(patience))
			if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
				t.Errorf("%s: a session ends with %q, %v; want an end by a drain", what, got, err)
			}
		}
	}
	conns := open()
	s.systemctl("stop", "ambassador")
	complete("stop", conns)

	s.override("FileDescriptorStoreMax=0\n")
	s.systemctl("start", "ambassador")
	conns = open()
	s.systemctl("restart", "ambassador")
	complete("no store", conns)
	if !bytes.Contains([]byte(s.logged()), []byte("has not kept the descriptor: set FileDescriptorStoreMax=")) {
		t.Error("the log does not say why sessions were drained")
	}

	s.override("")
	s.systemctl("restart", "ambassador")
	conns = open()
	s.override("ExecStart=\nExecStart=/bin/false\nRestart=no\n")
	if exec.Command("systemctl", "restart", "ambassador").Run() == nil {
		t.Error("a restart with a program that fails succeeds")
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a session whose next process failed ends with %v, want a reset", err)
		}
	}
	s.override("")
	s.systemctl("start", "ambassador")
	open()
}

// echoesForever serves echoes at fixed ports of the container of TestPackage. When the file
// w-go is there it keeps sessions busy through the ambassador, until w-stop is there.
func echoesForever(dir string) error {
	cfg, err := (&pki{dir: dir}).server("server", "ca")
	if err != nil {
		return err
	}
	for addr, cfg := range map[string]*tls.Config{"127.0.0.1:9101": nil, "127.0.0.1:9102": cfg} {
		s, err := serveAt(addr, cfg, echo)
		if err != nil {
			return err
		}
		defer s.close()
	}
	fmt.Println("listening")
	exists := func(name string, within time.Duration) error {
		return eventually(within, func() error { _, err := os.Stat(filepath.Join(dir, name)); return err })
	}
	if err := exists("w-go", patience); err != nil {
		return err
	}
	const sessions = 8
	var stop atomic.Bool
	failures := make(chan error, sessions)
	for i := range sessions {
		c, err := net.Dial("tcp", []string{"127.0.0.1:9201", "127.0.0.1:9202"}[i%2])
		if err == nil {
			err = pinged(c, "first\n")
		}
		if err != nil {
			return err
		}
		c.SetDeadline(time.Time{})
		go func() { failures <- bulk(c.(duplex), uint64(i), sessions, &stop) }() // awaited below
	}
	fmt.Println("all sessions have moved bytes")
	err = exists("w-stop", 8*patience)
	stop.Store(true)
	for range sessions {
		err = errors.Join(err, <-failures)
	}
	if err == nil {
		fmt.Println(sessions, "sessions: every byte came back")
	}
	return err
}
