package integration

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// repeats is how many clients send the same nonsense, one after the other: several
// times the number of failures that opens a breaker.
const repeats = 20

// nonsense is the message of a client that mistakes the server's protocol. It sends it
// on an open connection, whose end the test awaits.
type nonsense struct {
	what string
	say  func(c net.Conn)
}

// sends is nonsense that does not depend on the server's messages.
func sends(what, s string) nonsense {
	return nonsense{what, func(c net.Conn) { io.WriteString(c, s) }}
}

// The nonsense of the tests. A CancelRequest is none, but the server answers it in the
// same way, by closing.
var (
	tlsHello = nonsense{"a ClientHello", func(c net.Conn) {
		tls.Client(c, &tls.Config{ServerName: "localhost"}).Handshake() // which fails
	}}
	httpRequest = sends("an HTTP request", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
	pgCancel    = sends("a CancelRequest for nobody", "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\xde\xad\xbe\xef")
	pgShort     = sends("a startup packet of 4 bytes", "\x00\x00\x00\x04")
	pgVersion   = sends("a startup packet of protocol 9.9", "\x00\x00\x00\x12\x00\x09\x00\x09user\x00app\x00\x00")
	pgNobody    = sends("a startup packet without a user", "\x00\x00\x00\x09\x00\x03\x00\x00\x00")
	ldapHuge    = sends("an LDAP message of 2 GiB", "\x30\x84\x7f\xff\xff\xff\x02\x01\x01")
)

// way is a client's route to a server: through the listener of that name, at addr, and
// by SOCKS5 to the destination if there is one.
type way struct{ listener, addr, destination string }

func (w way) dial() (net.Conn, error) {
	c, err := dialTCP(w.addr)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(2 * patience))
	if w.destination == "" {
		return c, nil
	}
	reply, err := socksAsk(c, "", w.destination)
	if err == nil && reply != socksOK {
		err = fmt.Errorf("reply %d for %s", reply, w.destination)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// talk makes one client after the other send n, each until the server ends.
func (w way) talk(n nonsense) error {
	for i := range repeats {
		c, err := w.dial()
		if err != nil {
			return fmt.Errorf("client %d with %s: %w", i, n.what, err)
		}
		n.say(c)
		_, err = io.Copy(io.Discard, c)
		c.Close()
		if isTimeout(err) {
			return fmt.Errorf("client %d with %s: the server has not ended", i, n.what)
		}
	}
	return nil
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// mqtt connects as a client of MQTT.
func (w way) mqtt(t testing.TB) *mqtt {
	t.Helper()
	c, err := w.dial()
	if err != nil {
		t.Fatal(err)
	}
	return greetMQTT(t, c, w.listener+hostPort(c.LocalAddr().String()), 0) // no two clients have one id
}

// psql prepares psql for the server, which is the destination if there is one.
func (w way) psql(t testing.TB, db *postgres, sql ...string) *exec.Cmd {
	t.Helper()
	if w.destination == "" {
		return db.client(w.addr, "disable", "psql", psql(sql...)...)
	}
	return proxychains(t, w.addr, db.client(w.destination, "disable", "psql", psql(sql...)...))
}

// misused is a server with some clients that send nonsense, and one that does not.
type misused struct {
	way
	nonsense []nonsense
	// silent is how many kinds of nonsense, the first among them, the server answers by
	// closing without a byte: those look like a fault of the server.
	silent int
	// honest is what must work: a new client, or what the client of a live session asks.
	honest func(t *testing.T)
}

// servesOthers proves that honest clients are served, after nonsense and beside it.
func (m misused) servesOthers(t *testing.T, a *ambassador) {
	t.Parallel()
	if err := m.talk(m.nonsense[0]); err != nil {
		t.Fatal(err)
	}
	var talking sync.WaitGroup
	defer talking.Wait()
	talking.Go(func() { // waited for above
		for _, n := range m.nonsense[1:] {
			if err := m.talk(n); err != nil {
				t.Error(err)
			}
		}
	})
	for range 6 {
		m.honest(t)
	}
	talking.Wait()
	m.honest(t)
	// On a busy machine a close may take longer than a second, and then it is no early one.
	early := fmt.Sprintf("ambassador_sessions_total{listener=%s,reason=upstream_early_close}", m.listener)
	if err := awaitMetric(a.process, early, float64(m.silent*repeats)/2); err != nil {
		t.Errorf("the server does not close, so that the test proves nothing: %v", err)
	}
}

// keepsSession proves that a live session outlives the effect of the nonsense on health.
func (m misused) keepsSession(t *testing.T) {
	t.Parallel()
	m.honest(t)
	for _, n := range m.nonsense {
		if err := m.talk(n); err != nil {
			t.Error(err)
		}
	}
	during(1200 * time.Millisecond) // health.interval, and its jitter
	m.honest(t)
}

// TestNonsenseHarmsNobody proves that a client whose message makes a real server close
// neither keeps other clients out nor ends their sessions: with the default breaker
// and health, with the strictest health and no breaker, and for a destination of
// SOCKS5.
func TestNonsenseHarmsNobody(t *testing.T) {
	t.Parallel()
	need(t, "proxychains4")
	keys := newPKI(t)
	broker, secure, db, directory := newMosquitto(t, nil), newMosquitto(t, keys), newPostgres(t, keys), newSlapd(t, keys)
	db.takePlaintext(t)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
identities:
  app: {files: {cert: %[1]s, key: %[2]s, ca: %[3]s}}
upstreams:
  mqtt: {endpoints: [%[4]q]}
  mqtts: {endpoints: [%[5]q], tls: &tls {identity: app, server_name: localhost}}
  pg: {endpoints: [%[6]q]}
  pgs: {endpoints: [%[6]q], starttls: postgres, tls: *tls}
  ldap: {endpoints: [%[7]q], starttls: ldap, tls: *tls}
  strict-mqtt: {endpoints: [%[4]q], %[8]s}
  strict-mqtts: {endpoints: [%[5]q], tls: *tls, %[8]s}
  strict-pg: {endpoints: [%[6]q], %[8]s}
  strict-pgs: {endpoints: [%[6]q], starttls: postgres, tls: *tls, %[8]s}
  any: {dynamic: true}
listeners:
  mqtt: {listen: "127.0.0.1:0", upstream: mqtt}
  mqtts: {listen: "127.0.0.1:0", upstream: mqtts}
  pg: {listen: "127.0.0.1:0", upstream: pg}
  pgs: {listen: "127.0.0.1:0", upstream: pgs}
  ldap: {listen: "127.0.0.1:0", upstream: ldap}
  strict-mqtt: {listen: "127.0.0.1:0", upstream: strict-mqtt}
  strict-mqtts: {listen: "127.0.0.1:0", upstream: strict-mqtts}
  strict-pg: {listen: "127.0.0.1:0", upstream: strict-pg}
  strict-pgs: {listen: "127.0.0.1:0", upstream: strict-pgs}
  socks-mqtt: {listen: "127.0.0.1:0", socks5: {}, rules: &rules [{ip: [127.0.0.0/8], upstream: any}]}
  socks-pg: {listen: "127.0.0.1:0", socks5: {}, rules: *rules}
`, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), broker.addr(), secure.addr(), db.addr(), directory.addr(), strictHealth)))
	a.metric("ambassador_addresses{health=healthy}", 9)

	toBroker := []nonsense{tlsHello, httpRequest}
	toPostgres := []nonsense{httpRequest, pgShort, pgCancel, pgVersion}
	toStartTLS := []nonsense{httpRequest, pgVersion, pgNobody, pgCancel} // the ambassador answers the first two itself
	at := func(listener, destination string) way { return way{listener, a.addr(listener), destination} }
	mqttCase := func(w way, nonsense []nonsense, silent int) misused {
		return misused{w, nonsense, silent, func(t *testing.T) { w.mqtt(t).c.Close() }}
	}
	pgCase := func(w way, nonsense []nonsense, silent int) misused {
		return misused{w, nonsense, silent, func(t *testing.T) {
			if got := run(t, w.psql(t, db, "select 1")); got != "1" {
				t.Errorf("psql prints %q", got)
			}
		}}
	}
	whoami := func(t *testing.T) { run(t, ldap("ldapwhoami", hostPort(a.addr("ldap")))) }
	t.Run("together", func(t *testing.T) { // ends when all the parallel ones have
		for _, m := range []misused{
			{at("ldap", ""), []nonsense{tlsHello, ldapHuge}, 2, whoami},
			mqttCase(at("mqtt", ""), toBroker, 2), mqttCase(at("mqtts", ""), toBroker, 2), mqttCase(at("socks-mqtt", broker.addr()), toBroker, 2),
			pgCase(at("pg", ""), toPostgres, 3), pgCase(at("pgs", ""), toStartTLS, 0), pgCase(at("socks-pg", db.addr()), toPostgres, 3),
		} {
			t.Run(m.listener, func(t *testing.T) { m.servesOthers(t, a) })
		}
		for _, m := range []misused{
			{at("strict-mqtt", ""), toBroker, 2, pings(at("strict-mqtt", "").mqtt(t))},
			{at("strict-mqtts", ""), toBroker, 2, pings(at("strict-mqtts", "").mqtt(t))},
			{at("strict-pg", ""), toPostgres[:3], 3, answers(openShell(t, at("strict-pg", "").psql(t, db)))},
			{at("strict-pgs", ""), toStartTLS, 0, answers(openShell(t, at("strict-pgs", "").psql(t, db)))},
		} {
			t.Run(m.listener, m.keepsSession)
		}
	})
	a.unharmed()
}

// strictHealth ends the sessions of an address at the first failed check, and has no
// breaker. Its probes may take longer than usual, because the machine is busy.
const strictHealth = "health: {interval: 1s, timeout: 15s, fall: 1, kill_on_down: true}, breaker: {failures: 0}"

// takePlaintext makes the server accept clients without TLS, too.
func (p *postgres) takePlaintext(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(p.file("d/pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("hostnossl all all all scram-sha-256\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	from := p.stderr.len()
	p.signal(syscall.SIGHUP)
	if _, err := p.stderr.awaitAfter(from, regexp.MustCompile("received SIGHUP"), patience, p.exited); err != nil {
		t.Fatal(err)
	}
}

// pings checks that a session of MQTT lives.
func pings(m *mqtt) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		(&mqtt{t, m.c}).ask("\xc0\x00", "\xd0\x00")
	}
}

// shell is a client program that stays, and reads commands from the test.
type shell struct {
	*process
	in io.WriteCloser
}

// openShell starts one; it is killed at the end of the test.
func openShell(t testing.TB, cmd *exec.Cmd) *shell {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.signal(os.Kill)
		p.exit(patience)
	})
	return &shell{p, in}
}

// answers gives a function that has a shell's server answer a query.
func answers(s *shell) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		from := s.stdout.len()
		io.WriteString(s.in, "select 6 * 7;\n") // an error shows when the answer is read
		if _, err := s.stdout.awaitAfter(from, regexp.MustCompile(`(?m)^42$`), patience, s.exited); err != nil {
			t.Fatalf("%v; it says %s%s", err, s.stdout, s.stderr)
		}
	}
}

// quit ends the input of a shell, and waits for its end.
func (s *shell) quit(t testing.TB) {
	t.Helper()
	s.in.Close()
	if code, err := s.exit(patience); code != 0 || err != nil {
		t.Errorf("%s ended with %d, %v: %s", s.name(), code, err, s.stderr)
	}
}

// unharmed checks that no breaker has opened since the start, no address has become
// unhealthy, and no session was refused or killed for either.
func (a *ambassador) unharmed() {
	a.t.Helper()
	for _, reason := range []string{"breaker_open", "no_endpoint", "killed"} {
		if n, err := sample(a.process, "ambassador_sessions_total{reason="+reason+"}"); n != 0 || err != nil {
			a.t.Errorf("%v sessions ended as %s, %v", n, reason, err)
		}
	}
	if m := regexp.MustCompile(`(?m)^.*("msg":"breaker"|"to":"unhealthy").*$`).FindString(a.stderr.String()); m != "" {
		a.t.Errorf("the log says %s", m)
	}
	// The health that sessions speak for is judged at the next look, within seconds.
	if err := eventually(patience, a.isHealthy); err != nil {
		a.t.Error(err)
	}
}

// isHealthy returns an error unless each address is healthy and its breaker closed.
func (a *ambassador) isHealthy() error {
	var reply struct {
		Upstreams []struct {
			Name      string
			Endpoints []struct {
				Addresses []struct{ Address, Health, Breaker string }
			}
		}
	}
	body, status, err := get(a.process, "/v1/upstreams")
	if err == nil {
		err = json.Unmarshal([]byte(body), &reply)
	}
	if err != nil || status != http.StatusOK || len(reply.Upstreams) == 0 {
		return fmt.Errorf("/v1/upstreams: status %d, %v: %s", status, err, body)
	}
	for _, u := range reply.Upstreams {
		for _, e := range u.Endpoints {
			for _, at := range e.Addresses {
				if at.Health != "healthy" || at.Breaker != "closed" {
					return fmt.Errorf("%s %s is %s, its breaker %s", u.Name, at.Address, at.Health, at.Breaker)
				}
			}
		}
	}
	return nil
}

// TestStallIsNotAnOutage proves that a PostgreSQL which is stopped for 4 s loses none
// of the clients that connect meanwhile, as it loses none of its own, and that those
// that connect right afterwards are served.
func TestStallIsNotAnOutage(t *testing.T) {
	t.Parallel()
	const clients = 10
	keys := newPKI(t)
	db := newPostgres(t, keys)
	a := start(t, append([]string{"forward", "--listen", "127.0.0.1:0", "--to", db.addr(), "--starttls", "postgres",
		"--server-name", "localhost"}, keys.client()...)...)
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("the server is up, and the ambassador is not ready")
	}
	connect := func(command func() *exec.Cmd) (all []*process) {
		for range clients {
			p, err := launch(command())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
		return all
	}
	served := func(when string, all []*process) {
		t.Helper()
		for i, p := range all {
			if code, err := p.exit(2 * patience); code != 0 || err != nil {
				t.Errorf("client %d of those %s: exit code %d, %v: %s", i, when, code, err, p.stderr)
			}
		}
	}
	through := func() *exec.Cmd { return db.client(a.addr("forward"), "disable", "psql", psql("select 1")...) }
	direct := func() *exec.Cmd { return db.direct("psql", psql("select 1")...) }

	db.freeze(t)
	t.Cleanup(func() { db.signal(syscall.SIGCONT) }) // without which it does not end
	over := time.After(4 * time.Second)
	ours, theirs := connect(through), connect(direct)
	a.metric("ambassador_sessions_active", clients)
	<-over
	db.signal(syscall.SIGCONT)
	after := connect(through)
	served("without an ambassador", theirs)
	served("during the stall", ours)
	served("after it", after)
	a.metric("ambassador_sessions_total{reason=closed}", 2*clients)
	a.unharmed()
}

// paused is a listening socket that has a short queue as long as nobody accepts from
// it: the kernel drops further SYNs, which clients send again after seconds.
type paused struct {
	addr string
	ln   net.Listener
}

func newPaused(t testing.TB, backlog int) *paused {
	t.Helper()
	fd, addr, err := listenShort(backlog)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), addr)
	ln, err := net.FileListener(f) // which has a descriptor of its own
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &paused{addr, ln}
}

// resume serves echoes, with a queue that drops nothing any more: a short one would
// leave it to chance how often a client has to try again.
func (p *paused) resume(t testing.TB) {
	t.Helper()
	raw, err := p.ln.(*net.TCPListener).SyscallConn()
	if err == nil {
		var listened error
		err = errors.Join(raw.Control(func(fd uintptr) { listened = syscall.Listen(int(fd), 1024) }), listened)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(p.ln, nil, echo)
	t.Cleanup(s.close)
}

// TestBurstOf500 proves that 500 clients which connect at once, while the server
// accepts nobody and its queue is full, all get their echo once it accepts, as they
// do without an ambassador. The server pauses for longer than the 3 s that an attempt
// may take where there is another address.
func TestBurstOf500(t *testing.T) {
	t.Parallel()
	burst := func(t *testing.T, addr string, server *paused) (failed []try1) {
		t.Helper()
		results := make(chan try1)
		for range 500 {
			go func() { results <- session(addr) }() // each is received below
		}
		during(3500 * time.Millisecond)
		server.resume(t)
		for range 500 {
			if o := <-results; o.err != nil {
				failed = append(failed, o)
			}
		}
		return failed
	}
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		server := newPaused(t, 8)
		for _, o := range burst(t, server.addr, server) {
			t.Errorf("a client failed: %v", o.err)
		}
	})
	t.Run("through", func(t *testing.T) {
		t.Parallel()
		server := newPaused(t, 8)
		a := start(t, "forward", "--listen", "127.0.0.1:0", "--to", server.addr, "--plain")
		if _, code := a.ask("wait"); code != 0 {
			t.Fatal("the server is up, and the ambassador is not ready")
		}
		failed := burst(t, a.addr("forward"), server)
		a.metric("ambassador_sessions_total", 500)
		if len(failed) > 0 {
			reasons, records := map[string]int{}, accounts(t, a)
			for _, o := range failed {
				reasons[records[o.client].Reason]++
			}
			t.Errorf("%d of 500 clients failed, the first: %v; their sessions ended as %v", len(failed), failed[0].err, reasons)
		}
		a.unharmed()
	})
}

// TestFullMariaDB proves that a MariaDB which is full says so itself to each further
// client, that neither breaker nor health takes it for a fault, and that the next client
// is served as soon as there is room. The sessions that fill it live on, with the
// strictest health and no breaker, too.
func TestFullMariaDB(t *testing.T) {
	t.Parallel()
	const room = 10 // the least that MariaDB allows
	keys := newPKI(t)
	db := newMariaDB(t, keys)
	run(t, db.client("", "root", "-e", fmt.Sprintf("set global max_connections = %d", room)))
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
identities:
  app: {files: {cert: %[1]s, key: %[2]s, ca: %[3]s}}
upstreams:
  usual: {endpoints: [%[4]q], starttls: mysql, tls: &tls {identity: app, server_name: localhost}}
  strict: {endpoints: [%[4]q], starttls: mysql, tls: *tls, %[5]s}
listeners:
  usual: {listen: "127.0.0.1:0", upstream: usual}
  strict: {listen: "127.0.0.1:0", upstream: strict}
`, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), db.addr(), strictHealth)))
	a.metric("ambassador_addresses{health=healthy}", 2)
	ports := []string{hostPort(a.addr("usual")), hostPort(a.addr("strict"))}

	db.awaitRoom(t, room)
	var holders []*shell
	for i := range room + 1 { // the last takes the place that is kept for administrators
		s := openShell(t, db.client(ports[i%2], "native", "-N", "--unbuffered"))
		answers(s)(t)
		holders = append(holders, s)
	}
	for range 2 { // with an interval of health after each
		for _, port := range ports {
			for i := range repeats / 2 {
				out, stderr, err := try(db.client(port, "native", "-e", "select 1"))
				if err == nil || !strings.Contains(stderr, "ERROR 1040 ") || !strings.Contains(stderr, "Too many connections") {
					t.Fatalf("client %d is told %q, prints %q, %v; want ERROR 1040", i, stderr, out, err)
				}
			}
		}
		during(1200 * time.Millisecond) // health.interval, and its jitter
	}
	for _, s := range holders {
		answers(s)(t)
	}
	a.metric("ambassador_sessions_total{reason=starttls_refused}", 2*repeats)
	a.unharmed()
	for _, s := range holders[:3] {
		s.quit(t)
	}
	db.awaitRoom(t, 2)
	for _, port := range ports {
		if got := run(t, db.client(port, "native", "-N", "-e", "select 1")); got != "1" {
			t.Errorf("the server says %q", got)
		}
	}
	a.unharmed()
}

// awaitRoom waits until the server has room for n clients more, beside the place that it
// keeps for administrators.
func (d *mariadb) awaitRoom(t testing.TB, n int) {
	t.Helper()
	err := eventually(patience, func() error {
		text, stderr, err := try(d.client("", "root", "-N", "-e",
			fmt.Sprintf("select @@max_connections - variable_value + 1 >= %d from information_schema.global_status where variable_name = 'Threads_connected'", n)))
		if err != nil || text != "1" {
			return fmt.Errorf("room for %d: %s, %v %s", n, text, err, stderr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
