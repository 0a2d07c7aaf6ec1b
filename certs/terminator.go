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

// ServerPolicy says how we serve TLS, and which clients we accept.
type ServerPolicy struct {
	// Sources are our identities, at least one. A client gets the first whose
	// certificate is valid for the requested server name (SNI), else the first of
	// all.
	Sources []*Source
	// Clients requires a certificate of each client that proves one of
	// Principals. If false, clients are not asked for one, and the next three
	// fields have no effect.
	Clients    bool
	Principals Principals
	// Roots has the roots that verify clients; its new generations are used as
	// they appear. If nil, the roots of the identity that the client has chosen
	// are used. If that has none, no client is accepted: the system's roots vouch
	// for much of the world, and have to be selected.
	Roots *Source
	// SystemRoots selects the system's roots, even if Roots or the identity has
	// others.
	SystemRoots bool
	// MinVersion is a version constant of crypto/tls. If zero, TLS 1.2. The
	// highest version is always TLS 1.3.
	MinVersion uint16
	// ALPN lists the protocols that we speak, the preferred one first (RFC 7301).
	// A client that offers only others is refused. A client that offers none is
	// accepted, as in HAProxy and nginx: ALPN is optional.
	ALPN []string
}

// Terminator makes the TLS configurations of a policy. Make it with
// NewTerminator. It is safe for concurrent use.
type Terminator struct {
	policy ServerPolicy // static after construction
	hosts  []*host      // static after construction; one for each source
}

// Termination says how to continue the handshake with one client.
type Termination struct {
	// Config must not be modified.
	Config *tls.Config
	// Principal returns the name of a client by its leaf, once Config has
	// accepted it. Nil if clients show no certificate.
	Principal func(leaf *x509.Certificate) string
}

// host is one of our identities, as clients see it.
type host struct {
	source *Source // static after construction

	mu       sync.Mutex
	identity uint64       // guarded by mu; the generation of current
	roots    uint64       // guarded by mu; that of its Roots
	current  *Termination // guarded by mu; nil before the first
	keys     [][32]byte   // guarded by mu; ticket keys of current, the newest first
	keyed    time.Time    // guarded by mu; when the newest key was made
}

const (
	// ticketKeyLife is how long a key encrypts tickets, and ticketKeysKept how many
	// keys are kept: a ticket is valid for 6 to 12 hours. After that nobody can
	// decrypt it.
	ticketKeyLife  = 6 * time.Hour
	ticketKeysKept = 2
)

// NewTerminator makes a terminator. The objects that the policy points to must
// not be modified afterwards.
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

// Terminate returns the configuration for a client that has sent its ClientHello.
// Call it for each from tls.Config.GetConfigForClient. If the identity is not
// ready, it waits for the issuer, bounded by the hello's context. The error wraps
// ErrNotReady.
//
// The configuration stays the same while the generations of the identity and of
// the roots do, and so do the sessions that it resumes: a new generation
// invalidates all tickets of the old one. A handshake that fails because of the
// client's certificate returns a *tls.CertificateVerificationError around a
// *PeerError.
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

// forALPN adapts the termination to the protocols that the client offers. If we
// speak h2, crypto/tls treats a client that offers only http/1.1 as one without
// ALPN (golang.org/issue/46310). Such a client gets a configuration whose
// protocol no client can offer, so that it ends with no_application_protocol like
// the others.
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

// Ready returns nil if all identities are ready. The error wraps ErrNotReady.
func (t *Terminator) Ready() error {
	for _, h := range t.hosts {
		if err := h.source.Ready(); err != nil {
			return err
		}
	}
	return nil
}

// choose returns the identity for the server name that a client requests. If no
// ready identity matches, it returns one that is not ready: its certificate may
// match.
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

// termination returns that of the current generation.
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

// newKey makes the key of the tickets that are issued from now on. Without our
// own keys crypto/tls would use those of the configuration that has
// GetConfigForClient, which outlive every generation. Mu is held.
func (h *host) newKey(now time.Time) {
	var key [32]byte
	rand.Read(key[:]) // never fails
	h.keys = append([][32]byte{key}, h.keys...)
	h.keys = h.keys[:min(len(h.keys), ticketKeysKept)]
	h.keyed = now
	h.current.Config.SetSessionTicketKeys(h.keys) // safe while the configuration is in use
}

// terminate makes the configuration of one generation. Clients are verified in
// VerifyConnection, which is called for every connection, resumed ones included;
// crypto/tls itself knows neither principals nor trust domains.
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
	j := &judge{peer: theClient, principals: p.Principals, roots: roots.roots.clients(), known: roots.roots.known(), whose: roots.whose, domains: roots.roots.domains(), revoked: roots.revoked, listed: roots.listed, verified: &verified{}}
	t.Config.ClientAuth = tls.RequireAnyClientCert
	t.Config.VerifyConnection = func(cs tls.ConnectionState) error { return j.verify(cs.PeerCertificates, time.Now()) }
	t.Principal = j.proved
	return t
}
