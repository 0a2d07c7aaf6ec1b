package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// This file turns the errors of crypto/x509 into causes, each with its own fix. It
// uses the types of the errors and the certificates, never the texts: those of
// x509.UnknownAuthorityError name a "possible" cause, and some name none.

// explain turns an error of x509.Certificate.Verify into a PeerError.
func (j *judge) explain(peer []*x509.Certificate, roots *x509.CertPool, now time.Time, err error) error {
	var (
		leaf     = peer[0]
		known    = j.known
		invalid  x509.CertificateInvalidError
		unknown  x509.UnknownAuthorityError
		critical x509.UnhandledCriticalExtension
		system   x509.SystemRootsError
	)
	if roots != j.roots { // those of another trust domain
		known = nil
	}
	e := &PeerError{text: fmt.Sprintf("the %s's certificate cannot be verified: %v", j.peer, err), Err: err}
	switch {
	case Validity(leaf, now) != nil:
		e.text, e.fix = fmt.Sprintf("the %s's certificate (%s): %v", j.peer, listed(names(leaf)), Validity(leaf, now)), j.renew(leaf, now)
	case errors.As(err, &invalid):
		e.text, e.fix = j.explainInvalid(peer, known, now, invalid)
	case errors.As(err, &unknown):
		e.text, e.fix = j.explainUnknown(unknown.Cert, peer, known)
	case errors.As(err, &critical):
		e.text = fmt.Sprintf("the %s's certificate, or that of a CA above it, has a critical extension that we do not know", j.peer)
		e.fix = "issue it without that extension, or not as critical"
	case errors.As(err, &system):
		e.text, e.fix = fmt.Sprintf("the system has no roots (%v)", system), "set "+j.peer.rootsKey()
	}
	return e
}

// renew is the fix for a certificate of the peer that is not valid now.
func (j *judge) renew(c *x509.Certificate, now time.Time) string {
	if now.Before(c.NotBefore) {
		return fmt.Sprintf("set the clock of this host, or of the CA, or wait with the use of the certificate on the %s", j.peer)
	}
	return fmt.Sprintf("renew it on the %s", j.peer)
}

// whoseIs names a certificate of the peer's chain in a message.
func (j *judge) whoseIs(c, leaf *x509.Certificate) string {
	if c == nil || c.Equal(leaf) {
		return fmt.Sprintf("the %s's certificate", j.peer)
	}
	return fmt.Sprintf("the CA certificate %q", subject(c))
}

func subject(c *x509.Certificate) string { return short(c.Subject.String()) }

func (j *judge) explainInvalid(peer, known []*x509.Certificate, now time.Time, invalid x509.CertificateInvalidError) (text, fix string) {
	c, whose := invalid.Cert, j.whoseIs(invalid.Cert, peer[0])
	switch invalid.Reason {
	case x509.Expired:
		if err := Validity(c, now); err != nil {
			return whose + ": " + err.Error(), j.replace(c, known)
		}
	case x509.IncompatibleUsage:
		_, usage := j.peer.usage()
		return fmt.Sprintf("the %s's certificate is not one for %ss: its extended key usage, or that of a CA above it, lacks %s", j.peer, j.peer, usage),
			"issue it with extendedKeyUsage=" + usage
	case x509.NotAuthorizedToSign:
		return whose + " is not that of a CA, but has signed another", issueAsCA(c)
	case x509.TooManyIntermediates:
		return fmt.Sprintf("%s permits fewer CAs below it than the %s's chain has (pathlen)", whose, j.peer),
			"issue that CA certificate anew with a greater pathlen, or the leaf by a CA that is nearer to it"
	case x509.CANotAuthorizedForThisName, x509.UnconstrainedName:
		return fmt.Sprintf("a CA above the %s's certificate may not issue for %s (name constraints): %v", j.peer, listed(names(peer[0])), invalid.Detail),
			"issue the certificate for names that the CA permits, or by another CA"
	}
	return whose + ": " + invalid.Error(), ""
}

