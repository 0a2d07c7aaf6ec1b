package integration

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// caller is the configuration of a client with a certificate of the pki's folder.
func (p *pki) caller(t testing.TB, name string) *tls.Config {
	t.Helper()
	cfg := &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AddCert(p.ca.cert)
	if name == "" {
		return cfg
	}
	pair, err := tls.LoadX509KeyPair(p.file(name+".crt"), p.file(name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	// Whatever the server asks for, so that its refusal is seen.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return cfg
}

// name makes a certificate NAME.* of the CA for DNS names.
func (p *pki) name(t testing.TB, name string, l leaf) {
	t.Helper()
	made, err := p.ca.issue(l)
	if err == nil {
		err = made.write(p.dir, name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// revoke writes the list of the CA's revoked certificates.
func (p *pki) revoke(t testing.TB, names ...string) {
	t.Helper()
	list := &x509.RevocationList{Number: serial(), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, name := range names {
		pair, err := tls.LoadX509KeyPair(p.file(name+".crt"), p.file(name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: new(big.Int).Set(pair.Leaf.SerialNumber), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, p.ca.cert, p.ca.key)
	if err == nil {
		err = os.WriteFile(p.file("crl.new"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o644)
	}
	if err = errors.Join(err, os.Rename(p.file("crl.new"), p.file("ca.crl"))); err != nil {
		t.Fatal(err)
	}
}

// call exchanges a line over TLS, and returns our end of the connection and the result.
func call(t testing.TB, addr string, cfg *tls.Config) (raw net.Conn, state tls.ConnectionState, err error) {
	t.Helper()
	raw, err = dialTCP(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, cfg)
	fmt.Fprintln(c, "hello")
	text, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && text != "hello\n" {
		err = fmt.Errorf("echo of hello = %q", text)
	}
	if err == nil {
		c.CloseWrite()
		_, err = io.Copy(io.Discard, c)
	}
	return raw, c.ConnectionState(), err
}

// TestListenerTLS proves which clients a TLS listener accepts, and that the others are
// recorded with their reasons.
func TestListenerTLS(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	keys.name(t, "batch", leaf{cn: "x", dns: []string{"n1.batch.test"}})
	keys.name(t, "web", leaf{cn: "n1.batch.test", dns: []string{"web.test"}})
	keys.name(t, "old", leaf{dns: []string{"old.batch.test"}, notBefore: time.Now().Add(-2 * time.Hour), notAfter: time.Now().Add(-time.Hour)})
	keys.name(t, "lost", leaf{dns: []string{"lost.batch.test"}})
	keys.name(t, "alias", leaf{dns: []string{"alias.test"}})
	keys.revoke(t, "lost")
	up := startServer(t, nil, echo)
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
identities:
  me: {files: {cert: %[1]s/server.crt, key: %[1]s/server.key, ca: %[1]s/ca.crt, crl: %[1]s/ca.crl}}
  alias: {files: {cert: %[1]s/alias.crt, key: %[1]s/alias.key}}
upstreams: {up: {endpoints: [%[2]q]}}
listeners:
  front: {listen: "0.0.0.0:0", upstream: up, tls: {identity: me, principals: ["dns:*.batch.test"]}}
  several: {listen: "127.0.0.1:0", upstream: up, timeouts: {handshake: 1s}, tls: {identities: [me, alias], client: none, min_version: "1.3"}}
`, keys.dir, up.addr))
	a := start(t, "run", "-c", file)
	_, port, _ := net.SplitHostPort(a.addr("front"))
	addr := "127.0.0.1:" + port

	for _, tt := range []struct{ client, reason, cause, principal string }{
		{"batch", "closed", "", "dns:n1.batch.test"},
		{"web", "denied", "the client's certificate is for dns:web.test, but principals wants dns:*.batch.test", ""},
		{"lost", "downstream_tls", "was revoked by", ""},
		{"old", "downstream_tls", "expired at", ""},
		{"client-other", "downstream_tls", "no root that we trust (the identity's)", ""},
		{"", "downstream_tls", "didn't provide a certificate", ""},
	} {
		raw, _, err := call(t, addr, keys.caller(t, tt.client))
		stage := "relay"
		if tt.reason != "closed" {
			stage = "greet"
			if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "remote error" {
				t.Errorf("%s: the client sees %v, want an alert", tt.client, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", tt.client, err)
		}
		if r := a.endsAs(raw, stage, tt.reason); !strings.Contains(r.Cause, tt.cause) || r.Principal != tt.principal {
			t.Errorf("%s: record %+v", tt.client, r)
		}
	}

	// A client without TLS, and one that sends nothing, are reset.
	for listener, reason := range map[string]string{"front": "downstream_tls", "several": "handshake_timeout"} {
		_, port, _ := net.SplitHostPort(a.addr(listener))
		c, err := dialTCP("127.0.0.1:" + port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if listener == "front" {
			io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		}
		resetByPeer(t, c)
		a.endsAs(c, "greet", reason)
	}

	// The certificate is that of the name asked for.
	for _, name := range []string{"localhost", "alias.test"} {
		cfg := keys.caller(t, "")
		cfg.ServerName = name
		if _, state, err := call(t, a.addr("several"), cfg); err != nil || state.Version != tls.VersionTLS13 {
			t.Errorf("%s: TLS %x, %v", name, state.Version, err)
		}
	}
	resumedUntilRevoked(t, a, addr, keys)
}

// resumedUntilRevoked resumes a session, and revokes its certificate.
func resumedUntilRevoked(t *testing.T, a *ambassador, addr string, keys *pki) {
	t.Helper()
	cfg := keys.caller(t, "batch")
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for _, want := range []bool{false, true} {
		if _, state, err := call(t, addr, cfg); err != nil || state.DidResume != want {
			t.Errorf("resumed: %v, %v; want %v", state.DidResume, err, want)
		}
	}
	mark := a.stderr.len()
	keys.revoke(t, "lost", "batch")
	if err := eventually(patience, func() error {
		if _, _, err := call(t, addr, cfg); err == nil {
			return errors.New("a revoked certificate is accepted")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	a.awaitAfter(mark, `"reason":"downstream_tls","cause":"[^"]*was revoked by`)
}

// TestHandshakeFlood proves that clients which begin a handshake and stop neither block
// a real one, nor exhaust the process.
func TestHandshakeFlood(t *testing.T) {
	keys := newPKI(t)
	up := startServer(t, nil, echo)
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
identities: {me: {files: {cert: %[1]s/server.crt, key: %[1]s/server.key}}}
upstreams: {up: {endpoints: [%[2]q]}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up, timeouts: {handshake: 5m}, tls: {identity: me, client: none}}}
`, keys.dir, up.addr)))
	addr, cfg := a.addr("front"), keys.caller(t, "")
	before, err := ownKiB(a.process)
	if err != nil {
		t.Skip(err)
	}
	const flood = 5000
	for i := range flood {
		c, err := dialTCP(addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		io.WriteString(c, "\x16\x03\x01\x02") // a hello that is never ended
		if i%500 != 499 {
			continue
		}
		start := time.Now()
		if _, _, err := call(t, addr, cfg); err != nil {
			t.Errorf("after %d: %v", i+1, err)
		}
		if d := time.Since(start); d > patience/10 {
			t.Errorf("after %d: served after %v", i+1, d)
		}
	}
	ended, err := sample(a.process, `ambassador_sessions_total{stage=greet,reason=limit}`)
	if err != nil || ended == 0 {
		t.Errorf("%v were ended by limits.memory, %v", ended, err)
	}
	after, err := ownKiB(a.process)
	if err != nil {
		t.Fatal(err)
	}
	left := flood - int(ended)
	t.Logf("%d clients in their handshakes take %d KiB each", left, (after-before)/left)
	if grown := after - before; grown > 200<<10 && !on("AMBASSADOR_TEST_RACE") {
		t.Errorf("the process has grown by %d KiB", grown)
	}
}

// ownKiB is the memory that a process has of its own. The pages of its program come and
// go as they are used.
func ownKiB(p *process) (int, error) { return memoryKiB(p, "RssAnon:") }

// residentKiB is the memory that a process has, with the pages of its program.
func residentKiB(p *process) (int, error) { return memoryKiB(p, "VmRSS:") }

// memoryKiB is a field of a process's memory, in KiB; see proc_pid_status(5).
func memoryKiB(p *process, field string) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var n int
	_, rest, _ := strings.Cut(string(text), field)
	if _, err := fmt.Sscan(rest, &n); err != nil {
		return 0, err
	}
	return n, nil
}
