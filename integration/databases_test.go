package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// faultPostgres kills one of three PostgreSQL servers under clients that connect all
// the time, and restarts it. No client may fail, except for those with a session on
// it, and those that get its message that it is starting up.
func faultPostgres(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	one := newPostgres(t, keys)
	two, three := one.clone(t), (*postgres)(nil)
	three = two.clone(t)
	interval := healthInterval()
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  pg: {listen: "127.0.0.1:0", upstream: db}
upstreams:
  db:
    endpoints: ["%s", "%s", "%s"]
    starttls: postgres
    tls: {identity: app, server_name: localhost}
    health: {interval: %s}
identities:
  app: {files: {cert: %s, key: %s, ca: %s}}
`, one.addr(), two.addr(), three.addr(), interval, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"))))
	addr := a.addr("pg")
	a.metric("ambassador_addresses{upstream=db,health=healthy}", 3)

	type query struct {
		began, ended time.Time
		port, err    string
	}
	var mu sync.Mutex
	var all []query
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // waited for below
			for {
				select {
				case <-done:
					return
				default:
				}
				q := query{began: time.Now()}
				out, text, err := try(one.client(addr, "disable", "psql", psql("select inet_server_port()")...))
				if q.ended, q.port = time.Now(), out; err != nil {
					q.err = text
				}
				mu.Lock()
				all = append(all, q)
				mu.Unlock()
			}
		})
	}
	during(2 * time.Second)
	killing := time.Now()
	two.crash(t)
	killed := time.Now()
	during(4 * interval)
	two.startServer(t) // with the recovery of a crash
	back := time.Now()
	bound := 2*interval + 2*interval/10 + 2*time.Second
	during(bound + time.Second)
	close(done)
	wg.Wait()

	cut, starting, failed, returned := 0, 0, 0, time.Time{}
	for _, q := range all {
		switch {
		case q.err == "" && q.port == two.port && q.began.After(back) && (returned.IsZero() || q.began.Before(returned)):
			returned = q.began
		case q.err == "":
		case q.began.Before(killed) && q.ended.After(killing):
			cut++
		case strings.Contains(q.err, "starting up") || strings.Contains(q.err, "recovery mode"):
			starting++
		default:
			failed++
			t.Errorf("%v after the kill: %s", q.began.Sub(killed), q.err)
		}
	}
	t.Logf("postgres: %d queries, each on its own connection: %d cut by the kill, %d told that the server is starting up, %d failed otherwise; used again %v after its return (bound %v)",
		len(all), cut, starting, failed, returned.Sub(back).Round(time.Millisecond), bound)
	if returned.IsZero() || returned.Sub(back) > bound {
		t.Errorf("used again %v after its return, want within %v", returned.Sub(back), bound)
	}
	for _, db := range []*postgres{one, three} {
		checkServerLog(t, db)
	}
}

// crash ends the server as a crash does, all its processes at once.
func (p *postgres) crash(t testing.TB) {
	t.Helper()
	p.process.crash(t)
	os.Remove(p.file("d/postmaster.pid"))
}

// crash kills a program and its children with SIGKILL. It stops the program first, so
// that it makes no more children, which would keep its port.
func (p *process) crash(t testing.TB) {
	t.Helper()
	p.freeze(t)
	children := childrenOf(p.cmd.Process.Pid)
	p.signal(syscall.SIGKILL)
	for _, pid := range children {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if _, err := p.exit(patience); err != nil {
		t.Fatal(err)
	}
}

func childrenOf(pid int) (out []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		text, _ := os.ReadFile(f)
		for field := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// redis is a real Redis that takes TLS with client certificates alone.
type redis struct {
	addr string
	*process
}

func startRedis(t testing.TB, keys *pki, clients int, flags ...string) *redis {
	t.Helper()
	need(t, "redis-server")
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	p, err := launch(exec.Command("redis-server", append([]string{"--port", "0", "--tls-port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
		"--dir", shortDir(t), "--maxclients", fmt.Sprint(clients), "--tls-cert-file", keys.file("server.crt"), "--tls-key-file", keys.file("server.key"),
		"--tls-ca-cert-file", keys.file("ca.crt"), "--tls-auth-clients", "yes"}, flags...)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		p.exit(patience)
	})
	if _, err := p.stdout.awaitAfter(0, regexp.MustCompile("Ready to accept connections"), patience, p.exited); err != nil {
		t.Fatalf("%v\n%s", err, p.stdout)
	}
	return &redis{"127.0.0.1:" + port, p}
}

// faultRedisFull fills one of two Redis servers until it refuses. With TLS it
// does so in the handshake, so that even the first sessions go to the other one.
func faultRedisFull(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	small, large := startRedis(t, keys, 12), startRedis(t, keys, 1000)
	a := start(t, "run", "-c", upstreamOf(t, keys, []string{small.addr, large.addr},
		`health: {interval: 200ms, idle_interval: 0s, rise: 1, fall: 1, send: "PING\r\n", expect: "+PONG"}`))
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 2)
	ping := func(c net.Conn) string {
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "PING\r\n")
		buf := make([]byte, 64)
		n, _ := c.Read(buf)
		return string(buf[:n])
	}
	var held []net.Conn
	refused := 0
	for range 60 {
		c := a.connect("front")
		if held = append(held, c); ping(c) != "+PONG\r\n" {
			refused++
		}
		if n, _ := sample(a.process, "ambassador_addresses{upstream=up,health=unhealthy}"); n > 0 {
			break
		}
	}
	a.await(`"msg":"health".*"to":"unhealthy"`)
	late := 0
	for range 20 {
		if ping(a.connect("front")) != "+PONG\r\n" {
			late++
		}
	}
	t.Logf("redis: one of two full: %d sessions refused until it was seen, %d afterwards", refused, late)
	if late > 0 {
		t.Errorf("%d sessions went to a server that is full and known to be", late)
	}
	for _, c := range held {
		c.Close()
	}
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 2)
}

// network is a network namespace with one end of a wire whose other end is in
// another one.
type network struct{ name, ip string }

// newWire makes two namespaces with a wire between.
func newWire(t testing.TB) (here, there network) {
	t.Helper()
	need(t, "ip")
	if os.Getuid() != 0 {
		missing(t, "root, which network namespaces need")
	}
	id := strconv.Itoa(os.Getpid()) + strconv.Itoa(int(time.Now().UnixNano()%100000))
	here, there = network{"amb-a" + id, "10.213.0.1"}, network{"amb-b" + id, "10.213.0.2"}
	for _, n := range []network{here, there} {
		if text, err := exec.Command("ip", "netns", "add", n.name).CombinedOutput(); err != nil {
			missing(t, fmt.Sprintf("leave to make network namespaces (%v %s)", err, text))
		}
		t.Cleanup(func() { exec.Command("ip", "netns", "del", n.name).Run() })
	}
	ipRun(t, "link", "add", "wire", "netns", here.name, "type", "veth", "peer", "name", "wire", "netns", there.name)
	for _, n := range []network{here, there} {
		ipRun(t, "-n", n.name, "addr", "add", n.ip+"/24", "dev", "wire")
		ipRun(t, "-n", n.name, "link", "set", "wire", "up")
		ipRun(t, "-n", n.name, "link", "set", "lo", "up")
	}
	return here, there
}

func ipRun(t testing.TB, args ...string) {
	t.Helper()
	if text, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, text)
	}
}

// etc gives the namespace's processes a file of their own in /etc: that is what ip
// netns exec does with /etc/netns/NAME.
func (n network) etc(t testing.TB, name, text string) {
	t.Helper()
	dir := filepath.Join("/etc/netns", n.name)
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// in makes a command line run in the namespace.
func (n network) in(args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", n.name}, args...)...)
}

// lockingMariaDB starts a server, in a network namespace at the other end of a
// wire, that locks hosts out after 12 connections that end before a login: loopback
// is exempt. With keys it has TLS and demands our certificate of nobody, but takes
// no other.
func lockingMariaDB(t testing.TB, keys *pki) (here network, dir, addr string) {
	t.Helper()
	server, install := sbin(t, "mariadbd"), sbin(t, "mariadb-install-db")
	here, there := newWire(t)
	// It counts only hosts whose name and address lead to each other.
	there.etc(t, "hosts", "127.0.0.1 localhost\n"+here.ip+" client.test\n")
	dir = shortDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	// A server that starts removes the temporary tables of others from a folder that they share.
	run(t, exec.Command(install, "--no-defaults", "--user=nobody", "--datadir="+dir+"/data", "--tmpdir="+dir, "--auth-root-authentication-method=normal", "--skip-test-db"))
	// Else it refuses every host but its own, before it counts anything.
	if err := os.WriteFile(dir+"/init.sql", []byte("CREATE USER someone@'%' IDENTIFIED BY 'secret';\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{server, "--no-defaults", "--init-file=" + dir + "/init.sql", "--user=nobody", "--datadir=" + dir + "/data", "--tmpdir=" + dir, "--socket=" + dir + "/s", "--pid-file=" + dir + "/pid",
		"--bind-address=" + there.ip, "--port=3306", "--max-connect-errors=12", "--loose-innodb-buffer-pool-size=16M"}
	if keys != nil {
		d := &mariadb{daemon: &daemon{dir: dir}, keys: keys}
		d.mkdir(t, "nobody", "keys")
		args = append(args, "--ssl-cert="+d.key(t, "keys", "server.crt", "nobody"), "--ssl-key="+d.key(t, "keys", "server.key", "nobody"), "--ssl-ca="+d.key(t, "keys", "ca.crt", "nobody"))
	}
	db, err := launch(there.in(args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		db.signal(syscall.SIGTERM)
		db.exit(patience)
	})
	if _, err := db.stderr.awaitAfter(0, regexp.MustCompile("ready for connections"), patience, db.exited); err != nil {
		t.Fatalf("%v\n%s", err, db.stderr)
	}
	return here, dir, there.ip + ":3306"
}

// heardFirst returns the server's first message to a client of the socket, which then
// closes, like one that failed.
func heardFirst(t testing.TB, socket string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 512)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

// welcome proves that the server still serves this host, and that it does lock hosts
// out: otherwise the test would prove nothing.
func welcome(t testing.TB, socket, what string) {
	t.Helper()
	if got := heardFirst(t, socket); len(got) < 5 || got[4] != 10 {
		t.Fatalf("after %s the server greets with %q", what, got)
	}
	for range 200 { // that is how it locks out; it counts a greeting that was cut only when it has seen the end
		if got := heardFirst(t, socket); len(got) > 4 && got[4] == 0xff {
			if !strings.Contains(got, "blocked") {
				t.Errorf("it refuses with %q", got)
			}
			t.Logf("mysql: %s left the host welcome; 12 cut greetings in a row lock it out, as the server is set to", what)
			return
		}
	}
	t.Error("mysql: this server does not lock out at all, so the test proves nothing")
}

// TestMySQLIsNotLockedOut probes a real server that locks hosts out. It is an
// upstream without TLS, whose greeting we see.
func TestMySQLIsNotLockedOut(t *testing.T) {
	t.Parallel()
	here, dir, addr := lockingMariaDB(t, nil)
	a := startCmd(t, here.in(binary, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "unix:%s/front", upstream: db}
upstreams:
  db:
    endpoints: [%q]
    health: {interval: 50ms, idle_interval: 0s}
`, dir, addr))))
	a.metric("ambassador_addresses{upstream=db,health=healthy}", 1)
	during(3 * time.Second) // sixty intervals
	welcome(t, dir+"/front", "probes at 50 ms for 3 s")
}

