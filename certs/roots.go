package certs

import (
	"crypto/x509"
	"maps"
	"slices"
)

// Roots verify peers. It is immutable, and so is all that it points to. A nil
// *Roots has none.
type Roots struct {
	// Pool vouches for names of every kind; if Domains is set, not for the SPIFFE
	// IDs of other domains. Nil: the system's.
	Pool *x509.CertPool
	// Clients vouches for clients, where the trust settings of the roots do not
	// trust the same ones for servers. Nil: Pool does.
	Clients *x509.CertPool
	// Known are the certificates of Pool, from which messages tell why none of them
	// vouches for a peer. Nil: messages say less.
	Known []*x509.Certificate
	// Domains has the roots of SPIFFE trust domains by name ("corp.example").
	// Each vouches only for the IDs of its domain, except for our own domain's,
	// which are Pool. Nil: trust domains are not kept apart, and Pool vouches for
	// all.
	Domains map[string]*x509.CertPool
	// Revoked lists revoked certificates below the roots. It may be nil.
	Revoked *Revocations
	// Unused says of certificates that were given as roots why they are none, one
	// line each.
	Unused []string
}

// RootsOf makes roots of certificates.
func RootsOf(known []*x509.Certificate) *Roots { return &Roots{Pool: NewPool(known), Known: known} }

// NewRoots makes roots of a pool; nil if that is nil.
func NewRoots(pool *x509.CertPool) *Roots {
	if pool == nil {
		return nil
	}
	return &Roots{Pool: pool}
}

// equal reports whether both verify the same peers, and leave out the same
// certificates.
func (r *Roots) equal(o *Roots) bool {
	if r == nil || o == nil {
		return r == o
	}
	return samePool(r.Pool, o.Pool) && samePool(r.Clients, o.Clients) && slices.Equal(r.Unused, o.Unused) && (r.Domains == nil) == (o.Domains == nil) &&
		maps.EqualFunc(r.Domains, o.Domains, samePool) && r.Revoked.equal(o.Revoked)
}

func samePool(a, b *x509.CertPool) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(b)
}

// pool returns nil if there are no roots.
func (r *Roots) pool() *x509.CertPool {
	if r == nil {
		return nil
	}
	return r.Pool
}

// clients returns the roots that verify clients; nil if there are no roots.
func (r *Roots) clients() *x509.CertPool {
	if r != nil && r.Clients != nil {
		return r.Clients
	}
	return r.pool()
}

// limits says, for messages, that not all certificates that were given as roots
// verify peers; empty if all do.
func (r *Roots) limits() string {
	switch {
	case r == nil:
	case len(r.Unused) > 0:
		return "; not all of that file can be used: `ambassador check` says which"
	case r.Clients != nil:
		return "; their trust settings limit some to servers or to clients"
	}
	return ""
}

// known may return nil.
func (r *Roots) known() []*x509.Certificate {
	if r == nil {
		return nil
	}
	return r.Known
}

// revoked may return nil.
func (r *Roots) revoked() *Revocations {
	if r == nil {
		return nil
	}
	return r.Revoked
}

// domains returns nil if trust domains are not kept apart.
func (r *Roots) domains() map[string]*x509.CertPool {
	if r == nil {
		return nil
	}
	return r.Domains
}
