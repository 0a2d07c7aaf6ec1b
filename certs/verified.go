package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// verified caches chains that were verified. A peer that shows the same
// certificates again costs a hash instead of the signatures of its issuers; TLS
// checks the peer's own signature, over the handshake, every time. A cache
// belongs to one judge, and so to one set of roots and revocation lists. Safe for
// concurrent use.
type verified struct {
	mu     sync.Mutex
	chains map[verifiedKey]verifiedChains // guarded by mu
}

// verifiedKey is everything that a verification depends on, except the time.
type verifiedKey struct {
	roots *x509.CertPool
	peer  [sha256.Size]byte // of the certificates as they were sent, leaf first
}

// verifiedChains are the chains that crypto/x509 built, and the time in which all
// their certificates are valid: within it, crypto/x509 would build the same
// chains again.
type verifiedChains struct {
	chains      [][]*x509.Certificate
	from, until time.Time
}

// maxVerified bounds the memory. An upstream shows as many as it has servers.
const maxVerified = 256

func keyOf(peer []*x509.Certificate, roots *x509.CertPool) verifiedKey {
	h := sha256.New()
	for _, c := range peer {
		h.Write(c.Raw) // DER says its own length
	}
	k := verifiedKey{roots: roots}
	h.Sum(k.peer[:0])
	return k
}

// find returns the chains that were built for k, if they are valid now.
func (v *verified) find(k verifiedKey, now time.Time) ([][]*x509.Certificate, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.chains[k]
	if !ok || now.Before(c.from) || now.After(c.until) {
		return nil, false
	}
	return c.chains, true
}

func (v *verified) add(k verifiedKey, chains [][]*x509.Certificate) {
	c := verifiedChains{chains: chains, from: chains[0][0].NotBefore, until: chains[0][0].NotAfter}
	for _, chain := range chains {
		for _, cert := range chain {
			if cert.NotBefore.After(c.from) {
				c.from = cert.NotBefore
			}
			if cert.NotAfter.Before(c.until) {
				c.until = cert.NotAfter
			}
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.chains == nil || len(v.chains) >= maxVerified {
		v.chains = map[verifiedKey]verifiedChains{}
	}
	v.chains[k] = c
}