// replace is the fix for a CA certificate that is not valid now.
func (j *judge) replace(c *x509.Certificate, known []*x509.Certificate) string {
	if slices.ContainsFunc(known, c.Equal) {
		return "put that CA's new certificate into " + j.peer.rootsKey()
	}
	return fmt.Sprintf("let the %s send that CA's new certificate", j.peer)
}

// issueAsCA is the fix for a CA certificate that is not marked as one.
func issueAsCA(c *x509.Certificate) string {
	return fmt.Sprintf("issue %q anew with basicConstraints=critical,CA:TRUE and keyUsage=keyCertSign", subject(c))
}

// explainUnknown says why no root vouches for c, which is the peer's leaf, or the CA
// certificate at which the chain ends. It looks at the certificates in the name of
// c's issuer.
func (j *judge) explainUnknown(c *x509.Certificate, peer, known []*x509.Certificate) (text, fix string) {
	whose, issuer := j.whoseIs(c, peer[0]), short(c.Issuer.String())
	if c == peer[0] && bytes.Equal(c.RawSubject, c.RawIssuer) {
		return fmt.Sprintf("the %s's certificate is self-signed (%q), and not one that we trust (%s)", j.peer, issuer, j.whose),
			fmt.Sprintf("set %s to that certificate, or pin its key in %s: %s", j.peer.rootsKey(), j.peer.principalsKey(), pinText(c))
	}
	for _, ca := range slices.Concat(known, peer[1:]) {
		if !bytes.Equal(ca.RawSubject, c.RawIssuer) || ca.Equal(c) {
			continue
		}
		if text, fix := j.disowned(c, ca, whose, slices.ContainsFunc(known, ca.Equal)); text != "" {
			return text, fix
		}
	}
	switch {
	case known == nil && isInsecure(c.SignatureAlgorithm):
		return oldSignature(whose, c)
	case len(known) > 0 && !slices.ContainsFunc(known, canSign):
		return fmt.Sprintf("%s was issued by %q, and no certificate that we trust (%s) is a CA's: %q vouches for itself alone (%s)", whose, issuer, j.whose, subject(known[0]), notCA(known[0])),
			fmt.Sprintf("set %s to the certificate of the CA %q", j.peer.rootsKey(), issuer)
	case len(peer) == 1:
		return fmt.Sprintf("no root that we trust (%s) vouches for the %s's certificate, which was issued by %q", j.whose, j.peer, issuer),
			fmt.Sprintf("set %s to that CA's certificate, or let the %s send its whole chain", j.peer.rootsKey(), j.peer)
	case bytes.Equal(c.RawSubject, c.RawIssuer):
		return fmt.Sprintf("the %s's chain ends at the CA %q, which is not among the roots that we trust (%s)", j.peer, issuer, j.whose),
			fmt.Sprintf("if you trust that CA, set %s to its certificate", j.peer.rootsKey())
	}
	return fmt.Sprintf("no root that we trust (%s) vouches for the %s's chain, which ends at %s, issued by %q", j.whose, j.peer, whose, issuer),
		fmt.Sprintf("set %s to that CA's certificate, or let the %s send the chain up to a CA that we trust", j.peer.rootsKey(), j.peer)
}

// disowned says why ca, which has the name of c's issuer, does not vouch for c. It is
// empty if it does.
func (j *judge) disowned(c, ca *x509.Certificate, whose string, trusted bool) (text, fix string) {
	var (
		insecure  x509.InsecureAlgorithmError
		violation x509.ConstraintViolationError
	)
	err := c.CheckSignatureFrom(ca)
	switch {
	case err == nil:
		return "", ""
	case errors.As(err, &insecure):
		return oldSignature(whose, c)
	case errors.As(err, &violation):
		return fmt.Sprintf("the CA certificate %q may not sign others: %s", subject(ca), notCA(ca)), issueAsCA(ca)
	case errors.Is(err, x509.ErrUnsupportedAlgorithm):
		return fmt.Sprintf("%s is signed in a way that we cannot check (%v)", whose, c.SignatureAlgorithm),
			"issue it with ECDSA, Ed25519 or RSA, and SHA-256 or better"
	case trusted:
		return fmt.Sprintf("%s was issued by %q, and the CA of that name among the roots that we trust (%s) has another key (serial %x, not valid before %s)",
				whose, subject(ca), j.whose, ca.SerialNumber, ca.NotBefore.UTC().Format(time.DateOnly)),
			fmt.Sprintf("that CA was made anew, or is another one: set %s to the certificate of the CA that issued it", j.peer.rootsKey())
	}
	return fmt.Sprintf("%s was not signed by the CA certificate %q that the %s sends with it", whose, subject(ca), j.peer),
		fmt.Sprintf("let the %s send the certificate of the CA that issued it", j.peer)
}

