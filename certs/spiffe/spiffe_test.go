package spiffe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ambassador/certs"
)

// patience bounds every wait for something that should happen soon.
const patience = 30 * time.Second

// authority is a trust domain's.
type authority struct {
	domain string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, domain string) *authority {
	t.Helper()
	a := &authority{domain: domain}
	a.cert, a.key = a.make(t, "", nil, time.Hour)
	return a
}

// make is a certificate of the authority: its own, if by is nil, or a leaf.
func (a *authority) make(t *testing.T, path string, by *authority, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: a.domain}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		URIs: []*url.URL{{Scheme: "spiffe", Host: a.domain, Path: path}}, BasicConstraintsValid: true}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	} else {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// svid is an agent's message about one identity.
func (a *authority) svid(t *testing.T, path string, federated ...*authority) *workload.X509SVIDResponse {
	t.Helper()
	leaf, key := a.make(t, path, a, time.Hour)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	r := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}, Svids: []*workload.X509SVID{
		{SpiffeId: leaf.URIs[0].String(), X509Svid: leaf.Raw, X509SvidKey: der, Bundle: a.cert.Raw}}}
	for _, f := range federated {
		r.FederatedBundles["spiffe://"+f.domain] = f.cert.Raw
	}
	return r
}

// agent is a Workload API agent with configured answers.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	t      *testing.T
	path   string
	server *grpc.Server
	done   sync.WaitGroup

	mu      sync.Mutex
	says    *workload.X509SVIDResponse // guarded by mu; nil: it has nothing for us
	changed chan struct{}              // guarded by mu; closed at the next change
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "ambs") // short: it is the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &agent{t: t, path: filepath.Join(dir, "agent.sock"), changed: make(chan struct{})}
	t.Cleanup(a.stop)
	return a
}

func (a *agent) start() {
	a.t.Helper()
	ln, err := net.Listen("unix", a.path)
	if err != nil {
		a.t.Fatal(err)
	}
	a.server = grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(a.server, a)
	a.done.Go(func() { a.server.Serve(ln) })
}

func (a *agent) stop() {
	if a.server != nil {
		a.server.Stop()
		a.done.Wait()
		a.server = nil
	}
}

func (a *agent) say(r *workload.X509SVIDResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.says = r
	close(a.changed)
	a.changed = make(chan struct{})
}

// FetchX509SVID is the agent's side of the protocol.
func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	for {
		a.mu.Lock()
		says, changed := a.says, a.changed
		a.mu.Unlock()
		if says == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := stream.Send(says); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func run(t *testing.T, a *agent) *certs.Source {
	t.Helper()
	s := certs.NewSource("me")
	w := New("unix://"+a.path, s, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

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
		case <-end:
			t.Fatalf("not %s: %+v", what, st)
		}
	}
}

func ready(st certs.Status) bool { return st.Ready }

// The agent starts after us, sends something new, stops, and starts again.
func TestFollowsTheAgent(t *testing.T) {
	t.Parallel()
	corp, agent := newAuthority(t, "corp.test"), newAgent(t)
	s := run(t, agent)
	st := await(t, s, "told of", func(st certs.Status) bool { return st.LastError != "" })
	if st.Ready || !strings.Contains(st.Reason, "SPIFFE agent at unix://"+agent.path) {
		t.Errorf("without an agent: %+v", st)
	}
	agent.start()
	await(t, s, "told of", func(st certs.Status) bool { return strings.Contains(st.LastError, "no identity issued") })
	agent.say(corp.svid(t, "/orders"))
	first := await(t, s, "ready", ready)
	if got := strings.Join(first.Names, " "); got != "spiffe://corp.test/orders" || first.LastError != "" {
		t.Errorf("names %q, %+v", got, first)
	}
	agent.say(corp.svid(t, "/orders"))
	second := await(t, s, "renewed", func(st certs.Status) bool { return st.Serial != first.Serial })
	agent.stop()
	gone := await(t, s, "told of", func(st certs.Status) bool { return st.LastError != "" })
	if !gone.Ready || gone.Serial != second.Serial {
		t.Errorf("without the agent: %+v", gone)
	}
	agent.say(corp.svid(t, "/orders"))
	agent.start()
	await(t, s, "renewed", func(st certs.Status) bool { return st.Serial != second.Serial && st.LastError == "" })
}

// The roots of federated domains are kept apart, and change with the agent.
func TestFederatedDomains(t *testing.T) {
	t.Parallel()
	a, b, agent := newAuthority(t, "a.test"), newAuthority(t, "b.test"), newAgent(t)
	agent.say(a.svid(t, "/me", b))
	agent.start()
	s := run(t, agent)
	st := await(t, s, "ready", ready)
	imposter := &authority{"a.test", b.cert, b.key}
	judge := func(principal string, by *authority) error {
		t.Helper()
		p, err := certs.ParsePrincipal(principal)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := certs.NewOriginator(certs.ClientPolicy{Source: s, Principals: certs.Principals{p}}).Config("h", "h:1")
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := by.make(t, "/db", by, time.Hour)
		return cfg.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
	}
	for _, tt := range []struct {
		principal string
		by        *authority
		ok        bool
	}{
		{"spiffe://a.test/db", a, true},
		{"spiffe://b.test/db", b, true},
		{"spiffe://a.test/db", b, false},
		{"spiffe://a.test/db", imposter, false},
	} {
		if err := judge(tt.principal, tt.by); (err == nil) != tt.ok {
			t.Errorf("%s by %s: %v", tt.principal, tt.by.domain, err)
		}
	}
	agent.say(a.svid(t, "/me"))
	await(t, s, "without the federation", func(now certs.Status) bool { return now.Generation > st.Generation })
	if err := judge("spiffe://b.test/db", b); err == nil {
		t.Error("a domain that is not federated any more vouches")
	}
}

func TestCheckSocket(t *testing.T) {
	for text, ok := range map[string]bool{"unix:///run/agent.sock": true, "unix:/run/agent.sock": true, "tcp://127.0.0.1:1": false, "/run/agent.sock": false, "": false, "unix:": false} {
		if err := CheckSocket(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A panic while an update is handled counts as a failure of the agent: the process
// continues, and the next update is used.
func TestPanicInTheListener(t *testing.T) {
	t.Parallel()
	corp, agent := newAuthority(t, "corp.test"), newAgent(t)
	agent.start()
	s := certs.NewSource("me")
	panics := make(chan string, 9)
	s.OnPanic = func(part string) { panics <- part }
	w := New("unix://"+agent.path, s, slog.New(&panicking{Handler: slog.DiscardHandler, at: "identity obtained"}))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	agent.say(corp.svid(t, "/orders"))
	await(t, s, "told of the panic", func(st certs.Status) bool { return strings.Contains(st.LastError, "internal error: panic: a log") })
	if part := <-panics; part != "issuer" {
		t.Errorf("a panic of %q", part)
	}
	agent.say(corp.svid(t, "/billing"))
	await(t, s, "renewed", func(st certs.Status) bool {
		return st.Ready && st.Names[0] == "spiffe://corp.test/billing" && st.LastError == ""
	})
}

// panicking is a log handler that panics once, at a message.
type panicking struct {
	slog.Handler
	at   string
	once sync.Once
}

func (h *panicking) Enabled(context.Context, slog.Level) bool { return true }

func (h *panicking) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.at {
		h.once.Do(func() { panic("a log") })
	}
	return nil
}
