package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// writeChain writes a leaf of an intermediate, both with the changes of their templates,
// and its key. The leaf is for servers alone.
func writeChain(t *testing.T, folder string, middle, leaf func(*x509.Certificate)) {
	t.Helper()
	var parent *x509.Certificate
	var signer *ecdsa.PrivateKey
	var chain []byte
	for _, c := range []struct {
		cn     string
		change func(*x509.Certificate)
	}{{"root", nil}, {"middle", middle}, {"leaf", leaf}} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: c.cn}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: c.cn != "leaf", BasicConstraintsValid: true}
		if c.change != nil {
			c.change(template)
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		if parent, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		if signer = key; c.cn != "root" {
			chain = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), chain...)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	cmdtest.WriteFile(t, filepath.Join(folder, "a.crt"), string(chain))
	cmdtest.WriteFile(t, filepath.Join(folder, "a.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func forServers(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

// Our own chain is judged by `check`, by the log at the start, and by `status`: for the
// use that the configuration has for it.
func TestOurOwnChainIsJudged(t *testing.T) {
	folder := t.TempDir()
	const (
		server = `upstreams: {u: {endpoints: ["127.0.0.1:1"], required: false, tls: {identity: a, ca: system}}}
listeners: {front: {listen: "127.0.0.1:0", upstream: u}}
`
		client = `upstreams: {u: {endpoints: ["127.0.0.1:1"], required: false}}
listeners: {front: {listen: "127.0.0.1:0", upstream: u, tls: {identity: a, client: none}}}
`
		noClient = "it is not one for clients: its extended key usage lacks clientAuth, and most servers reject it; issue it with extendedKeyUsage=clientAuth"
		late     = `the CA certificate "CN=middle" in its chain cannot be used: the certificate expired`
	)
	identity := strings.ReplaceAll("identities: {a: {files: {cert: DIR/a.crt, key: DIR/a.key}}}\n", "DIR", folder)
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }
	for _, tt := range []struct {
		name         string
		middle, leaf func(*x509.Certificate)
		config       string
		want         string // empty: no warning
	}{
		{"good", nil, nil, server, ""},
		{"EKU, to a server", nil, forServers, server, noClient},
		{"EKU, to clients", nil, forServers, client, ""},
		{"expired intermediate", expired, nil, server, late},
	} {
		t.Run(tt.name, func(t *testing.T) {
			writeChain(t, folder, tt.middle, tt.leaf)
			out, code := checked(t, identity+tt.config)
			if code != 0 || tt.want != "" && !strings.Contains(out, ": identities.a.files.cert: "+filepath.Join(folder, "a.crt")+": "+tt.want) ||
				tt.want == "" && strings.Contains(out, "warning: ") {
				t.Errorf("check: code %d\n%s\nwant a warning with %q", code, out, tt.want)
			}
		})
	}
	writeChain(t, folder, expired, forServers)
	if err := os.Chmod(filepath.Join(folder, "a.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, log := runFile(t, cmdtest.WriteConfig(t, identity+server))
	log.Await(t, `"level":"WARN","msg":"peers may reject our certificate","setting":"identities\.a\.files\.cert: [^"]*lacks clientAuth`)
	status := cmdtest.NewOutput()
	if code := run(t.Context(), []string{"status"}, strings.NewReader(""), status, status); code != 0 {
		t.Fatal(status.String())
	}
	for _, want := range []string{"\na: " + noClient, "\na: " + late, "every user of this host may read this secret"} {
		if !strings.Contains(status.String(), want) {
			t.Errorf("status lacks %q:\n%s", want, status.String())
		}
	}
}
