package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// ErrPrincipal is wrapped by the PeerError of a peer that proved its names by a
// verified chain but matches none of the principals.
var ErrPrincipal = errors.New("not one of the principals")

// PeerError says why a peer's certificate is not accepted, and how to fix that.
type PeerError struct {
	text string
	// Err is the error of crypto/x509, ErrPrincipal, ErrRevoked, or nil.
	Err error
}

func (e *PeerError) Error() string { return e.text }

// Unwrap returns Err.
func (e *PeerError) Unwrap() error { return e.Err }

// peer is the role of the side that a judge verifies.
type peer string

const (
	theServer peer = "" // we are the client
	theClient peer = "client"
)

// String is the role in a message.
func (p peer) String() string {
	if p == theServer {
		return "server"
	}
	return string(p)
}

// usage returns the extended key usage that the peer's certificate needs, and its
// name.
func (p peer) usage() (x509.ExtKeyUsage, string) {
	if p == theServer {
		return x509.ExtKeyUsageServerAuth, "serverAuth"
	}
	return x509.ExtKeyUsageClientAuth, "clientAuth"
}

// rootsKey is the configuration key of the roots that verify the peer.
func (p peer) rootsKey() string {
	if p == theServer {
		return "tls.ca (--ca)"
	}
	return "tls.ca of the listener"
}

// judge verifies the certificates of peers under one policy and one generation.
// It is immutable, except for its cache.
type judge struct {
	peer       peer
	name       string // of the host; not checked if there are principals
	principals Principals
	roots      *x509.CertPool            // nil: the system's
	whose      string                    // describes the roots, for messages
	domains    map[string]*x509.CertPool // see Roots; nil: not kept apart
	revoked    *Revocations              // may be nil
	listed     bool                      // the CA of a leaf must have a list in revoked
	verified   *verified                 // cache of verified chains; nil: none
}

// verify checks the peer's certificates, leaf first, at now. The error is a
// *tls.CertificateVerificationError around a *PeerError.
func (j *judge) verify(peer []*x509.Certificate, now time.Time) error {
	if err := j.judge(peer, now); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: peer, Err: err}
	}
	return nil
}

// judge checks pins first: a pin replaces the chain, and with it everything that
// a CA vouches for, including the dates (as in RFC 7671, 5.1).
func (j *judge) judge(peer []*x509.Certificate, now time.Time) error {
	if len(peer) == 0 {
		return &PeerError{text: fmt.Sprintf("the %s sent no certificate", j.peer)}
	}
	leaf := peer[0]
	pinned, chained := j.principals.split()
	if _, ok := pinned.MatchCertificate(leaf); ok {
		return nil
	}
	if len(pinned) > 0 && len(chained) == 0 {
		return &PeerError{fmt.Sprintf("the %s's key is none of those pinned in principals; its certificate is for %s", j.peer, listed(names(leaf))), ErrPrincipal}
	}
	domain, roots, err := j.vouching(leaf, chained)
	if err == nil {
		err = j.chain(peer, roots, now)
	}
	switch {
	case err != nil:
		return err
	case len(j.principals) == 0:
		return j.host(leaf)
	}
	if domain != "" {
		chained = chained.ofSPIFFE()
	}
	if _, ok := chained.MatchCertificate(leaf); !ok {
		return &PeerError{fmt.Sprintf("the %s's certificate is for %s, but principals wants %s%s",
			j.peer, listed(names(leaf)), j.principals, noSPIFFEID(leaf)), ErrPrincipal}
	}
	return nil
}

// proved returns the peer's name once its leaf was accepted: that of the first
// principal that it proves, in the order in which judge checks them.
func (j *judge) proved(leaf *x509.Certificate) string {
	pinned, chained := j.principals.split()
	if p, ok := pinned.MatchCertificate(leaf); ok {
		return p.text
	}
	if domain, _, _ := j.vouching(leaf, chained); domain != "" {
		chained = chained.ofSPIFFE()
	}
	p, _ := chained.MatchCertificate(leaf)
	return p.proof(leaf)
}

// noSPIFFEID says why a leaf with URIs proves no SPIFFE ID.
func noSPIFFEID(leaf *x509.Certificate) string {
	all := uris(leaf)
	switch {
	case len(all) > 1:
		return "; one with several URIs proves no SPIFFE ID"
	case len(all) == 1 && meansSPIFFE(all[0]):
		if err := CheckSPIFFEID(all[0]); err != nil {
			return "; its URI proves no SPIFFE ID: " + err.Error()
		}
	}
	return ""
}

// vouching returns the roots that verify the leaf. Domain is set if they belong
// to another trust domain than ours: then they vouch only for the leaf's SPIFFE
// ID.
func (j *judge) vouching(leaf *x509.Certificate, chained Principals) (domain string, roots *x509.CertPool, err error) {
	if j.domains == nil || len(chained.ofSPIFFE()) == 0 {
		return "", j.roots, nil
	}
	id := trustDomain(leaf)
	if all := uris(leaf); id == "" && len(all) == 1 && meansSPIFFE(all[0]) {
		return "", nil, &PeerError{text: fmt.Sprintf("the %s's certificate is for %s, which is of no trust domain%s", j.peer, listed(names(leaf)), noSPIFFEID(leaf))}
	}
	if id == "" {
		return "", j.roots, nil
	}
	roots, ok := j.domains[id]
	switch {
	case !ok:
		return "", nil, &PeerError{text: fmt.Sprintf("the %s's certificate is for %s, and we have no roots of that trust domain; federate with it", j.peer, listed(names(leaf)))}
	case roots == j.roots:
		return "", roots, nil
	}
	return id, roots, nil
}

