package certs

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"
)

// Functions that the issuers share.

// NewCertificate combines a key and its chain, leaf first. The Leaf is set.
func NewCertificate(key crypto.PrivateKey, chain []*x509.Certificate) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// NewPool makes a pool of roots.
func NewPool(roots []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	return pool
}

// BelongsTo reports whether the certificate is for the key.
func BelongsTo(c *x509.Certificate, key crypto.Signer) bool {
	public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(key.Public())
}

// NewRequest makes a certificate request. Names are DNS names, IP addresses, URIs
// ("spiffe://…") or e-mail addresses; the first is the subject's common name, too.
func NewRequest(names []string, key crypto.Signer) (*x509.CertificateRequest, error) {
	if len(names) == 0 {
		return nil, errors.New("a certificate needs a name")
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}}
	for _, name := range names {
		switch ip := net.ParseIP(name); {
		case ip != nil:
			template.IPAddresses = append(template.IPAddresses, ip)
		case strings.Contains(name, "://"):
			u, err := url.Parse(name)
			if err != nil {
				return nil, err
			}
			template.URIs = append(template.URIs, u)
		case strings.Contains(name, "@"):
			template.EmailAddresses = append(template.EmailAddresses, name)
		default:
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}

// LogRenewal logs that a source's generation replaced the one of the old status, or that
// it is the first.
func (s *Source) LogRenewal(log *slog.Logger, old Status) {
	st := s.Status()
	if old.Serial == "" {
		log.Info("identity obtained", "identity", st.Name, "generation", st.Generation, "names", st.Names, "serial", st.Serial, "not_after", st.NotAfter)
		return
	}
	log.Info("identity renewed", "identity", st.Name, "generation", st.Generation, "names", st.Names,
		"old_serial", old.Serial, "serial", st.Serial, "old_not_after", old.NotAfter, "not_after", st.NotAfter)
}

// Pause waits for d, or until ctx ends: then it returns its error.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