func oldSignature(whose string, c *x509.Certificate) (text, fix string) {
	return fmt.Sprintf("%s is signed with %v, which can be forged and is not accepted", whose, c.SignatureAlgorithm),
		"let the CA issue it anew with SHA-256 or better"
}

// isInsecure reports whether crypto/x509 accepts no certificate that is signed so.
func isInsecure(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return true
	}
	return false
}

// canSign reports whether crypto/x509 lets a certificate sign others.
func canSign(c *x509.Certificate) bool {
	marked := c.BasicConstraintsValid && c.IsCA || c.Version < 3 && !c.BasicConstraintsValid
	return marked && (c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageCertSign != 0)
}

// notCA says why crypto/x509 does not let a certificate sign others.
func notCA(c *x509.Certificate) string {
	switch {
	case !c.BasicConstraintsValid:
		return "it has no basicConstraints"
	case !c.IsCA:
		return "its basicConstraints say CA:FALSE"
	}
	return "its keyUsage lacks keyCertSign"
}

// host checks that the leaf is valid for the configured host name.
func (j *judge) host(leaf *x509.Certificate) error {
	name := j.name
	ip, notIP := netip.ParseAddr(name)
	if notIP == nil {
		name = ip.WithZone("").String()
	}
	if name == "" {
		return &PeerError{text: "there is no name to check the server's certificate for", fix: "set tls.server_name (--server-name) or tls.principals (--principal)"}
	}
	err := leaf.VerifyHostname(name)
	switch {
	case err == nil:
		return nil
	case len(names(leaf)) == 0:
		return &PeerError{fmt.Sprintf("the server's certificate has no subject alternative name, and its CN (%q) is not read", short(leaf.Subject.CommonName)),
			fmt.Sprintf("issue it with one for %s, or set tls.principals (--principal) to a pin (%s) or to any", name, pinText(leaf)), err}
	case notIP == nil && slices.Contains(leaf.DNSNames, name):
		return &PeerError{fmt.Sprintf("the server's certificate has the address %s as a DNS name, and not as an IP address", name),
			fmt.Sprintf("issue it with subjectAltName=IP:%s, or set tls.principals (--principal) to a pin (%s)", name, pinText(leaf)), err}
	}
	return &PeerError{fmt.Sprintf("the server's certificate is for %s, not for %s", listed(names(leaf)), name), otherName(leaf), err}
}

// otherName is the fix for a leaf that is not for the configured name.
func otherName(leaf *x509.Certificate) string {
	usable := func(dns string) bool {
		_, err := netip.ParseAddr(dns)
		return err != nil && !strings.Contains(dns, "*")
	}
	switch {
	case len(leaf.IPAddresses) > 0 || slices.ContainsFunc(leaf.DNSNames, usable):
		return "set tls.server_name (--server-name) to one of its names, or tls.principals (--principal)"
	case len(leaf.DNSNames) > 0:
		return "set tls.server_name (--server-name) to a name that it covers (* stands for exactly one label), or tls.principals (--principal)"
	}
	return "set tls.principals (--principal) to one of its names"
}

// pinText is the principal that pins the key of a certificate.
func pinText(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "spki:sha256/" + base64.StdEncoding.EncodeToString(sum[:])
}
