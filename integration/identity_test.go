package integration

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// renewals counts an identity's.
func renewals(result string) string {
	return `ambassador_identity_renewals_total{identity=me,result=` + result + `}`
}

// TestPostgresThroughRenewals: a pgbench that connects for each transaction notices
// neither renewals nor a short outage of the CA. In an outage that is longer than a
// certificate's life the error has the reason, and soon after the CA's return
// connections work.
func TestPostgresThroughRenewals(t *testing.T) {
	t.Parallel()
	life, seconds := 12*time.Second, "40"
	if long() {
		life, seconds = 3*time.Minute, "600"
	}
	keys := newPKI(t)
	root := newStepRoot(t, "step root")
	trust(t, keys, root)
	db := newPostgres(t, keys)
	run(t, db.direct("pgbench", "-i", "-s", "1", "-q"))
	ca := newStepCA(t, root)
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
identities: {me: %s}
upstreams: {db: {endpoints: [%q], starttls: postgres, tls: {identity: me, ca: %s, server_name: localhost}}}
listeners: {pg: {listen: "127.0.0.1:0", upstream: db}}
`, ca.identity(root, pgUser, life, filepath.Join(t.TempDir(), "me")), db.addr(), keys.file("ca.crt"))))
	through := pgThrough{db, a, a.addr("pg")}
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("not ready")
	}
	bench, err := launch(db.client(through.addr, "disable", "pgbench", "-C", "-c", "4", "-T", seconds, "-n"))
	if err != nil {
		t.Fatal(err)
	}
	defer bench.end()
	awaitLong(t, a, renewals("ok"), 2, 2*life)
	ca.stop()
	awaitLong(t, a, renewals("error"), 1, 2*life) // the CA was missed, and is missed by nobody else
	ca.start(root)
	if code, err := bench.exit(20 * time.Minute); code != 0 || err != nil {
		t.Errorf("pgbench: exit code %d, %v\n%s", code, err, tail(bench.stderr.String(), 4<<10))
	}
	checkBench(t, bench.stdout.String())
	if n, err := sample(a.process, renewals("ok")); err != nil || n < 4 { // the first is no renewal
		t.Errorf("%v certificates, %v; want the first and 3 renewals at least", n, err)
	}
	pastExpiry(t, through, ca, root, life)
}

// trust makes a PostgreSQL server that is started with keys accept the clients of
// another root, too.
func trust(t *testing.T, keys *pki, root *stepRoot) {
	t.Helper()
	f, err := os.OpenFile(keys.file("ca.crt"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(root.pem)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// awaitLong is metric with a longer bound.
func awaitLong(t *testing.T, a *ambassador, selector string, want float64, within time.Duration) {
	t.Helper()
	err := eventually(patience+within, func() error {
		got, err := sample(a.process, selector)
		if err == nil && got < want {
			err = fmt.Errorf("%s = %v, want at least %v", selector, got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pastExpiry stops the CA until the certificate has expired.
func pastExpiry(t *testing.T, through pgThrough, ca *stepCA, root *stepRoot, life time.Duration) {
	t.Helper()
	ca.stop()
	var took time.Duration
	selectOne := func() (string, error) {
		start := time.Now()
		text, stderr, err := try(through.psql("disable", "select 1"))
		took = time.Since(start)
		if err == nil && text != "1" {
			err = errors.New(text)
		}
		return stderr, err
	}
	err := eventually(patience+2*life, func() error {
		stderr, err := selectOne()
		if err == nil || !strings.Contains(stderr, "expired at") || !strings.Contains(stderr, "connection refused") {
			return fmt.Errorf("psql: %v, %s; want a refusal with the reason", err, stderr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	through.a.await(`"reason":"no_identity","cause":"[^"]*expired at [^"]*connection refused`)
	ca.start(root)
	back := time.Now()
	if err := eventually(patience, func() error { _, err := selectOne(); return err }); err != nil {
		t.Fatal(err)
	}
	most := 15 * time.Second // among all other tests, on a machine that is busy with them
	if on("AMBASSADOR_TEST_LONG") {
		most = 2 * time.Second
	}
	d := time.Since(back) - took
	t.Logf("a session works %v after the CA's return", d)
	if d > most {
		t.Errorf("a session works %v after the CA's return, want %v at most", d, most)
	}
}

// stepFile is a configuration with the listener "front" and a TLS upstream that is
// shown, and verified by, an identity.
func stepFile(identity, upstream string) string {
	return fmt.Sprintf(`
identities: {me: %s}
upstreams: {up: {endpoints: [%q], tls: {identity: me}}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
`, identity, upstream)
}

