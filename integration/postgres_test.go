package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestPostgres proves the product's first promise on a real server: clients that
// know no TLS work against a PostgreSQL that takes only verified client
// certificates, through one line of command.
func TestPostgres(t *testing.T) {
	keys := newPKI(t)
	db := newPostgres(t, keys)
	run(t, db.direct("pgbench", "-i", "-s", "1", "-q"))
	forward := append([]string{"forward", "--listen", "127.0.0.1:0", "--to", db.addr(), "--starttls", "postgres",
		"--server-name", "localhost"}, keys.client()...)
	a := start(t, forward...)
	through := pgThrough{db, a, a.addr("forward")}
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("the server is up, and the ambassador is not ready")
	}

	t.Run("together", func(t *testing.T) { // ends when all the parallel ones have
		t.Run("modes", through.modes)
		t.Run("copy", through.copyBothWays)
		t.Run("bytea", through.bytea)
		t.Run("pgbench", through.pgbench)
		t.Run("cancel", through.cancel)
		t.Run("notify", through.notify)
		t.Run("wrong password", through.wrongPassword)
		t.Run("unix socket", func(t *testing.T) { pgUnixSocket(t, db, keys) })
		t.Run("rotation", func(t *testing.T) { pgRotation(t, db, keys) })
	})
	t.Run("restart", through.restart)
	checkServerLog(t, db)
}

// pgThrough is a server and an ambassador before it.
type pgThrough struct {
	*postgres
	a    *ambassador
	addr string
}

func (p pgThrough) psql(sslmode string, sql ...string) *exec.Cmd {
	return p.client(p.addr, sslmode, "psql", psql(sql...)...)
}

// modes: libpq with sslmode=disable and with its default, prefer, both log in
// with SCRAM, and the server sees TLS and our certificate.
func (p pgThrough) modes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"disable", "", "prefer", "allow"} {
		got := run(t, p.psql(mode, "select ssl, client_dn, usename from pg_stat_ssl join pg_stat_activity using (pid) where pid = pg_backend_pid()"))
		if want := "t|/CN=app|app"; got != want {
			t.Errorf("sslmode=%q: pg_stat_ssl says %q, want %q", mode, got, want)
		}
	}
	if _, stderr, err := try(p.psql("require", "select 1")); err == nil || !strings.Contains(stderr, "server does not support SSL") {
		t.Errorf("sslmode=require: %v, %q; want libpq's own refusal", err, stderr)
	}
	p.a.await(`"reason":"bad_greeting","cause":".*set sslmode=disable`)
}

// copyBothWays: 24 MB go in and come out byte for byte.
func (p pgThrough) copyBothWays(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "in")
	var text bytes.Buffer
	row := make([]byte, 60)
	for i := 0; text.Len() < 24<<20; i++ {
		io.ReadFull(noise(uint64(i)), row)
		fmt.Fprintf(&text, "%d\t%s\n", i, hex.EncodeToString(row))
	}
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, p.psql("disable", "create table copied (n int, s text)", `\copy copied from '`+file+`'`))
	cmd := p.psql("disable", `\copy (select n, s from copied order by n) to stdout`)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got, want := sha256.Sum256(out.Bytes()), sha256.Sum256(text.Bytes()); got != want {
		t.Errorf("%d bytes with checksum %x came back of %d with %x", out.Len(), got, text.Len(), want)
	}
}

// bytea: one value of 10 MB arrives whole and comes back whole.
func (p pgThrough) bytea(t *testing.T) {
	t.Parallel()
	value := make([]byte, 10<<20)
	io.ReadFull(noise(10), value)
	insert := p.psql("disable")
	insert.Stdin = strings.NewReader("create table big (b bytea);\ninsert into big values ('\\x" + hex.EncodeToString(value) + "');\n")
	run(t, insert)
	sum := sha256.Sum256(value)
	if got, want := run(t, p.psql("disable", "select encode(sha256(b), 'hex') from big")), hex.EncodeToString(sum[:]); got != want {
		t.Errorf("the server has checksum %s, want %s", got, want)
	}
	if got := run(t, p.psql("disable", "select encode(b, 'hex') from big")); got != hex.EncodeToString(value) {
		t.Errorf("%d hexadecimal digits came back and differ from the %d sent", len(got), 2*len(value))
	}
}

// pgbench: a connection for each transaction, eight at a time, and none fails.
func (p pgThrough) pgbench(t *testing.T) {
	t.Parallel()
	seconds := "10"
	if long() {
		seconds = "60"
	}
	checkBench(t, run(t, p.client(p.addr, "disable", "pgbench", "-C", "-c", "8", "-T", seconds, "-n")))
}

// checkBench reads pgbench's account. It exits with an error if a connection
// fails; a failed transaction is only counted.
func checkBench(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(text, "number of failed transactions: 0 ") {
		t.Errorf("pgbench says:\n%s", text)
	}
	if m := regexp.MustCompile(`actually processed: (\d+)`).FindStringSubmatch(text); m == nil || len(m[1]) < 2 {
		t.Errorf("pgbench did hardly anything:\n%s", text)
	}
}

