package certs

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrRevoked is wrapped by a PeerError whose peer showed a certificate that its
// issuer has withdrawn, or one of which that cannot be told any more.
var ErrRevoked = errors.New("revoked")

// Revocations are certificate revocation lists (RFC 5280, 5). A list speaks for
// the CA that signed it, and for no other; the certificates of a CA that no list
// speaks for are not looked at. It is safe for concurrent use.
type Revocations struct{ lists []*revocationList }

type revocationList struct {
	list    *x509.RevocationList
	serials map[string]time.Time // when, by serial number

	mu     sync.Mutex
	signed map[string]bool // guarded by mu; whether that public key signed the list
}

// NewRevocations makes revocations of lists; nil if there are none. The lists
// must not be modified afterwards.
func NewRevocations(lists []*x509.RevocationList) *Revocations {
	if len(lists) == 0 {
		return nil
	}
	r := &Revocations{}
	for _, l := range lists {
		one := &revocationList{list: l, serials: make(map[string]time.Time, len(l.RevokedCertificateEntries)), signed: map[string]bool{}}
		for _, e := range l.RevokedCertificateEntries {
			one.serials[e.SerialNumber.String()] = e.RevocationTime
		}
		r.lists = append(r.lists, one)
	}
	return r
}

func (r *Revocations) equal(o *Revocations) bool {
	if r == nil || o == nil {
		return r == o
	}
	return slices.EqualFunc(r.lists, o.lists, func(a, b *revocationList) bool { return bytes.Equal(a.list.Raw, b.list.Raw) })
}

// check is nil if one of the chains, leaf first, has no revoked certificate.
func (r *Revocations) check(chains [][]*x509.Certificate, now time.Time) error {
	if r == nil {
		return nil
	}
	var first error
	for _, chain := range chains {
		err := r.checkChain(chain, now)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (r *Revocations) checkChain(chain []*x509.Certificate, now time.Time) error {
	for i := range len(chain) - 1 {
		if err := r.checkOne(chain[i], chain[i+1], now); err != nil {
			return err
		}
	}
	return nil
}

// checkOne asks the lists that issuer signed. A list that has run out no longer
// says what is revoked: then nothing of its issuer is accepted, as OpenSSL has it.
func (r *Revocations) checkOne(c, issuer *x509.Certificate, now time.Time) error {
	for _, l := range r.lists {
		if !bytes.Equal(l.list.RawIssuer, issuer.RawSubject) || !l.signedBy(issuer) {
			continue
		}
		who := short(issuer.Subject.String())
		if when, ok := l.serials[c.SerialNumber.String()]; ok {
			return &PeerError{fmt.Sprintf("the certificate with serial %x (%s) was revoked by %q at %s",
				c.SerialNumber, listed(names(c)), who, when.UTC().Format(time.RFC3339)), ErrRevoked}
		}
		if next := l.list.NextUpdate; !next.IsZero() && now.After(next) {
			return &PeerError{fmt.Sprintf("the revocation list of %q ran out at %s, so it cannot be told whether the certificate is revoked; put a new list in the crl file",
				who, next.UTC().Format(time.RFC3339)), ErrRevoked}
		}
	}
	return nil
}

// signedBy remembers the answers: there are as many as CAs of that name.
func (l *revocationList) signedBy(issuer *x509.Certificate) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(issuer.RawSubjectPublicKeyInfo)
	ok, known := l.signed[key]
	if !known {
		ok = l.list.CheckSignatureFrom(issuer) == nil
		l.signed[key] = ok
	}
	return ok
}