// chain verifies the leaf up to one of the roots. A chain in the cache is not
// verified again, but revocation is checked every time.
func (j *judge) chain(peer []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	if j.verified == nil {
		_, err := j.build(peer, roots, now)
		return err
	}
	key := keyOf(peer, roots)
	if chains, ok := j.verified.find(key, now); ok && j.revoked.check(chains, j.listed, now) == nil {
		return nil
	}
	chains, err := j.build(peer, roots, now)
	if err == nil {
		j.verified.add(key, chains)
	}
	return err
}

// build returns the chains from the leaf to the roots. At least one of them has
// no revoked certificate.
func (j *judge) build(peer []*x509.Certificate, roots *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	usage, _ := j.peer.usage()
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range peer[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := peer[0].Verify(opts)
	if err != nil {
		return nil, j.explain(peer[0], now, err)
	}
	return chains, j.revoked.check(chains, j.listed, now)
}

// explain turns an error of crypto/x509 into a PeerError.
func (j *judge) explain(leaf *x509.Certificate, now time.Time, err error) error {
	var (
		invalid x509.CertificateInvalidError
		unknown x509.UnknownAuthorityError
		system  x509.SystemRootsError
	)
	text := fmt.Sprintf("the %s's certificate cannot be verified: %v", j.peer, err)
	switch {
	case Validity(leaf, now) != nil:
		text = fmt.Sprintf("the %s's certificate (%s): %v", j.peer, listed(names(leaf)), Validity(leaf, now))
	case errors.As(err, &invalid):
		text = j.explainInvalid(leaf, now, invalid)
	case errors.As(err, &unknown):
		text = fmt.Sprintf("no root that we trust (%s) vouches for the %s's certificate, which was issued by %q; "+
			"set %s to that CA's certificate, or let the %s send its whole chain", j.whose, j.peer, short(leaf.Issuer.String()), j.peer.rootsKey(), j.peer)
	case errors.As(err, &system):
		text = fmt.Sprintf("the system has no roots (%v); set %s", system, j.peer.rootsKey())
	}
	return &PeerError{text, err}
}

func (j *judge) explainInvalid(leaf *x509.Certificate, now time.Time, invalid x509.CertificateInvalidError) string {
	whose := fmt.Sprintf("the %s's certificate", j.peer)
	if invalid.Cert != nil && !invalid.Cert.Equal(leaf) {
		whose = fmt.Sprintf("the CA certificate %q", short(invalid.Cert.Subject.String()))
	}
	switch invalid.Reason {
	case x509.Expired:
		if err := Validity(invalid.Cert, now); err != nil {
			return whose + ": " + err.Error()
		}
	case x509.IncompatibleUsage:
		_, usage := j.peer.usage()
		return fmt.Sprintf("the %s's certificate is not one for %ss: its extended key usage, or that of a CA above it, lacks %s", j.peer, j.peer, usage)
	case x509.NotAuthorizedToSign:
		return whose + " is not that of a CA, but has signed another"
	}
	return whose + ": " + invalid.Error()
}

// host checks that the leaf is valid for the configured host name.
func (j *judge) host(leaf *x509.Certificate) error {
	name := j.name
	if ip, err := netip.ParseAddr(name); err == nil {
		name = ip.WithZone("").String()
	}
	if name == "" {
		return &PeerError{text: "there is no name to check the server's certificate for; set tls.server_name (--server-name) or tls.principals (--principal)"}
	}
	err := leaf.VerifyHostname(name)
	switch {
	case err == nil:
		return nil
	case len(names(leaf)) == 0:
		return &PeerError{fmt.Sprintf("the server's certificate has no subject alternative name, and its CN (%q) is not read; "+
			"issue it with one for %s, or set tls.principals (--principal) to a pin (spki:sha256/…) or to any", short(leaf.Subject.CommonName), name), err}
	}
	return &PeerError{fmt.Sprintf("the server's certificate is for %s, not for %s; set tls.server_name (--server-name) to one of its names, or tls.principals (--principal)",
		listed(names(leaf)), name), err}
}

// maxListed and maxText bound the names in a message: some certificates have
// hundreds, and the peer chooses their length.
const (
	maxListed = 8
	maxText   = 256 // bytes; a DNS name has 253
)

// short truncates text from a certificate.
func short(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

func listed(all []string) string {
	switch {
	case len(all) == 0:
		return "no name"
	case len(all) > maxListed:
		return fmt.Sprintf("%s and %d more", short(strings.Join(all[:maxListed], ", ")), len(all)-maxListed)
	}
	return short(strings.Join(all, ", "))
}