// cancel: Ctrl-C in psql ends the query, with one endpoint and with two, where
// only one of the servers knows the key.
func (p pgThrough) cancel(t *testing.T) {
	t.Parallel()
	cancelQuery(t, p.a, p.addr, p.postgres)
}

// cancelQuery cancels a query that runs on one of the servers.
func cancelQuery(t *testing.T, a *ambassador, addr string, servers ...*postgres) {
	t.Helper()
	mark := "cancel " + hex.EncodeToString(serial().Bytes())
	q, err := launch(servers[0].client(addr, "disable", "psql", psql("select pg_sleep(60) /* "+mark+" */")...))
	if err != nil {
		t.Fatal(err)
	}
	defer q.signal(os.Kill)
	if err := eventually(patience, func() error { return active(mark, servers) }); err != nil {
		t.Fatal(err)
	}
	q.signal(syscall.SIGINT)
	if _, err := q.exit(patience); err != nil {
		t.Fatalf("the query was not cancelled: %v", err)
	}
	if want := "canceling statement due to user request"; !strings.Contains(q.stderr.String(), want) {
		t.Errorf("psql says %q, want %q", q.stderr, want)
	}
	a.await(`"stage":"dialogue","reason":"closed","cause":"cancel request passed on`)
}

// active is nil once one of the servers works on the query with that mark.
func active(mark string, servers []*postgres) error {
	sql := "select count(*) from pg_stat_activity where state = 'active' and query like '%" + mark + "%' and pid <> pg_backend_pid()"
	for _, db := range servers {
		text, stderr, err := try(db.direct("psql", psql(sql)...))
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		if text == "1" {
			return nil
		}
	}
	return fmt.Errorf("no server works on the query %q", mark)
}

// notify: unsolicited messages of the server, minutes into a session, arrive.
func (p pgThrough) notify(t *testing.T) {
	t.Parallel()
	cmd := p.psql("disable")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	q, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer q.signal(os.Kill)
	await := func(re string) {
		t.Helper()
		if _, err := q.stdout.awaitAfter(0, regexp.MustCompile(re), patience, q.exited); err != nil {
			t.Fatalf("%v: %s%s", err, q.stdout, q.stderr)
		}
	}
	fmt.Fprintln(in, "listen news;\n\\echo listening")
	await("listening")
	run(t, p.psql("disable", "notify news, 'it is out'"))
	fmt.Fprintln(in, "select 1;") // psql shows notifications after a command
	await(`Asynchronous notification "news" with payload "it is out"`)
	in.Close()
	if code, err := q.exit(patience); code != 0 || err != nil {
		t.Errorf("psql ended with %d, %v", code, err)
	}
}

// wrongPassword: the server's own words reach the client.
func (p pgThrough) wrongPassword(t *testing.T) {
	t.Parallel()
	cmd := p.psql("disable", "select 1")
	cmd.Env = append(cmd.Env, "PGPASSWORD=wrong")
	_, stderr, err := try(cmd)
	if want := `password authentication failed for user "app"`; err == nil || !strings.Contains(stderr, want) {
		t.Errorf("psql with a wrong password: %v, %q; want %q", err, stderr, want)
	}
}

// pgUnixSocket: libpq's own way, a folder with .s.PGSQL.PORT, works as listener.
func pgUnixSocket(t *testing.T, db *postgres, keys *pki) {
	t.Parallel()
	dir := shortDir(t)
	a := start(t, append([]string{"forward", "--listen", "unix:" + dir + "/.s.PGSQL.5432", "--to", db.addr(),
		"--starttls", "postgres", "--server-name", "localhost"}, keys.client()...)...)
	a.addr("forward")
	got := run(t, db.client(dir+":5432", "", "psql", psql("select ssl from pg_stat_ssl where pid = pg_backend_pid()")...))
	if got != "t" {
		t.Errorf("pg_stat_ssl says ssl = %q, want t", got)
	}
}

// pgRotation: the certificate is replaced again and again under load; the server
// sees the new ones, and no transaction fails.
func pgRotation(t *testing.T, db *postgres, keys *pki) {
	t.Parallel()
	ca := keys.ca
	dir := t.TempDir()
	rotate := func() string {
		next, err := ca.issue(leaf{cn: pgUser})
		if err == nil {
			err = next.write(dir, "client")
		}
		if err != nil {
			t.Fatal(err)
		}
		return next.serial.String()
	}
	rotate()
	a := start(t, "forward", "--listen", "127.0.0.1:0", "--to", db.addr(), "--starttls", "postgres", "--server-name", "localhost",
		"--cert", dir+"/client.crt", "--key", dir+"/client.key", "--ca", keys.file("ca.crt"))
	through := pgThrough{db, a, a.addr("forward")}
	bench, err := launch(db.client(through.addr, "disable", "pgbench", "-C", "-c", "4", "-T", "8", "-n"))
	if err != nil {
		t.Fatal(err)
	}
	defer bench.signal(os.Kill)
	rotations := 0
	for bench.running() {
		want := rotate()
		if err := eventually(patience, func() error { return through.sees(want) }); err != nil {
			t.Fatal(err)
		}
		rotations++
	}
	if code, _ := bench.exit(patience); code != 0 || rotations < 2 {
		t.Errorf("pgbench ended with %d after %d rotations:\n%s", code, rotations, bench.stderr)
	}
	checkBench(t, bench.stdout.String())
	a.metric("ambassador_identity_renewals_total{result=ok}", float64(rotations))
}