// TestMySQLThroughSTARTTLSIsNotLockedOut is the same through starttls, where the
// greeting cannot be seen after TLS has begun; and with a certificate that the server
// refuses, so that every probe fails.
func TestMySQLThroughSTARTTLSIsNotLockedOut(t *testing.T) {
	t.Parallel()
	need(t, "mariadb")
	keys := newPKI(t)
	here, dir, addr := lockingMariaDB(t, keys)
	config := func(name, identity, health string) string {
		return writeFile(t, name+".yaml", fmt.Sprintf(`
listeners:
  front: {listen: "unix:%s/%s", upstream: db}
identities:
  me: {files: {cert: %[3]s.crt, key: %[3]s.key, ca: %[4]s}}
upstreams:
  db:
    endpoints: [%[5]q]
    starttls: mysql
    tls: {identity: me, server_name: localhost}
    health: %[6]s
    breaker: {failures: 0}
`, dir, name, keys.file(identity), keys.file("ca.crt"), addr, health))
	}
	a := startCmd(t, here.in(binary, "run", "-c", config("good", "client", "{interval: 50ms, idle_interval: 0s}")))
	a.metric("ambassador_addresses{upstream=db,health=healthy}", 1)
	login := func() {
		t.Helper()
		cmd := exec.Command("mariadb", "--no-defaults", "--skip-ssl", "--user=someone", "--password=secret", "--socket="+dir+"/good", "-N", "-e", "select 1")
		if got := run(t, cmd); got != "1" {
			t.Errorf("the server says %q", got)
		}
	}
	user := fmt.Sprintf("{interval: 50ms, idle_interval: 0s, user: someone, password_file: %s}", writeFile(t, "password", "secret"))
	u := startCmd(t, here.in(binary, "run", "-c", config("user", "client", user)))
	u.metric("ambassador_addresses{upstream=db,health=healthy}", 1)
	during(3 * time.Second) // sixty logins
	if got := heardFirst(t, dir+"/user"); len(got) < 5 || got[4] != 10 {
		t.Errorf("after probes that log in the server greets with %q", got)
	}
	u.signal(os.Interrupt) // each of them makes the server forget those that failed
	u.exit(patience)
	for name, health := range map[string]string{"refused": "{interval: 50ms, idle_interval: 0s}", "unasked": "{interval: 0s}"} {
		login() // and the server forgets those before
		bad := startCmd(t, here.in(binary, "run", "-c", config(name, "client-other", health)))
		bad.await("10 trials did; only sessions tell from now on")
	}
	login()
	during(3 * time.Second) // sixty intervals
	welcome(t, dir+"/good", "probes through starttls at 50 ms for 3 s")
}