// patient makes sessions wait longer for a CA, for a busy machine.
func patient(file string) string {
	return strings.Replace(file, "tls: {identity: me}", "tls: {identity: me}, connect: {timeout: 25s, attempt_timeout: 20s}", 1)
}

// takes is the configuration of a server that accepts only clients of those roots.
func takes(server func() *tls.Certificate, roots ...*stepRoot) *tls.Config {
	return &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return server(), nil },
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: poolOf(roots...), SessionTicketsDisabled: true}
}

// TestSleepsPastExpiry: a process that was stopped until its certificate had
// expired renews before it offers anything.
func TestSleepsPastExpiry(t *testing.T) {
	t.Parallel()
	root := newStepRoot(t, "step root")
	ca, own := newStepCA(t, root), root.server(t)
	server := startServer(t, takes(func() *tls.Certificate { return own }, root), echo)
	storage := filepath.Join(t.TempDir(), "me")
	a := start(t, "run", "-c", writeFile(t, "a.yaml", patient(stepFile(ca.identity(root, "me.test", 4*time.Second, storage), server.addr))))
	a.await(`"msg":"upstream reached"`)
	line(t, a.connect("front"), "awake")
	for range 2 {
		a.signal(syscall.SIGSTOP)
		until, err := stored(storage)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Until(until.NotAfter) + 1500*time.Millisecond) // asleep, it tells nothing
		c := a.connect("front")
		a.signal(syscall.SIGCONT)
		line(t, c, "hello")
	}
	if n, err := sample(a.process, `ambassador_sessions_total{reason=no_identity}`); err != nil || n != 0 {
		t.Errorf("%v sessions ended with no_identity, %v", n, err)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.seen) > 0 {
		t.Errorf("the server saw %q", server.seen)
	}
}

// stored is the certificate that an identity keeps in its folder.
func stored(folder string) (*x509.Certificate, error) {
	name := filepath.Join(folder, "identity.pem")
	pair, err := tls.LoadX509KeyPair(name, name)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(pair.Certificate[0])
}

// TestRootIsRotated: the CA changes its root, with both federated in between. No
// connection fails, and in the end the old root is not trusted.
func TestRootIsRotated(t *testing.T) {
	t.Parallel()
	old, next := newStepRoot(t, "old root"), newStepRoot(t, "next root")
	ca := newStepCA(t, old)
	var own atomic.Pointer[tls.Certificate]
	own.Store(old.server(t))
	server := startServer(t, takes(own.Load, old, next), echo)
	storage := filepath.Join(t.TempDir(), "me")
	// The CA's restarts take seconds on a busy machine: a third of that life is left for them.
	file := writeFile(t, "a.yaml", stepFile(ca.identity(old, "me.test", 40*time.Second, storage), server.addr))
	a := start(t, "run", "-c", file)
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("not ready")
	}
	stop := exchanging(t, a.addr("front"))

	ca.stop()
	ca.start(old, next) // announced
	a.awaitAfter(0, `"msg":"roots changed","identity":"me","old":1,"roots":2`)
	own.Store(next.server(t)) // servers go over first
	ca.stop()
	ca.start(next, old) // and then the CA
	err := eventually(2*patience, func() error {
		leaf, err := stored(storage)
		if err == nil {
			err = leaf.CheckSignatureFrom(next.intermediate.cert)
		}
		return err
	})
	if err != nil {
		t.Errorf("no certificate of the next root: %v", err)
	}
	mark := a.stderr.len()
	ca.stop()
	ca.start(next) // the old one is gone
	a.awaitAfter(mark, `"msg":"roots changed","identity":"me","old":2,"roots":1`)
	if n := stop(); n < 50 {
		t.Errorf("only %d exchanges", n)
	}
	own.Store(old.server(t))
	refuses(t, a, "tls", "upstream_tls", "no root that we trust")

	a.signal(syscall.SIGTERM) // a restart without the CA trusts the root that has replaced that of the fingerprint
	a.ended(0)
	ca.stop()
	b := start(t, "run", "-c", file)
	refuses(t, b, "tls", "upstream_tls", "no root that we trust")
	own.Store(next.server(t))
	line(t, b.connect("front"), "again")
}

// refuses makes a connection that must end with a reason and a cause with that text.
// The reset may arrive before the client knows that it is connected.
func refuses(t *testing.T, a *ambassador, stage, reason, cause string) {
	t.Helper()
	mark := a.stderr.len()
	if err := exchange(a.addr("front"), "hello"); err == nil {
		t.Errorf("served; want %s", reason)
	}
	a.awaitAfter(mark, `"msg":"session",.*"stage":"`+stage+`","reason":"`+reason+`","cause":"[^"]*`+cause)
}

