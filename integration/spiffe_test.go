package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
)

// domain is a SPIFFE trust domain with its authority.
type domain struct {
	name string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newDomain(t testing.TB, name string) *domain {
	t.Helper()
	d := &domain{name: name}
	d.cert, d.key = d.issue(t, name, "")
	return d
}

// issue makes a certificate for a SPIFFE ID of any domain; without a path it is
// an authority's own.
func (d *domain) issue(t testing.TB, name, path string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: name, Path: path}}, BasicConstraintsValid: true}
	parent, signer := d.cert, d.key
	if path == "" {
		parent, signer = template, key
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
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

// pair is issue for crypto/tls.
func (d *domain) pair(t testing.TB, name, path string) tls.Certificate {
	t.Helper()
	cert, key := d.issue(t, name, path)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// spiffeAgent speaks the Workload API, with configured answers.
type spiffeAgent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	mu      sync.Mutex
	says    *workload.X509SVIDResponse // guarded by mu
	changed chan struct{}              // guarded by mu; closed at the next change
}

func (a *spiffeAgent) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	for {
		a.mu.Lock()
		says, changed := a.says, a.changed
		a.mu.Unlock()
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

// say gives an identity of a domain, and the roots of those it is federated with.
func (a *spiffeAgent) say(t testing.TB, d *domain, path string, federated ...*domain) {
	t.Helper()
	cert, key := d.issue(t, d.name, path)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	says := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}, Svids: []*workload.X509SVID{
		{SpiffeId: cert.URIs[0].String(), X509Svid: cert.Raw, X509SvidKey: der, Bundle: d.cert.Raw}}}
	for _, f := range federated {
		says.FederatedBundles["spiffe://"+f.name] = f.cert.Raw
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.says = says; a.changed != nil {
		close(a.changed)
	}
	a.changed = make(chan struct{})
}

// serve answers on a unix socket until the end of the test.
func (a *spiffeAgent) serve(t testing.TB) (socket string) {
	t.Helper()
	socket = filepath.Join(shortDir(t), "agent")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	var done sync.WaitGroup
	done.Go(func() { server.Serve(ln) }) // the cleanup waits for it
	t.Cleanup(func() {
		server.Stop()
		done.Wait()
	})
	return socket
}

// TestFederation proves that with an identity of a SPIFFE agent clients and upstreams
// of a federated trust domain are accepted, as long as the agent federates it; and that
// no domain vouches for names of another.
func TestFederation(t *testing.T) {
	t.Parallel()
	corp, partner, stranger := newDomain(t, "corp.test"), newDomain(t, "partner.test"), newDomain(t, "stranger.test")
	agent := &spiffeAgent{}
	agent.say(t, corp, "/ambassador", partner)
	pool := x509.NewCertPool()
	pool.AddCert(corp.cert)
	db := startServer(t, &tls.Config{Certificates: []tls.Certificate{partner.pair(t, "partner.test", "/db")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}, echo)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
identities: {spire: {spiffe: {socket: "unix://%s"}}}
upstreams: {db: {endpoints: [%q], tls: {identity: spire, principals: ["spiffe://partner.test/db"]}}}
listeners:
  front: {listen: "127.0.0.1:0", upstream: db, tls: {identity: spire, principals: ["spiffe://corp.test/batch/*", "spiffe://partner.test/job"]}}
`, agent.serve(t), db.addr)))
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("not ready")
	}
	if status, _ := a.ask("status"); !strings.Contains(status, "as spire; client required: spiffe://corp.test/batch/*, spiffe://partner.test/job") {
		t.Errorf("status:\n%s", status)
	}
	judge := func(by *domain, name, path, stage, reason, cause string) {
		t.Helper()
		cert := by.pair(t, name, path)
		raw, _, err := call(t, a.addr("front"), &tls.Config{InsecureSkipVerify: true, // it is the server that is judged elsewhere
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
		if (err == nil) != (reason == "closed") {
			t.Errorf("spiffe://%s%s by %s: %v", name, path, by.name, err)
		}
		r := a.endsAs(raw, stage, reason)
		if !strings.Contains(r.Cause, cause) || reason == "closed" && r.Principal != "spiffe://"+name+path {
			t.Errorf("spiffe://%s%s by %s: %+v", name, path, by.name, r)
		}
	}
	judge(corp, "corp.test", "/batch/1", "relay", "closed", "")
	judge(partner, "partner.test", "/job", "relay", "closed", "")
	judge(partner, "partner.test", "/other", "greet", "denied", "but principals wants")
	judge(corp, "corp.test", "/web", "greet", "denied", "but principals wants")
	judge(partner, "corp.test", "/batch/1", "greet", "downstream_tls", "no root that we trust")
	judge(corp, "partner.test", "/job", "greet", "downstream_tls", "no root that we trust")
	judge(stranger, "stranger.test", "/job", "greet", "downstream_tls", "no roots of that trust domain")

	mark := a.stderr.len()
	agent.say(t, corp, "/ambassador") // the federation is over
	a.awaitAfter(mark, `"msg":"identity renewed","identity":"spire","generation":2`)
	judge(partner, "partner.test", "/job", "greet", "downstream_tls", "no roots of that trust domain")
	judge(corp, "corp.test", "/batch/1", "tls", "upstream_tls", "no roots of that trust domain")
}
