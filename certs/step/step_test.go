package step

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ambassador/certs"
	"ambassador/certs/embedded"
)

// patience bounds every wait for something that should happen soon.
const patience = 30 * time.Second

// authority is a step-ca in the process that can be stopped and started.
type authority struct {
	t       *testing.T
	dir     string // its storage
	server  *embedded.Server
	addr    string
	stop    func()
	pw      string // file with the provisioner's password
	storage string // of clients
}

const password = "correct horse"

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), addr: "127.0.0.1:0", storage: filepath.Join(t.TempDir(), "identity")}
	a.pw = filepath.Join(a.dir, "password")
	if err := os.WriteFile(a.pw, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start()
	t.Cleanup(func() { a.stop() })
	return a
}

func (a *authority) start() {
	a.t.Helper()
	var err error
	a.server, err = embedded.NewServer(embedded.ServerOptions{Names: []string{"127.0.0.1"}, Storage: filepath.Join(a.dir, "ca"), Password: []byte(password)})
	if err != nil {
		a.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", a.addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := a.server.Serve(ctx, ln, slog.New(slog.DiscardHandler)); err != nil {
			a.t.Error(err)
		}
	})
	a.stop = func() {
		cancel()
		serving.Wait()
		a.server.Close()
		a.stop = func() {}
	}
}

// config is that of a client with the provisioner's password.
func (a *authority) config(life time.Duration) Config {
	return Config{URL: "https://" + a.addr, Fingerprint: a.server.Fingerprint(), Provisioner: embedded.ProvisionerName, PasswordFile: a.pw,
		Names: []string{"orders.svc", "spiffe://corp/orders", "10.0.0.7", "a@corp"}, Lifetime: life, Storage: a.storage}
}

