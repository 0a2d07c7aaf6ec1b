package files

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"ambassador/certs"
)

// trustedType is the PEM type of a certificate with OpenSSL's trust settings
// behind it (openssl x509 -trustout).
const trustedType = "TRUSTED CERTIFICATE"

// rawCertificate is a certificate in DER. If it is trusted, trust settings may
// follow.
type rawCertificate struct {
	der     []byte
	trusted bool
}

// trustSettings are OpenSSL's (X509_CERT_AUX). The zero value: trusted for all.
type trustSettings struct {
	Trust  []asn1.ObjectIdentifier `asn1:"optional"`
	Reject []asn1.ObjectIdentifier `asn1:"optional,tag:0"`
	// A name and a key identifier may follow.
}

// The purposes of trust settings (RFC 5280, 4.2.1.12).
var (
	oidServerAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	oidAnyPurpose = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
)

// allow reports whether the certificate is trusted for a purpose: as in OpenSSL,
// if that is not rejected, and listed unless nothing is.
func (s trustSettings) allow(purpose asn1.ObjectIdentifier) bool {
	means := func(o asn1.ObjectIdentifier) bool { return o.Equal(purpose) || o.Equal(oidAnyPurpose) }
	return !slices.ContainsFunc(s.Reject, means) && (len(s.Trust) == 0 || slices.ContainsFunc(s.Trust, means))
}

// parse parses the certificate and its trust settings.
func (r rawCertificate) parse() (c *x509.Certificate, s trustSettings, err error) {
	der := r.der
	if r.trusted {
		var first asn1.RawValue
		rest, err := asn1.Unmarshal(der, &first)
		if err != nil {
			return nil, s, err
		}
		if len(rest) > 0 {
			if rest, err = asn1.Unmarshal(rest, &s); err != nil || len(rest) > 0 {
				return nil, s, errors.New("its trust settings are damaged; make them again: openssl x509 -trustout")
			}
		}
		der = first.FullBytes
	}
	c, err = x509.ParseCertificate(der)
	return c, s, err
}

// rootList has the roots of a file.
type rootList struct {
	servers, clients []*x509.Certificate // that verify servers, and clients
	unused           []string            // why the others are not used
}

// maxUnused bounds the certificates that are described: a bundle of all public
// roots may have dozens that are distrusted.
const maxUnused = 20

// parseRoots reads roots: all certificates of a file, or those of a PKCS #12 file
// that it does not use for its own chain. It leaves out a certificate that cannot
// verify others, or that is not trusted to, and says why.
func parseRoots(b, password []byte) (*rootList, error) {
	l := &rootList{}
	if isPKCS12(b) {
		all, err := parseTrustStore(b, password)
		for i, c := range all {
			l.add(i, c, trustSettings{})
		}
		return l.checked(len(all), err)
	}
	all, err := readCertificates(b)
	for i, raw := range all {
		c, settings, err := raw.parse()
		if err != nil {
			l.leaveOut(i, raw.der, explainCertificate(raw.der, err))
			continue
		}
		l.add(i, c, settings)
	}
	return l.checked(len(all), err)
}

// add adds certificate i of the file.
func (l *rootList) add(i int, c *x509.Certificate, s trustSettings) {
	if err := canVerify(c); err != nil {
		l.leaveOut(i, c.Raw, err)
		return
	}
	server, client := s.allow(oidServerAuth), s.allow(oidClientAuth)
	if server {
		l.servers = append(l.servers, c)
	}
	if client {
		l.clients = append(l.clients, c)
	}
	if !server && !client {
		l.leaveOut(i, c.Raw, errors.New("its trust settings allow neither servers nor clients; if they should, remove them: openssl x509 -clrtrust -in FILE -out NEWFILE"))
	}
}

func (l *rootList) leaveOut(i int, der []byte, why error) {
	l.unused = append(l.unused, fmt.Sprintf("certificate %d of the file%s is not used as a root: %v", i+1, nameOf(der), why))
}

// checked returns the list if it has a root. Of is how many certificates the file
// has.
func (l *rootList) checked(of int, err error) (*rootList, error) {
	switch {
	case err != nil:
		return nil, err
	case len(l.servers)+len(l.clients) == 0 && len(l.unused) > 0:
		return nil, fmt.Errorf("none of its certificates (%d) can be used; %s", of, l.unused[0])
	}
	if len(l.servers) == 0 {
		l.unused = append([]string{"no certificate of the file verifies servers: their trust settings (openssl x509 -trustout) allow only clients"}, l.unused...)
	}
	if n := len(l.unused) - maxUnused; n > 0 {
		l.unused = append(l.unused[:maxUnused:maxUnused], fmt.Sprintf("and %d more certificates are not used as roots", n))
	}
	return l, nil
}

// roots makes Roots of the list; nil: there are none.
func (l *rootList) roots(lists []*x509.RevocationList) *certs.Roots {
	if l == nil {
		if lists == nil {
			return nil
		}
		return &certs.Roots{Revoked: certs.NewRevocations(lists)}
	}
	cas := l.servers // that the lists may belong to
	r := &certs.Roots{Pool: certs.NewPool(l.servers), Known: l.servers, Unused: l.unused}
	if clients := certs.NewPool(l.clients); !clients.Equal(r.Pool) {
		r.Clients, cas = clients, slices.Concat(l.servers, l.clients)
	}
	r.Revoked = certs.NewRevocations(lists, cas...)
	return r
}

// canVerify returns an error for a certificate whose key crypto/x509 cannot use.
func canVerify(c *x509.Certificate) error {
	switch c.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	}
	shape, err := shapeOf(c.Raw)
	if err != nil {
		return err
	}
	return errors.New("its key is " + algorithmName(shape.TBS.Key.Algorithm.Algorithm) + ", which cannot be used here; let the CA sign with an RSA, ECDSA or Ed25519 key")
}

// certificateShape is as much of a certificate as is needed to describe one that
// crypto/x509 refuses.
type certificateShape struct {
	TBS struct {
		Version                             asn1.RawValue `asn1:"optional,explicit,tag:0"`
		Serial, Signature, Issuer, Validity asn1.RawValue
		Subject                             pkix.RDNSequence
		Key                                 struct {
			Algorithm pkix.AlgorithmIdentifier
			Bits      asn1.BitString
		}
	}
}

func shapeOf(der []byte) (s certificateShape, err error) {
	_, err = asn1.Unmarshal(der, &s)
	return s, err
}

// nameOf returns the subject in parentheses; empty if it cannot be read.
func nameOf(der []byte) string {
	shape, err := shapeOf(der)
	if err != nil || len(shape.TBS.Subject) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%q)", shape.TBS.Subject.String())
}

// explainCertificate adds the fix to an error of crypto/x509.
func explainCertificate(der []byte, err error) error {
	shape, shapeErr := shapeOf(der)
	if shapeErr == nil && isExplicit(shape.TBS.Key.Algorithm.Parameters) {
		return errors.New("its key spells out its curve (explicit parameters), which RFC 5480, 2.1.1, forbids; " +
			"name the curve in the key (openssl ec -param_enc named_curve -in KEY -out NEWKEY), and get a new certificate for it")
	}
	return fmt.Errorf("%w; let the CA issue a new one", err)
}