// sees is nil if the server knows a new connection by that certificate.
func (p pgThrough) sees(serial string) error {
	text, stderr, err := try(p.psql("disable", "select client_serial from pg_stat_ssl where pid = pg_backend_pid()"))
	if err != nil || text != serial {
		return fmt.Errorf("client_serial = %s, want %s (%v %s)", text, serial, err, stderr)
	}
	return nil
}

// restart: when the server stops, its sessions end with its own last message and the
// right reason; while it is down clients get the reason; when it is back, new sessions
// work without intervention.
func (p pgThrough) restart(t *testing.T) {
	cmd := p.psql("disable")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	q, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer q.signal(os.Kill)
	fmt.Fprintln(in, "select inet_client_port() is not null;\n\\echo connected")
	if _, err := q.stdout.awaitAfter(0, regexp.MustCompile("connected"), patience, q.exited); err != nil {
		t.Fatal(err, q.stderr)
	}
	from := p.a.stderr.len()
	p.stop(t)
	fmt.Fprintln(in, "select 1;")
	p.a.awaitAfter(from, `"stage":"relay","reason":"(closed|upstream_reset)".*"first_close":"upstream"`)
	if _, err := q.exit(patience); err != nil {
		t.Fatal(err)
	}
	if want := "terminating connection due to administrator command"; !strings.Contains(q.stderr.String(), want) {
		t.Errorf("psql says %q, want %q", q.stderr, want)
	}

	from = p.a.stderr.len()
	if _, _, err := try(p.psql("disable", "select 1")); err == nil {
		t.Error("psql works, and the server is down")
	}
	p.a.awaitAfter(from, `"stage":"dial","reason":"refused"`)

	p.startServer(t)
	if got := run(t, p.psql("disable", "select 1")); got != "1" {
		t.Errorf("after the restart: %q", got)
	}
}

// checkServerLog: the server never had reason to complain of how connections to
// it ended; probes for readiness and cancelled dials included.
func checkServerLog(t *testing.T, db *postgres) {
	t.Helper()
	complaint := regexp.MustCompile(`(?m)^.*(could not receive|could not accept SSL|incomplete startup packet|SSL error|unexpected EOF|invalid length of startup|PANIC).*$`)
	if m := complaint.FindString(db.stderr.String()); m != "" {
		t.Errorf("the server complains: %s", m)
	}
}

// TestPostgresTwoServers proves that of two endpoints the one that is down is
// passed over, and that a cancel reaches the server that knows its key.
func TestPostgresTwoServers(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	one := newPostgres(t, keys)
	two := one.clone(t)
	config := fmt.Sprintf(`
listeners:
  pg: {listen: "127.0.0.1:0", upstream: db}
upstreams:
  db:
    endpoints: ["%s", "%s"]
    starttls: postgres
    tls: {identity: app, server_name: localhost}
identities:
  app: {files: {cert: %s, key: %s, ca: %s}}
`, one.addr(), two.addr(), keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"))
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", config))
	addr := a.addr("pg")
	seen := map[string]bool{}
	for range 6 {
		seen[run(t, one.client(addr, "disable", "psql", psql("select inet_server_port()")...))] = true
	}
	if !seen[one.port] || !seen[two.port] {
		t.Errorf("six sessions went to the ports %v, want both %s and %s", seen, one.port, two.port)
	}
	for range 2 { // round robin: once on each
		cancelQuery(t, a, addr, one, two)
	}
	one.stop(t)
	for range 4 {
		if got := run(t, two.client(addr, "disable", "psql", psql("select inet_server_port()")...)); got != two.port {
			t.Errorf("with one server down a session went to port %s, want %s", got, two.port)
		}
	}
	checkServerLog(t, two)
}

// TestPostgresRefusals proves that a PostgreSQL client is told in its own protocol why
// it gets no session, with the fix.
func TestPostgresRefusals(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	bin := needPostgres(t)
	notTLS := startServer(t, nil, refusesPostgresTLS)
	client := &postgres{bin: bin, keys: keys}
	a := start(t, "run", "-c", place{addr: notTLS.addr, starttls: "postgres"}.configFile(t, keys))
	_, stderr, err := try(client.client(a.addr("front"), "disable", "psql", psql("select 1")...))
	if err == nil || !strings.Contains(stderr, "ssl = on") {
		t.Errorf("psql before a server without TLS: %v, %q; want the hint ssl = on", err, stderr)
	}
	a.await(`"stage":"starttls","reason":"starttls_refused"`)
}
