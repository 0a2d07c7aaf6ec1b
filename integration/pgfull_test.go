package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// limit restarts the server with room for n clients.
func (p *postgres) limit(t testing.TB, n int) {
	t.Helper()
	p.stop(t)
	f, err := os.OpenFile(p.file("d/postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "max_connections = %d\nsuperuser_reserved_connections = 0\n", n)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	p.startServer(t)
}

var pgPort = regexp.MustCompile(`port (\d+)`)

// hold connects with psql and stays; it returns the port of its server, or psql's
// error.
func (p *postgres) hold(t testing.TB, cmd *exec.Cmd) (port string, release func()) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	q, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	release = func() {
		in.Close()
		if _, err := q.exit(patience); err != nil {
			q.signal(os.Kill)
			t.Error(err)
		}
	}
	io.WriteString(in, "select 'port ' || inet_server_port();\n")
	m, err := q.stdout.awaitAfter(0, pgPort, patience, q.exited)
	if err != nil {
		return q.stderr.String(), release
	}
	return m[1], release
}

// faultPostgresFull fills one of two PostgreSQL servers until it refuses. It does
// so in its own protocol, after TLS and the client's first message, so that the
// session is a good one to us, and its client is told what the server says:
// neither breaker nor health sees a failure, and the other server stays idle where
// it has a higher priority. What helps is a limit of ours under the server's own,
// which sends what is beyond it to the other server.
func faultPostgresFull(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	small := newPostgres(t, keys)
	large := small.clone(t)
	const room = 6
	small.limit(t, room)
	config := func(limit string) string {
		return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  pg: {listen: "127.0.0.1:0", upstream: db}
upstreams:
  db:
    endpoints: ["%s", {address: "%s", priority: 1}]
    starttls: postgres
    tls: {identity: app, server_name: localhost}
    health: {interval: 200ms, idle_interval: 0s, fall: 1}
    breaker: {failures: 1}
    %s
identities:
  app: {files: {cert: %s, key: %s, ca: %s}}
`, small.addr(), large.addr(), limit, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt")))
	}
	// clients opens n sessions, which stay, and counts how they went.
	clients := func(a *ambassador, n int) (at map[string]int, refused int, releaseAll func()) {
		at = map[string]int{}
		var releases []func()
		for range n {
			port, release := small.hold(t, small.client(a.addr("pg"), "disable", "psql", psql()...))
			switch releases = append(releases, release); {
			case strings.Contains(port, "too many clients already"):
				refused++
			case port != small.port && port != large.port:
				t.Errorf("a client is told %q", port)
			default:
				at[port]++
			}
		}
		return at, refused, func() {
			for _, release := range releases {
				release()
			}
		}
	}

	a := start(t, "run", "-c", config(""))
	a.metric("ambassador_addresses{upstream=db,health=healthy}", 2)
	at, refused, release := clients(a, 2*room)
	if at[small.port] != room || refused != room {
		t.Errorf("of %d sessions %v were served and %d refused; want %d each", 2*room, at, refused, room)
	}
	a.await(`"msg":"session".*"stage":"relay","reason":"closed".*"first_close":"upstream"`)
	a.metric("ambassador_addresses{upstream=db,health=healthy}", 2)
	a.metric("ambassador_breakers{upstream=db,state=closed}", 2)
	for _, what := range []string{"ambassador_attempts_total", "ambassador_attempts_total{reason=ok}"} {
		if n, err := sample(a.process, what); err != nil || n != 2*room {
			t.Errorf("%s = %v, %v; want %d", what, n, err, 2*room)
		}
	}
	release()
	t.Logf("postgres full: of %d clients the first server served %d and told %d that it is full, the second served %d; breaker and health saw no failure",
		2*room, at[small.port], refused, at[large.port])

	b := start(t, "run", "-c", config(fmt.Sprintf("limits: {connections: %d}", room)))
	b.metric("ambassador_addresses{upstream=db,health=healthy}", 2)
	if at, refused, release = clients(b, 2*room); at[small.port] != room || at[large.port] != room {
		t.Errorf("with limits.connections of %d, %v of %d were served and %d refused", room, at, 2*room, refused)
	}
	release()
	t.Logf("postgres full: with limits.connections of %d the first served %d and the second %d, and nobody was refused", room, at[small.port], at[large.port])
}
