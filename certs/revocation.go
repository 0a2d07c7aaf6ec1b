package certs

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrRevoked is wrapped by the PeerError of a peer with a revoked certificate, or
// with one whose revocation status no list can tell.
var ErrRevoked = errors.New("revoked")

// Revocations are certificate revocation lists (RFC 5280, 5). A list covers only
// the CA that signed it. If there are several, the newest usable one counts. If
// none is usable, no certificate of that CA is accepted, as in OpenSSL. It is
// safe for concurrent use.
type Revocations struct {
	lists []*revocationList   // static after construction
	cas   []*x509.Certificate // static after construction
}

// NewRevocations makes revocations of lists; nil if there are none. Cas are the
// known CAs, which Faults compares with. Neither must be modified afterwards.
func NewRevocations(lists []*x509.RevocationList, cas ...*x509.Certificate) *Revocations {
	if len(lists) == 0 {
		return nil
	}
	r := &Revocations{cas: cas}
	for _, l := range lists {
		r.lists = append(r.lists, newRevocationList(l))
	}
	return r
}

func (r *Revocations) equal(o *Revocations) bool {
	if r == nil || o == nil {
		return r == o
	}
	return slices.EqualFunc(r.lists, o.lists, func(a, b *revocationList) bool { return bytes.Equal(a.list.Raw, b.list.Raw) })
}

// Faults describes the lists that cannot be used now, one line each with the fix,
// and those that cover only a part of their CA's certificates: the others of that
// CA are refused.
func (r *Revocations) Faults(now time.Time) (unusable, partial []string) {
	if r == nil {
		return nil, nil
	}
	for _, l := range r.lists {
		if err := r.faultOf(l, now); err != nil {
			unusable = append(unusable, fmt.Sprintf("the revocation list of %q cannot be used: %v", short(l.issuer), err))
		} else if err := r.partOf(l); err != nil {
			partial = append(partial, fmt.Sprintf("the revocation list of %q is for a part of that CA's certificates, and the others are not accepted: %v", short(l.issuer), err))
		}
	}
	return unusable, partial
}

// faultOf says why a list cannot be used now. An expired list with a newer one
// beside it is no fault.
func (r *Revocations) faultOf(l *revocationList, now time.Time) error {
	late := l.late(now)
	if late != nil && slices.ContainsFunc(r.lists, func(o *revocationList) bool {
		return o.issuer == l.issuer && cmp.Or(o.fault, o.early(now), o.late(now)) == nil
	}) {
		late = nil
	}
	return cmp.Or(l.fault, r.disowned(l), l.early(now), late)
}

// disowned says why none of the known CAs of that name can have made the list.
func (r *Revocations) disowned(l *revocationList) (err error) {
	for _, ca := range r.cas {
		if !l.inNameOf(ca) {
			continue
		}
		if err = l.unusable(ca); err == nil {
			return nil
		}
	}
	return err
}

// partOf says why the CA needs another list beside this one.
func (r *Revocations) partOf(l *revocationList) error {
	switch {
	case l.scope.points != nil:
		return errors.New("it is for certificates that name its distribution point")
	case l.scope.cas && !slices.ContainsFunc(r.lists, func(o *revocationList) bool { return o.issuer == l.issuer && !o.scope.cas && o.fault == nil }):
		return errors.New("it is for certificates of CAs alone; add the CA's list for end entities, or give its complete list")
	}
	return nil
}

// check returns nil if at least one of the chains, leaf first, has no revoked
// certificate. Wanted requires a list of the leaf's CA; the CAs above it are
// checked if they have one.
func (r *Revocations) check(chains [][]*x509.Certificate, wanted bool, now time.Time) error {
	if r == nil {
		return nil
	}
	var first error
	for _, chain := range chains {
		err := r.checkChain(chain, wanted, now)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (r *Revocations) checkChain(chain []*x509.Certificate, wanted bool, now time.Time) error {
	for i := range len(chain) - 1 {
		if err := r.checkOne(chain[i], chain[i+1], wanted && i == 0, now); err != nil {
			return err
		}
	}
	return nil
}

// checkOne consults the lists that are in the issuer's name (RFC 5280, 6.3).
func (r *Revocations) checkOne(c, issuer *x509.Certificate, wanted bool, now time.Time) error {
	who := short(issuer.Subject.String())
	var able []*revocationList // usable while they are valid
	var fault error            // of the first unusable one
	named := false
	for _, l := range r.lists {
		if !l.inNameOf(issuer) {
			continue
		}
		named = true
		if err := cmp.Or(l.unusable(issuer), l.scope.misses(c)); err == nil {
			able = append(able, l)
		} else if fault == nil {
			fault = err
		}
	}
	if !named && !wanted {
		return nil
	}
	if !named {
		return &PeerError{fmt.Sprintf("no revocation list of %q is in the crl file, so nothing of that CA is accepted", who), "add the list of that CA to files.crl", ErrRevoked}
	}
	counts := newest(able, now)
	if when, ok := revokedIn(able, c, counts); ok {
		return &PeerError{fmt.Sprintf("the certificate with serial %x (%s) was revoked by %q at %s",
			c.SerialNumber, listed(names(c)), who, when.UTC().Format(time.RFC3339)), "let the peer use a new certificate", ErrRevoked}
	}
	if counts != nil {
		return nil
	}
	for _, l := range able {
		fault = cmp.Or(l.late(now), l.early(now), fault)
	}
	return &PeerError{fmt.Sprintf("the revocation list of %q cannot be used, so nothing of that CA is accepted: %v", who, fault), "get the newest list of that CA for files.crl", ErrRevoked}
}

// newest returns the newest list that is valid now; nil if there is none.
func newest(able []*revocationList, now time.Time) (out *revocationList) {
	for _, l := range able {
		if l.early(now) == nil && l.late(now) == nil && (out == nil || l.list.ThisUpdate.After(out.list.ThisUpdate)) {
			out = l
		}
	}
	return out
}

// revokedIn searches the list that counts, and those that are not older: a list
// that has expired, or is not valid yet, still says which certificates are
// revoked.
func revokedIn(able []*revocationList, c *x509.Certificate, counts *revocationList) (when time.Time, ok bool) {
	for _, l := range able {
		if counts != nil && l.list.ThisUpdate.Before(counts.list.ThisUpdate) {
			continue
		}
		if when, ok = l.serials[c.SerialNumber.String()]; ok {
			return when, true
		}
	}
	return when, false
}
