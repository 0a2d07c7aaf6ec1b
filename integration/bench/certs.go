package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// serverName is the name in every certificate.
const serverName = "bench.test"

// certs are the certificates of a run: in dir, ca.pem, and server.pem and client.pem
// with the key.
type certs struct {
	dir            string
	pool           *x509.CertPool
	serverID, peer tls.Certificate
}

func makeCerts(dir string) (certs, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certs{}, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return certs{}, err
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		return certs{}, err
	}
	c := certs{dir: dir, pool: x509.NewCertPool()}
	c.pool.AddCert(ca)
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), pemOf("CERTIFICATE", der), 0o600); err != nil {
		return certs{}, err
	}
	if c.serverID, err = issue(ca, key, filepath.Join(dir, "server.pem"), x509.ExtKeyUsageServerAuth); err != nil {
		return certs{}, err
	}
	c.peer, err = issue(ca, key, filepath.Join(dir, "client.pem"), x509.ExtKeyUsageClientAuth)
	return c, err
}

// issue makes a certificate and its key, and writes both to a file.
func issue(ca *x509.Certificate, caKey *ecdsa.PrivateKey, file string, usage x509.ExtKeyUsage) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: serverName}, NotBefore: ca.NotBefore,
		NotAfter: ca.NotAfter, DNSNames: []string{serverName}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := append(pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", secret)...)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(file, text, 0o600)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// The key exchange is X25519 for every program: none pays for a post-quantum share that
// another does not offer.
var curves = []tls.CurveID{tls.X25519}

// server is the TLS of the target: it requires a certificate, and resumes nothing.
func (c certs) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.serverID}, ClientCAs: c.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, CurvePreferences: curves, SessionTicketsDisabled: true}
}

// client is the TLS of the load.
func (c certs) client() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.peer}, RootCAs: c.pool, ServerName: serverName,
		MinVersion: tls.VersionTLS13, CurvePreferences: curves}
}