// exchanging makes one short connection after the other until stop, which says
// how many, and fails the test with the first that does not work.
func exchanging(t *testing.T, addr string) (stop func() int) {
	t.Helper()
	end, n := make(chan struct{}), 0
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond): // a load, not a wait
			}
			if err := exchange(addr, fmt.Sprintf("line %d", n)); err != nil {
				t.Errorf("exchange %d: %v", n, err)
				return
			}
			n++
		}
	})
	stop = sync.OnceValue(func() int {
		close(end)
		running.Wait()
		return n
	})
	t.Cleanup(func() { stop() })
	return stop
}

// TestStartsWithoutTheCA: a start and a reload do not wait for the CA, and a session's
// record has the reason; with storage a restart does not need the CA.
func TestStartsWithoutTheCA(t *testing.T) {
	t.Parallel()
	root := newStepRoot(t, "step root")
	ca, own := newStepCA(t, root), root.server(t)
	ca.stop()
	server := startServer(t, takes(func() *tls.Certificate { return own }, root), echo)
	storage := filepath.Join(t.TempDir(), "me")
	file := writeFile(t, "a.yaml", stepFile(ca.identity(root, "me.test", time.Hour, storage), server.addr))
	a := start(t, "run", "-c", file)
	refuses(t, a, "permit", "no_identity", "connection refused")
	if _, code := a.ask("reload"); code != 0 {
		t.Error("reload failed")
	}
	ca.start(root)
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("not ready")
	}
	text, _, err := get(a.process, "/v1/identities")
	var reply struct {
		Identities []struct {
			Ready                   bool
			Subject, Serial, Issuer string
			NotBefore, NotAfter     time.Time
			NextRenewal             time.Time `json:"next_renewal"`
			LastError               string    `json:"last_error"`
		}
	}
	if err = errors.Join(err, json.Unmarshal([]byte(text), &reply)); err != nil || len(reply.Identities) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	if id := reply.Identities[0]; !id.Ready || id.Subject != "CN=me.test" || id.Serial == "" || id.Issuer != "CN=step root intermediate" || id.LastError != "" ||
		time.Until(id.NextRenewal) < 30*time.Minute {
		t.Errorf("%s", text)
	}
	ca.stop()
	a.signal(syscall.SIGTERM)
	a.ended(0)
	b := start(t, "run", "-c", file)
	line(t, b.connect("front"), "again")
}

// TestOwnCA: the configuration that `ambassador ca` prints works, and the certificate
// is one of its root.
func TestOwnCA(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := start(t, "ca", "--listen", "127.0.0.1:0", "--storage", filepath.Join(dir, "ca"))
	ca.addr("ca")
	m, err := ca.stdout.awaitAfter(0, regexp.MustCompile(`(?s)(identities:\n.*storage: me-identity\n)`), patience, ca.exited)
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "a.yaml", m[1]+`
upstreams: {up: {endpoints: ["127.0.0.1:1"], required: false, tls: {identity: me}}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
`)
	checked := start(t, "check", "-c", file) // contacts nobody
	checked.ended(0)
	a := start(t, "run", "-c", file)
	a.await(`"msg":"identity obtained","identity":"me","generation":1,"names":\["dns:me.internal"\]`)
	leaf, err := stored(filepath.Join(filepath.Dir(file), "me-identity"))
	if err != nil || leaf.Subject.CommonName != "me.internal" {
		t.Errorf("stored: %v, %v", leaf, err)
	}
	ca.signal(syscall.SIGTERM)
	ca.ended(0)
}

// TestRevokedServer: a new revocation list counts at once, for a session that
// could be resumed, too.
func TestRevokedServer(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	server := startServer(t, keys.mtls(t), echo)
	own, err := tls.LoadX509KeyPair(keys.file("server.crt"), keys.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	list := keys.file("ca.crl")
	revoke := func(serials ...*big.Int) {
		t.Helper()
		template := &x509.RevocationList{Number: serial(), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
		for _, s := range serials {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, template, keys.ca.cert, keys.ca.key)
		if err == nil {
			err = os.WriteFile(list+".new", der, 0o600)
		}
		if err = errors.Join(err, os.Rename(list+".new", list)); err != nil {
			t.Fatal(err)
		}
	}
	revoke()
	a := start(t, "run", "-c", writeFile(t, "a.yaml", fmt.Sprintf(`
identities: {me: {files: {cert: %s, key: %s, ca: %s, crl: %s}}}
upstreams: {up: {endpoints: [%q], tls: {identity: me, server_name: localhost}}}
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
`, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"), list, server.addr)))
	for range 2 {
		line(t, a.connect("front"), "hello")
	}
	revoke(leaf.SerialNumber)
	a.await(`"msg":"identity renewed","identity":"me","generation":2`)
	refuses(t, a, "tls", "upstream_tls", "was revoked by")
}
