package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ServerPolicy is how we are a TLS server, and which clients we accept.
type ServerPolicy struct {
	// Sources are our identities, at least one. A client gets the first whose
	// certificate is for the name that it asks for (SNI), or else the first of all.
	Sources []*Source
	// Clients says that a client must show a certificate, and prove one of
	// Principals. If false, none is asked for, and the next three have no meaning.
	Clients    bool
	Principals Principals
	// Roots has the roots that verify clients, and its generations are followed. If
	// nil, the roots of the identity that the client has chosen do it, and if that
	// brings none, nobody is accepted: the system's vouch for half the world, and
	// have to be asked for.
	Roots *Source
	// SystemRoots asks for the system's roots, whatever Roots and the identity have.
	SystemRoots bool
	// MinVersion is one of crypto/tls. If zero, it is TLS 1.2. The highest is
	// always TLS 1.3.
	MinVersion uint16
	// ALPN are the protocols that we speak, the preferred one first (RFC 7301). A
	// client that offers others alone is refused. One that offers none is accepted:
	// ALPN is optional, and HAProxy and nginx accept it, too.
	ALPN []string
}

// Terminator makes the TLS configurations of a policy. Make it with
// NewTerminator. It is safe for concurrent use.
type Terminator struct {
	policy ServerPolicy // static after construction
	hosts  []*host      // static after construction; one for each source
}

// Termination is how the handshake with one client goes on.
type Termination struct {
	// Config must not be modified.
	Config *tls.Config
	// Principal names a client by the leaf that it has shown, once Config has
	// accepted it. Nil where clients show none.
	Principal func(leaf *x509.Certificate) string
}

// host is one of our identities, as clients see it.
type host struct {
	source *Source // static after construction

	mu       sync.Mutex
	identity uint64       // guarded by mu; the generation of current
	roots    uint64       // guarded by mu; that of its Roots
	current  *Termination // guarded by mu; nil before the first
	keys     [][32]byte   // guarded by mu; of the tickets of current, the newest first
	keyed    time.Time    // guarded by mu; when the newest was made
}

const (
	// ticketKeyLife is how long a key encrypts tickets, and ticketKeysKept how many
	// are kept: a ticket is good for 6 to 12 hours, after which nobody can decrypt
	// it any more.
	ticketKeyLife  = 6 * time.Hour
	ticketKeysKept = 2
)

// NewTerminator makes a terminator. What the policy points to must not be modified
// afterwards.
func NewTerminator(p ServerPolicy) *Terminator {
	if p.MinVersion == 0 {
		p.MinVersion = tls.VersionTLS12
	}
	p.Principals, p.ALPN = slices.Clone(p.Principals), slices.Clone(p.ALPN)
	t := &Terminator{policy: p}
	for _, s := range p.Sources {
		t.hosts = append(t.hosts, &host{source: s})
	}
	return t
}

// Terminate is how to go on with a client that has said hello; to be called for
// each, from tls.Config.GetConfigForClient. It waits, bounded by the hello's
// context, while an identity that is not ready is being got. The error wraps
// ErrNotReady.
//
// The configuration is the same as long as the generation of the identity and of
// the roots is, and so are the sessions that it resumes: with a new generation all
// tickets of the old one are void. A handshake that fails because of the client's
// certificate returns a *tls.CertificateVerificationError around a *PeerError.
func (t *Terminator) Terminate(hello *tls.ClientHelloInfo) (Termination, error) {
	h := t.choose(hello.ServerName)
	now, err := h.termination(&t.policy, time.Now())
	if err == nil {
		return now.forALPN(hello.SupportedProtos), nil
	}
	if err := h.source.Await(hello.Context()); err != nil {
		return Termination{}, err
	}
	if now, err = h.termination(&t.policy, time.Now()); err != nil {
		return Termination{}, err
	}
	return now.forALPN(hello.SupportedProtos), nil
}

