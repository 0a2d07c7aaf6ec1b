package embedded

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"testing"
	"time"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Close)
	return ca
}

func TestIssueIsGoodForBothSidesOfMutualTLS(t *testing.T) {
	ca := newCA(t)
	server, err := ca.Issue(t.Context(), []string{"localhost", "127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.IssuePEM(t.Context(), []string{"spiffe://corp/orders"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	s := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots()})
	c := tls.Client(near, &tls.Config{RootCAs: ca.Roots(), ServerName: "127.0.0.1", Certificates: []tls.Certificate{client}})
	go func() { io.Copy(s, s); s.Close() }() // ends with the client
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	peer := s.ConnectionState().PeerCertificates[0]
	if len(peer.URIs) != 1 || peer.URIs[0].String() != "spiffe://corp/orders" {
		t.Errorf("the server sees URIs %v", peer.URIs)
	}
}

func TestIssueKeepsToTheLifeAsked(t *testing.T) {
	ca := newCA(t)
	for life, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Hour: time.Hour, 1000 * time.Hour: 24 * time.Hour} {
		cert, err := ca.Issue(t.Context(), []string{"a.test"}, life)
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Until(cert.Leaf.NotAfter); got > want || got < want-2*time.Minute {
			t.Errorf("asked for %v: the certificate lives for %v", life, got)
		}
		if cert.Leaf.NotBefore.After(time.Now()) {
			t.Errorf("not valid yet: %v", cert.Leaf.NotBefore)
		}
	}
	if _, err := ca.Issue(t.Context(), []string{"a.test"}, time.Millisecond); err == nil {
		t.Error("a life of a millisecond is issued")
	}
	if _, err := ca.Issue(t.Context(), nil, time.Hour); err == nil {
		t.Error("a certificate without a name is issued")
	}
}

func TestAuthoritiesDoNotTrustEachOther(t *testing.T) {
	one, two := newCA(t), newCA(t)
	cert, err := one.Issue(t.Context(), []string{"a.test"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	intermediates := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		crt, _ := x509.ParseCertificate(der)
		intermediates.AddCert(crt)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: one.Roots(), Intermediates: intermediates}); err != nil {
		t.Errorf("its own root: %v", err)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: two.Roots(), Intermediates: intermediates}); err == nil {
		t.Error("another authority's root verifies it")
	}
	if bytes.Equal(one.RootPEM(), two.RootPEM()) {
		t.Error("two authorities have one root")
	}
}
