package certs

import (
	"crypto/x509"
	"maps"
)

// Roots verify peers. It is immutable, and so is all that it points to. A nil
// *Roots has none.
type Roots struct {
	// Pool vouches for names of every kind; if Domains is set, not for the SPIFFE
	// IDs of other domains. Nil: the system's.
	Pool *x509.CertPool
	// Domains has the roots of SPIFFE trust domains by name ("corp.example").
	// Each vouches only for the IDs of its domain, except for our own domain's,
	// which are Pool. Nil: trust domains are not kept apart, and Pool vouches for
	// all.
	Domains map[string]*x509.CertPool
	// Revoked lists revoked certificates below the roots. It may be nil.
	Revoked *Revocations
}

// NewRoots makes roots of a pool; nil if that is nil.
func NewRoots(pool *x509.CertPool) *Roots {
	if pool == nil {
		return nil
	}
	return &Roots{Pool: pool}
}

// equal reports whether both verify the same peers.
func (r *Roots) equal(o *Roots) bool {
	if r == nil || o == nil {
		return r == o
	}
	return samePool(r.Pool, o.Pool) && (r.Domains == nil) == (o.Domains == nil) &&
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