// forALPN is the termination of a client that offers those protocols. crypto/tls
// takes a client that offers http/1.1 alone for one without ALPN where we speak h2
// (golang.org/issue/46310): it gets a configuration that has nothing in common with
// any client, so that it ends with no_application_protocol like the others.
func (t Termination) forALPN(offered []string) Termination {
	ours := t.Config.NextProtos
	if !slices.Contains(ours, "h2") || !slices.Contains(offered, "http/1.1") ||
		slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(ours, p) }) {
		return t
	}
	t.Config = t.Config.Clone()
	t.Config.NextProtos = []string{""} // RFC 7301, 3.1: a client cannot offer the empty string
	return t
}

// Ready is nil if all identities are. The error wraps ErrNotReady.
func (t *Terminator) Ready() error {
	for _, h := range t.hosts {
		if err := h.source.Ready(); err != nil {
			return err
		}
	}
	return nil
}

// choose takes the identity for the name that a client asks for. If no ready one
// is for it, one that is not ready may be.
func (t *Terminator) choose(name string) *host {
	if len(t.hosts) == 1 || name == "" {
		return t.hosts[0]
	}
	var waiting *host
	for _, h := range t.hosts {
		snap, err := h.source.Current()
		switch {
		case err != nil && waiting == nil:
			waiting = h
		case err == nil && snap.Certificate != nil && snap.Certificate.Leaf.VerifyHostname(name) == nil:
			return h
		}
	}
	if waiting != nil {
		return waiting
	}
	return t.hosts[0]
}

// termination is that of the current generation.
func (h *host) termination(p *ServerPolicy, now time.Time) (Termination, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	snap, err := h.source.Current() // under mu: never an older one after a newer
	if err == nil && snap.Certificate == nil {
		err = fmt.Errorf("identity %w: it has no certificate", ErrNotReady)
	}
	if err != nil {
		return Termination{}, err
	}
	roots, err := trustedBy(snap, p.Roots, p.SystemRoots)
	if err != nil {
		return Termination{}, err
	}
	if h.current == nil || snap.Generation != h.identity || roots.generation != h.roots {
		h.identity, h.roots = snap.Generation, roots.generation
		h.current, h.keys = p.terminate(snap.Certificate, roots), nil
	}
	if h.keys == nil || now.Sub(h.keyed) >= ticketKeyLife {
		h.newKey(now)
	}
	return *h.current, nil
}

// newKey makes the key of the tickets that are given out from now on. Without keys
// of our own crypto/tls would take those of the configuration that has
// GetConfigForClient, which outlive every generation. Mu is held.
func (h *host) newKey(now time.Time) {
	var key [32]byte
	rand.Read(key[:]) // never fails
	h.keys = append([][32]byte{key}, h.keys...)
	h.keys = h.keys[:min(len(h.keys), ticketKeysKept)]
	h.keyed = now
	h.current.Config.SetSessionTicketKeys(h.keys) // safe while the configuration is in use
}

// terminate makes the configuration of one generation. Clients are judged in
// VerifyConnection, which is called for every connection, the resumed ones
// included; crypto/tls itself would know neither principals nor trust domains.
func (p *ServerPolicy) terminate(cert *tls.Certificate, roots trust) *Termination {
	t := &Termination{Config: &tls.Config{
		Certificates: []tls.Certificate{*cert},
		MinVersion:   p.MinVersion,
		MaxVersion:   tls.VersionTLS13,
		NextProtos:   p.ALPN,
	}}
	if !p.Clients {
		return t
	}
	if roots.roots.pool() == nil && !p.SystemRoots {
		roots.roots, roots.whose = NewRoots(x509.NewCertPool()), "none is configured"
	}
	j := &judge{peer: theClient, principals: p.Principals, roots: roots.roots.pool(), whose: roots.whose, domains: roots.roots.domains(), revoked: roots.revoked, listed: roots.listed, verified: &verified{}}
	t.Config.ClientAuth = tls.RequireAnyClientCert
	t.Config.VerifyConnection = func(cs tls.ConnectionState) error { return j.verify(cs.PeerCertificates, time.Now()) }
	t.Principal = j.proved
	return t
}