// run opens and runs an issuer until the test or stop ends it.
func run(t *testing.T, c Config) (s *certs.Source, log *lines, stop func()) {
	t.Helper()
	s, log = certs.NewSource("me"), &lines{}
	i, err := Open(c, s, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { i.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return s, log, stop
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await waits for a state of the source.
func await(t *testing.T, s *certs.Source, what string, is func(certs.Status) bool) certs.Status {
	t.Helper()
	end := time.After(patience)
	for {
		changed := s.Changed()
		st := s.Status()
		if is(st) {
			return st
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // a certificate expires without a change
		case <-end:
			t.Fatalf("not %s: %+v", what, st)
		}
	}
}

func ready(st certs.Status) bool { return st.Ready }

// keyOf is the public key in use.
func keyOf(t *testing.T, s *certs.Source) string {
	t.Helper()
	snap, err := s.Current()
	if err != nil {
		t.Fatal(err)
	}
	return string(snap.Certificate.Leaf.RawSubjectPublicKeyInfo)
}

func TestEnrolsAndRenewsWithANewKey(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s, log, _ := run(t, a.config(3*time.Second))
	first := await(t, s, "enrolled", ready)
	key := keyOf(t, s)
	if got := strings.Join(first.Names, " "); got != "spiffe://corp/orders dns:orders.svc ip:10.0.0.7 email:a@corp" || first.Subject != "CN=orders.svc" {
		t.Errorf("names %q of %q", got, first.Subject)
	}
	second := await(t, s, "renewed", func(st certs.Status) bool { return st.Serial != first.Serial })
	if !second.Ready || keyOf(t, s) == key || second.Failures != 0 {
		t.Errorf("after the renewal: %+v, the same key: %v", second, keyOf(t, s) == key)
	}
	snap, _ := s.Current()
	intermediates := x509.NewCertPool()
	for _, der := range snap.Certificate.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		intermediates.AddCert(c)
	}
	if _, err := snap.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: snap.Roots.Pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if got := log.String(); !strings.Contains(got, `msg="identity obtained"`) || strings.Contains(got, "BEGIN") {
		t.Errorf("log: %s", got)
	}
}

// A restart needs no token, and no CA either.
func TestStorageSurvivesARestart(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c := a.config(time.Hour)
	s, _, stop := run(t, c)
	first := await(t, s, "enrolled", ready)
	stop()
	a.stop()
	c.PasswordFile += ".gone"
	s, _, stop = run(t, c)
	if st := s.Status(); !st.Ready || st.Serial != first.Serial {
		t.Errorf("after the restart: %+v", st)
	}
	stop()
	for _, name := range []string{pairFile, rootsFile, lockFile} {
		info, err := os.Stat(filepath.Join(c.Storage, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, info, err)
		}
	}
	for want, change := range map[string]func(*Config){
		"not for other.svc":                func(c *Config) { c.Names = []string{"other.svc"} },
		"it is of the CA with":             func(c *Config) { c.Fingerprint = strings.Repeat("0", 64) },
		"":                                 func(c *Config) { c.Storage = t.TempDir() },
		"no roots.pem with its CA's roots": func(c *Config) { os.Remove(filepath.Join(c.Storage, rootsFile)) },
	} {
		changed := c
		changed.Storage = t.TempDir()
		for _, name := range []string{pairFile, rootsFile} {
			text, err := os.ReadFile(filepath.Join(c.Storage, name))
			if err = errors.Join(err, os.WriteFile(filepath.Join(changed.Storage, name), text, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		change(&changed)
		s, log := certs.NewSource("me"), &lines{}
		if _, err := Open(changed, s, slog.New(slog.NewTextHandler(log, nil))); err != nil || s.Ready() == nil || Stored(changed) {
			t.Errorf("%s: what is stored is used (%v)", want, err)
		}
		if !strings.Contains(log.String(), want) || want == "" && log.String() != "" {
			t.Errorf("log %q, want one with %q", log, want)
		}
	}
}

// An expired certificate is renewed for the same key, with no other credential.
func TestRenewsAfterExpiry(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c := a.config(2 * time.Second)
	s, _, stop := run(t, c)
	first := await(t, s, "enrolled", ready)
	key := keyOf(t, s)
	stop()
	await(t, s, "expired", func(st certs.Status) bool { return !st.Ready })
	c.PasswordFile += ".gone"
	s, _, _ = run(t, c)
	st := await(t, s, "renewed", ready)
	if st.Serial == first.Serial || st.Failures != 0 || keyOf(t, s) != key {
		t.Errorf("after the expiry: %+v; the same key: %v", st, keyOf(t, s) == key)
	}
}

// The CA is down until after the certificate has expired: the status has the reason,
// and within two seconds of the CA's return there is a certificate again.
func TestComesBackWithTheCA(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	s, _, _ := run(t, a.config(2*time.Second))
	await(t, s, "enrolled", ready)
	a.stop()
	st := await(t, s, "expired", func(st certs.Status) bool { return !st.Ready })
	err := s.Ready()
	for _, want := range []string{"expired at", "step-ca https://" + a.addr, "connection refused"} {
		if !errors.Is(err, certs.ErrNotReady) || !strings.Contains(err.Error(), want) {
			t.Errorf("reason %q; want %q", st.Reason, want)
		}
	}
	a.start()
	back := time.Now()
	await(t, s, "renewed", ready)
	if d := time.Since(back); d > 4*time.Second { // 2 s are promised; this may be a slow machine, and -race
		t.Errorf("back %v after the CA", d)
	}
}

func TestBootstrapKnowsTheRightCA(t *testing.T) {
	t.Parallel()
	a, b := newAuthority(t), newAuthority(t)
	c := a.config(time.Hour)
	c.Fingerprint = b.server.Fingerprint()
	s, _, _ := run(t, c)
	st := await(t, s, "refused", func(st certs.Status) bool { return st.LastError != "" })
	if !strings.Contains(st.LastError, "no root with the configured fingerprint") {
		t.Errorf("%q", st.LastError)
	}
	if _, err := parseRoot(strings.NewReader(`{"ca": `+quotePEM(a.server.RootPEM())+`}`), b.server.Fingerprint()); err == nil || !strings.Contains(err.Error(), "another CA, or somebody is in between") {
		t.Errorf("a root of another CA: %v", err)
	}
	for _, body := range []string{"", "<html>", `{"ca": "x"}`, `{}`} {
		if _, err := parseRoot(strings.NewReader(body), c.Fingerprint); err == nil {
			t.Errorf("the answer %q is taken", body)
		}
	}
}

// From any answer of an unknown server only the root with the fingerprint is accepted.
func FuzzParseRoot(f *testing.F) {
	pair, err := newPair(1)
	if err != nil {
		f.Fatal(err)
	}
	sum := sha256.Sum256(pair.Leaf.Raw)
	fingerprint := hex.EncodeToString(sum[:])
	f.Add([]byte(`{"ca": ` + quotePEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw})) + `}`))
	f.Add([]byte(`{"ca": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"}`))
	f.Add([]byte(`{"ca": 1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		root, err := parseRoot(bytes.NewReader(b), fingerprint)
		if err == nil && !root.Equal(pair.Leaf) {
			t.Errorf("%q is taken for the root", b)
		}
	})
}

// Any token is for our names, or the error says what is wrong with it.
func FuzzCheckToken(f *testing.F) {
	f.Add("hello")
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJtZSJ9.AAAA")
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJzYW5zIjpbMV19.AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		if err := checkToken(token, []string{"me"}, time.Now()); err == nil && strings.Count(token, ".") == 0 {
			t.Errorf("%q is a token", token)
		}
	})
}

func quotePEM(b []byte) string { return `"` + strings.ReplaceAll(string(b), "\n", `\n`) + `"` }

// A token from a file is sent once; a new one in the file is used.
func TestTokenFile(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	byPassword := a.config(time.Hour)
	token := func(names ...string) string {
		c := byPassword
		c.Names = names
		i := &Issuer{cfg: c, source: certs.NewSource("x"), log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		conn, err := i.dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.close()
		text, err := i.makeToken(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	c := byPassword
	c.PasswordFile, c.Provisioner, c.TokenFile, c.Storage = "", "", filepath.Join(t.TempDir(), "token"), ""
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(c.TokenFile+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(c.TokenFile+".new", c.TokenFile); err != nil {
			t.Fatal(err)
		}
	}
	says := func(s *certs.Source, want string) {
		t.Helper()
		await(t, s, "saying "+want, func(st certs.Status) bool { return strings.Contains(st.LastError, want) })
	}
	s, _, _ := run(t, c)
	says(s, "a one-time token is needed: ")
	put("hello")
	says(s, "is none; make one with: step ca token")
	put(token("other.svc"))
	says(s, "is for other.svc, but names has")
	used := token(c.Names...)
	put(used)
	await(t, s, "enrolled", ready)
	s, _, _ = run(t, c) // without storage, the token is needed again
	says(s, "was refused, put a new one there: ")
	put(token(c.Names...))
	await(t, s, "enrolled with another token", ready)
}

func TestWrongPasswordAndProvisioner(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c := a.config(time.Hour)
	c.Storage = ""
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.PasswordFile = wrong }, "does not open the key of provisioner"},
		{func(c *Config) { c.PasswordFile = wrong + ".absent" }, "no such file"},
		{func(c *Config) { c.Provisioner = "nobody" }, `no JWK provisioner "nobody" that keeps its key at the CA; there is ambassador`},
		{func(c *Config) { c.Lifetime = 100000 * time.Hour }, "requested duration"},
	} {
		changed := c
		tt.change(&changed)
		s, _, stop := run(t, changed)
		await(t, s, tt.want, func(st certs.Status) bool { return strings.Contains(st.LastError, tt.want) })
		stop()
	}
}

// Of two processes that share a folder, one renews and the other uses the result.
func TestSharedStorage(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	one, _, _ := run(t, a.config(4*time.Second))
	st := await(t, one, "enrolled", ready)
	two, _, _ := run(t, a.config(4*time.Second))
	if got := two.Status().Serial; got != st.Serial {
		t.Errorf("the second process begins with %s, not %s", got, st.Serial)
	}
	old := st.Serial
	await(t, one, "renewed", func(st certs.Status) bool { return st.Serial != old })
	await(t, two, "renewed", func(st certs.Status) bool { return st.Serial != old })
	seen := map[string]bool{one.Status().Serial: true}
	await(t, two, "at one with the other", func(st certs.Status) bool { seen[one.Status().Serial] = true; return seen[st.Serial] })
}

// A CA that accepts connections and never answers delays only its own attempt.
func TestCAThatHangs(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := Config{URL: "https://" + ln.Addr().String(), Fingerprint: strings.Repeat("0", 64), Names: []string{"a"}, TokenFile: "x"}
	s := certs.NewSource("me")
	i, err := Open(c, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, _, err := i.issue(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("held up for %v", d)
	}
}

// Proxies of the environment are not used: an ambassador that is the proxy would
// connect to itself.
func TestNoProxyAndNoSTEPPATH(t *testing.T) {
	a := newAuthority(t)
	for _, v := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"} {
		t.Setenv(v, "http://127.0.0.1:1")
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("STEPPATH", t.TempDir())
	if tr := newTransport(&tls.Config{}); tr.Proxy != nil {
		t.Error("a proxy is asked for")
	}
	s, _, _ := run(t, a.config(time.Hour))
	await(t, s, "enrolled", ready)
}

func TestParsers(t *testing.T) {
	for text, ok := range map[string]bool{"https://ca:9000": true, "https://[::1]:9000/": true, "http://ca": false, "ca:9000": false, "https://": false, "https://ca/acme": false, "https://u:p@ca": false} {
		if err := ParseURL(text); (err == nil) != ok {
			t.Errorf("URL %q: %v", text, err)
		}
	}
	sum := strings.Repeat("aB", 32)
	for text, ok := range map[string]bool{sum: true, strings.Repeat("AB:", 31) + "AB": true, sum[1:]: false, "": false, strings.Repeat("x", 64): false} {
		if got, err := ParseFingerprint(text); (err == nil) != ok || ok && got != strings.ToLower(sum) {
			t.Errorf("fingerprint %q: %q, %v", text, got, err)
		}
	}
	for text, ok := range map[string]bool{"a.svc": true, "spiffe://corp/a": true, "10.0.0.7": true, "::1": true, "a@b": true, "": false, "a b": false, "dns:a": false, "corp/a": false, "spiffe://": false, "spiffe://corp/a#": false} {
		if err := ParseName(text); (err == nil) != ok {
			t.Errorf("name %q: %v", text, err)
		}
	}
}

func TestStorageThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Storage: filepath.Join(file, "x")}, certs.NewSource("me"), slog.New(slog.DiscardHandler))
	if path := (*fs.PathError)(nil); !errors.As(err, &path) {
		t.Errorf("a folder below a file: %v", err)
	}
}
