package certs

import (
	"crypto/x509"
	"maps"
)

// Roots are what verifies peers. It is immutable, and so is all that it points
// to. Nil brings none.
type Roots struct {
	// Pool vouches for names of every kind; with Domains, not for the SPIFFE IDs of
	// another domain than our own. Nil: the system's.
	Pool *x509.CertPool
	// Domains has the roots of SPIFFE trust domains by name ("corp.example"). Each
	// vouches for the IDs of its domain and for nothing else, but for that of our
	// own domain, which is Pool itself. Nil: trust domains are not kept apart, and
	// Pool vouches for all.
	Domains map[string]*x509.CertPool
	// Revoked withdraws certificates that the roots vouch for. It may be nil.
	Revoked *Revocations
}

// NewRoots makes roots of a pool alone; nil if that is nil.
func NewRoots(pool *x509.CertPool) *Roots {
	if pool == nil {
		return nil
	}
	return &Roots{Pool: pool}
}

// equal says whether both verify the same peers.
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

// pool is nil where there are no roots.
func (r *Roots) pool() *x509.CertPool {
	if r == nil {
		return nil
	}
	return r.Pool
}

// revoked may be nil.
func (r *Roots) revoked() *Revocations {
	if r == nil {
		return nil
	}
	return r.Revoked
}

// domains is nil where trust domains are not kept apart.
func (r *Roots) domains() map[string]*x509.CertPool {
	if r == nil {
		return nil
	}
	return r.Domains
}
