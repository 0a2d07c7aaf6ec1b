package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// pgDirect is a PostgreSQL that accepts TLS at once, as 17 does: made of a real one, which
// is older. TLS without the ALPN name is ended, as 17 does. What is under TLS is passed on
// to the real one under TLS with our client's certificate, so that it offers channel binding.
func pgDirect(t testing.TB, db *postgres, keys *pki) *server {
	t.Helper()
	cfg := keys.mtls(t)
	cfg.NextProtos = []string{"postgresql"}
	pair, err := tls.LoadX509KeyPair(keys.file("client.crt"), keys.file("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	mine := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	return startServer(t, cfg, func(s *server, c duplex) {
		state := c.(*tls.Conn).ConnectionState()
		if state.NegotiatedProtocol != "postgresql" || len(state.PeerCertificates) == 0 {
			s.report(fmt.Sprintf("ALPN %q", state.NegotiatedProtocol))
			return
		}
		raw, err := net.Dial("tcp", db.addr())
		if err != nil {
			s.report(err.Error())
			return
		}
		defer raw.Close()
		answer := []byte{0}
		io.WriteString(raw, "\x00\x00\x00\x08\x04\xd2\x16\x2f")
		if _, err := io.ReadFull(raw, answer); err != nil || answer[0] != 'S' {
			s.report(fmt.Sprintf("%q, %v", answer, err))
			return
		}
		up := tls.Client(raw, mine)
		s.report("direct")
		var both sync.WaitGroup
		both.Go(func() { io.Copy(up, c); up.CloseWrite() }) // Wait waits for it
		both.Go(func() { io.Copy(c, up); c.CloseWrite() })  // Wait waits for it
		both.Wait()
	})
}

// TestPostgresDirect proves that starttls_options.direct begins TLS at once, and that a
// client without TLS then logs in by SCRAM and cancels a query; and that a server without it
// is explained.
func TestPostgresDirect(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	db := newPostgres(t, keys)
	srv := pgDirect(t, db, keys)
	front := func(addr string) (*ambassador, string) {
		a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: db}}
upstreams:
  db:
    endpoints: ["%s"]
    starttls: postgres
    starttls_options: {direct: true}
    health: {interval: 0s}
    required: false
    tls: {identity: me, server_name: localhost, ca: %s}
identities: {me: {files: {cert: %s, key: %s}}}
`, addr, keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"))))
		return a, a.addr("front")
	}
	a, addr := front(srv.addr)
	for _, mode := range []string{"disable", "prefer"} {
		if got := run(t, db.client(addr, mode, "psql", psql("select count(*) from pg_stat_ssl where ssl and pid = pg_backend_pid()")...)); got != "1" {
			t.Errorf("sslmode=%s: %q", mode, got)
		}
	}
	if err := srv.received("direct", patience); err != nil || strings.Contains(srv.reports(), "ALPN") {
		t.Errorf("%v: %s", err, srv.reports())
	}
	cancelQuery(t, a, addr, db)

	old, addr := front(db.addr())
	if _, stderr, err := try(db.client(addr, "disable", "psql", psql("select 1")...)); err == nil || !strings.Contains(stderr, "remove starttls_options.direct") {
		t.Errorf("PostgreSQL before 17: %v, %q", err, stderr)
	}
	old.await(`"stage":"tls","reason":"upstream_tls","cause":".*PostgreSQL before 17.*remove starttls_options.direct`)
}
