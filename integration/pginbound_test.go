package integration

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// pgInbound is an ambassador to which PostgreSQL's clients speak TLS.
type pgInbound struct {
	*postgres
	a *ambassador
}

// psql prepares psql with TLS to a listener, with sslmode=verify-full and more of
// libpq's environment.
func (p pgInbound) psql(listener string, env []string, sql ...string) *exec.Cmd {
	cmd := p.client(p.a.addr(listener), "verify-full", "psql", psql(sql...)...)
	cmd.Env = append(cmd.Env, "PGSSLROOTCERT="+p.keys.file("ca.crt"))
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// TestPostgresClientsWithTLS proves that a listener serves PostgreSQL's clients
// that want TLS: before a server without, and before one with, where the login
// must not be bound to TLS.
func TestPostgresClientsWithTLS(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	keys.name(t, "batch", leaf{cn: "x", dns: []string{"n1.batch.test"}})
	db := newPostgres(t, keys)
	hba := "hostssl all all all scram-sha-256 clientcert=verify-full\nhostnossl all all all scram-sha-256\n"
	if err := os.WriteFile(db.file("d/pg_hba.conf"), []byte(hba), 0o600); err != nil {
		t.Fatal(err)
	}
	db.signal(syscall.SIGHUP)
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
identities:
  app: {files: {cert: %[1]s/client.crt, key: %[1]s/client.key, ca: %[1]s/ca.crt}}
  me: {files: {cert: %[1]s/server.crt, key: %[1]s/server.key, ca: %[1]s/ca.crt}}
upstreams:
  plain: {endpoints: [%[2]q]}
  tls: {endpoints: [%[2]q], starttls: postgres, tls: {identity: app, server_name: localhost}}
  down: {endpoints: ["127.0.0.1:1"], required: false, connect: {attempts: 1}, health: {interval: 0s}, breaker: {failures: 0}}
listeners:
  plain: {listen: "127.0.0.1:0", upstream: plain, starttls: postgres, tls: {identity: me, client: none}}
  tls: {listen: "127.0.0.1:0", upstream: tls, starttls: postgres, tls: {identity: me, client: none}}
  mutual: {listen: "127.0.0.1:0", upstream: plain, starttls: postgres, tls: {identity: me, principals: ["dns:*.batch.test"]}}
  down: {listen: "127.0.0.1:0", upstream: down, starttls: postgres, tls: {identity: me, client: none}}
`, keys.dir, db.addr())))
	p := pgInbound{db, a}
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("not ready")
	}
	t.Run("together", func(t *testing.T) {
		t.Run("logins", p.logins)
		t.Run("refusals", p.refusals)
		t.Run("mutual", p.mutual)
		t.Run("direct", p.direct17)
		t.Run("cancel", p.cancels)
	})
}

const seen = "select ssl, coalesce(client_dn, '-') from pg_stat_ssl where pid = pg_backend_pid()"

func (p pgInbound) logins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ listener, env, want string }{
		{"plain", "", "f|-"},
		{"plain", "PGCHANNELBINDING=disable", "f|-"},
		{"tls", "PGCHANNELBINDING=disable", "t|/CN=app"},
	} {
		if got := run(t, p.psql(tt.listener, []string{tt.env}, seen)); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.listener, tt.env, got, tt.want)
		}
	}
}

// refusals: a client without a session reads the reason.
func (p pgInbound) refusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ listener, env, want string }{
		{"tls", "", "channel_binding=disable"},
		{"plain", "PGSSLMODE=disable", "set sslmode=verify-full"},
		{"plain", "PGSSLROOTCERT=" + p.keys.file("other.crt"), "certificate verify failed"},
		{"mutual", "", "certificate required"},
		{"down", "", "connection refused (refused)"},
	} {
		if _, stderr, err := try(p.psql(tt.listener, []string{tt.env}, "select 1")); err == nil || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s %s: %v, %s; want %q", tt.listener, tt.env, err, stderr, tt.want)
		}
	}
	p.a.await(`"listener":"tls".*"reason":"bad_greeting","cause":".*set channel_binding=disable`)
	p.a.await(`"listener":"plain".*"reason":"bad_greeting","cause":".*set sslmode=verify-full`)
	p.a.await(`"listener":"plain".*"reason":"downstream_tls","cause":"the client rejected our certificate .*remote error: tls: unknown certificate authority`)
	p.a.await(`"listener":"mutual".*"reason":"downstream_tls","cause":"[^"]*didn't provide a certificate`)
}

// mutual: the client's certificate is asked for, and on record.
func (p pgInbound) mutual(t *testing.T) {
	t.Parallel()
	cert := func(name string) []string {
		return []string{"PGSSLCERT=" + p.keys.file(name+".crt"), "PGSSLKEY=" + p.keys.file(name+".key")}
	}
	if got := run(t, p.psql("mutual", cert("batch"), "select 1")); got != "1" {
		t.Errorf("psql says %q", got)
	}
	p.a.await(`"listener":"mutual",.*"principal":"dns:n1.batch.test",.*"reason":"closed"`)
	if _, stderr, err := try(p.psql("mutual", cert("server"), "select 1")); err == nil {
		t.Errorf("another principal came in: %s", stderr)
	}
	p.a.await(`"listener":"mutual",.*"reason":"denied"`)
}

// direct17 begins with TLS at once, as PostgreSQL 17's clients may.
func (p pgInbound) direct17(t *testing.T) {
	t.Parallel()
	cfg := p.keys.caller(t, "")
	cfg.NextProtos = []string{"postgresql"}
	c, err := tls.Dial("tcp", p.a.addr("plain"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "\x00\x00\x00\x12\x00\x03\x00\x00user\x00app\x00\x00")
	answer := make([]byte, 9)
	if _, err := io.ReadFull(c, answer); err != nil || answer[0] != 'R' || answer[8] != 10 || c.ConnectionState().NegotiatedProtocol != "postgresql" {
		t.Errorf("answer %q, %v, ALPN %q", answer, err, c.ConnectionState().NegotiatedProtocol)
	}
}

// cancels: Ctrl-C works, although psql asks for it without TLS before 17. Where a
// certificate is demanded it works only with one.
func (p pgInbound) cancels(t *testing.T) {
	t.Parallel()
	for _, listener := range []string{"plain", "tls"} {
		mark := "cancel " + hex.EncodeToString(serial().Bytes())
		q, err := launch(p.psql(listener, []string{"PGCHANNELBINDING=disable"}, "select pg_sleep(60) /* "+mark+" */"))
		if err != nil {
			t.Fatal(err)
		}
		defer q.signal(os.Kill)
		if err := eventually(patience, func() error { return active(mark, []*postgres{p.postgres}) }); err != nil {
			t.Fatal(err)
		}
		q.signal(syscall.SIGINT)
		if _, err := q.exit(patience); err != nil || !strings.Contains(q.stderr.String(), "canceling statement due to user request") {
			t.Errorf("%s: %v, psql says %s", listener, err, q.stderr)
		}
		p.a.await(`"listener":"` + listener + `",.*"reason":"closed","cause":"cancel request passed on to 1 of`)
	}
	c, err := net.Dial("tcp", p.a.addr("mutual"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x12\x34\xde\xad\xbe\xef")
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	c.Close()
	p.a.endsAs(c, "greet", "bad_greeting")
}
