package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrPrincipal is wrapped by the PeerError of a peer that proved its names by a
// verified chain but matches none of the principals.
var ErrPrincipal = errors.New("not one of the principals")

// PeerError says why a peer's certificate is not accepted, and how to fix that.
type PeerError struct {
	text string // what happened
	fix  string // empty if it is not known
	// Err is the error of crypto/x509, ErrPrincipal, ErrRevoked, or nil.
	Err error
}

// Error is "WHAT HAPPENED; FIX".
func (e *PeerError) Error() string {
	if e.fix == "" {
		return e.text
	}
	return e.text + "; " + e.fix
}

// Unwrap returns Err.
func (e *PeerError) Unwrap() error { return e.Err }

// Fix returns how to fix the cause, which is the end of Error; empty if that is not
// known.
func (e *PeerError) Fix() string { return e.fix }

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

// principalsKey is the configuration key of the names that the peer may prove.
func (p peer) principalsKey() string {
	if p == theServer {
		return "tls.principals (--principal)"
	}
	return "tls.principals of the listener"
}

// judge verifies the certificates of peers under one policy and one generation.
// It is immutable, except for its cache.
type judge struct {
	peer       peer
	name       string // of the host; not checked if there are principals
	principals Principals
	roots      *x509.CertPool            // nil: the system's
	known      []*x509.Certificate       // the certificates of roots, for messages; nil: not known
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
		return &PeerError{text: fmt.Sprintf("the %s sent no certificate", j.peer), fix: fmt.Sprintf("let the %s send one", j.peer)}
	}
	leaf := peer[0]
	pinned, chained := j.principals.split()
	if _, ok := pinned.MatchCertificate(leaf); ok {
		return nil
	}
	if len(pinned) > 0 && len(chained) == 0 {
		return &PeerError{fmt.Sprintf("the %s's key is none of those pinned in principals; its certificate is for %s", j.peer, listed(names(leaf))),
			fmt.Sprintf("if it is the right %s, pin its key in %s: %s", j.peer, j.peer.principalsKey(), pinText(leaf)), ErrPrincipal}
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
		return &PeerError{fmt.Sprintf("the %s's certificate is for %s, but principals wants %s%s", j.peer, listed(names(leaf)), j.principals, noSPIFFEID(leaf)),
			fmt.Sprintf("if it is the right %s, add one of its names to %s", j.peer, j.peer.principalsKey()), ErrPrincipal}
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
		return "", nil, &PeerError{text: fmt.Sprintf("the %s's certificate is for %s, which is of no trust domain%s", j.peer, listed(names(leaf)), noSPIFFEID(leaf)),
			fix: "issue it with one SPIFFE ID"}
	}
	if id == "" {
		return "", j.roots, nil
	}
	roots, ok := j.domains[id]
	switch {
	case !ok:
		return "", nil, &PeerError{text: fmt.Sprintf("the %s's certificate is for %s, and we have no roots of that trust domain", j.peer, listed(names(leaf))),
			fix: "federate with that trust domain"}
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
		return nil, j.explain(peer, roots, now, err)
	}
	return chains, j.revoked.check(chains, j.listed, now)
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