// serve starts an mTLS echo server in the namespace.
func (n network) serve(t testing.TB, keys *pki) (addr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.in(self)
	cmd.Env = append(os.Environ(), serveAs+"="+n.ip+":7000 "+keys.dir)
	pr, pw, err := os.Pipe() // its end ends the server
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = pr
	p, err := launch(cmd)
	pr.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pw.Close()
		p.exit(patience)
	})
	if _, err := p.stdout.awaitAfter(0, regexp.MustCompile("listening echo"), patience, p.exited); err != nil {
		t.Fatalf("%v %s", err, p.stderr)
	}
	return n.ip + ":7000"
}

// faultDrop cuts one of two servers off by losing every packet to it.
func faultDrop(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	here, there := newWire(t)
	far, near := there.serve(t, keys), here.serve(t, keys)
	config := upstreamOf(t, keys, []string{far, near}, "connect: {attempt_timeout: 1s}", "health: {interval: 500ms}")
	dir := shortDir(t)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	config = writeFile(t, "ambassador.yaml", strings.Replace(string(text), `"127.0.0.1:0"`, `"unix:`+dir+`/front"`, 1))
	a := startCmd(t, here.in(binary, "run", "-c", config))
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 2)
	one := func() (time.Duration, error) {
		began := time.Now()
		c, err := net.Dial("unix", dir+"/front")
		if err != nil {
			return 0, err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "hello\n")
		buf := make([]byte, 6)
		_, err = io.ReadFull(c, buf)
		return time.Since(began), err
	}
	ipRun(t, "-n", there.name, "link", "set", "wire", "arp", "off") // and nobody answers for it
	ipRun(t, "-n", here.name, "neigh", "flush", "all")
	ipRun(t, "-n", there.name, "addr", "flush", "dev", "wire")
	waited, n, longest := 0, 0, time.Duration(0)
	for begin := time.Now(); time.Since(begin) < 8*time.Second; n++ {
		took, err := one()
		if err != nil {
			t.Errorf("a session failed: %v", err)
		}
		if longest = max(longest, took); took > 500*time.Millisecond {
			waited++
		}
	}
	ipRun(t, "-n", there.name, "addr", "add", there.ip+"/24", "dev", "wire")
	ipRun(t, "-n", there.name, "link", "set", "wire", "arp", "on")
	back := time.Now()
	a.metric("ambassador_addresses{upstream=up,health=healthy}", 2)
	t.Logf("drop: %d sessions in 8 s, %d waited, the longest %v; seen again %v after the wire was whole", n, waited, longest.Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
	if waited > 5 || longest > 2*time.Second {
		t.Errorf("%d sessions waited, the longest %v", waited, longest)
	}
}
