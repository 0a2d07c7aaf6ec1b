package certs

import (
	"container/list"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// ClientPolicy says how we begin TLS with one upstream, and which certificates we
// accept there. The zero value sends no certificate, and verifies the endpoint's
// host up to the system's roots.
type ClientPolicy struct {
	// Source is our identity. If nil, we send no certificate.
	Source *Source
	// Roots has the roots that verify the peer; its new generations are used as
	// they appear. If nil, the identity's roots are used, and if it has none, the
	// system's.
	Roots *Source
	// SystemRoots selects the system's roots, even if Roots or the identity has
	// others.
	SystemRoots bool
	// ServerName is sent as SNI, unless it is an IP address. Without Principals
	// the peer's certificate must be valid for it. If empty, it is the endpoint's
	// host.
	ServerName string
	// Principals, if any, replace the check of ServerName: the peer must prove
	// one.
	Principals Principals
	// MinVersion and MaxVersion are version constants of crypto/tls. If zero, TLS
	// 1.2 and TLS 1.3.
	MinVersion, MaxVersion uint16
	// CipherSuites are those that are offered up to TLS 1.2. If empty, the default
	// ones of crypto/tls, which are the secure ones.
	CipherSuites []uint16
	// Curves are the key exchanges that are offered. If empty, the default ones of
	// crypto/tls, the post-quantum ones included.
	Curves []tls.CurveID
	// NoResumption makes every handshake a full one.
	NoResumption bool
	// Renegotiate accepts that the server renegotiates, up to TLS 1.2, even
	// without the extension of RFC 5746. Its certificate must stay the same.
	Renegotiate bool
	// ALPN lists the protocols offered, the preferred one first (RFC 7301). A
	// server that selects another is refused. A server that selects none is
	// accepted: it may not know ALPN and still speak the protocol.
	ALPN []string
	// SkipVerify accepts any peer, even if Principals is set.
	SkipVerify bool
}

// Originator makes the TLS configurations of a policy. Make it with
// NewOriginator. It is safe for concurrent use.
type Originator struct {
	policy ClientPolicy // static after construction

	mu       sync.Mutex
	identity uint64                      // guarded by mu; the generation of all configs
	roots    uint64                      // guarded by mu; that of their Roots
	configs  map[configKey]*list.Element // guarded by mu; of *configEntry
	recent   *list.List                  // guarded by mu; the most recently used in front
}

type configKey struct{ host, address string }

type configEntry struct {
	key    configKey
	config *tls.Config
}

// maxConfigs bounds the addresses whose configuration and session are kept: more
// than most upstreams have, at about 5 KiB each.
const maxConfigs = 256

// sessionsKept is the size of a session cache. crypto/tls keeps the newest
// session of each server name, and an address has one name.
const sessionsKept = 1

// NewOriginator makes an originator. The objects that the policy points to must
// not be modified afterwards.
func NewOriginator(p ClientPolicy) *Originator {
	if p.MinVersion == 0 {
		p.MinVersion = tls.VersionTLS12
	}
	if p.MaxVersion == 0 {
		p.MaxVersion = tls.VersionTLS13
	}
	if p.Source == nil {
		p.Source = NewSource("none")
		p.Source.Publish(nil, nil)
	}
	p.Principals, p.ALPN = slices.Clone(p.Principals), slices.Clone(p.ALPN)
	p.CipherSuites, p.Curves = slices.Clone(p.CipherSuites), slices.Clone(p.Curves)
	return &Originator{policy: p, configs: map[configKey]*list.Element{}, recent: list.New()}
}

// Config returns the configuration for one connection to address
// ("10.0.0.7:5432"), which an endpoint configured as host resolved to. It must
// not be modified. It stays the same while the generations of the identity and of
// the roots do, so that sessions are resumed and nothing is allocated. A new
// generation drops all sessions of the old one. The error wraps ErrNotReady.
//
// A handshake that fails because of the peer's certificate returns a
// *tls.CertificateVerificationError around a *PeerError. The configured
// certificate is sent whatever CAs the server accepts: the server's refusal says
// more than an empty certificate would.
func (o *Originator) Config(host, address string) (*tls.Config, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	snap, err := o.policy.Source.Current() // under mu: never an older one after a newer
	if err != nil {
		return nil, err
	}
	roots, err := trustedBy(snap, o.policy.Roots, o.policy.SystemRoots)
	if err != nil {
		return nil, err
	}
	if snap.Generation != o.identity || roots.generation != o.roots {
		o.identity, o.roots = snap.Generation, roots.generation
		clear(o.configs)
		o.recent.Init()
	}
	key := configKey{host, address}
	if el := o.configs[key]; el != nil {
		o.recent.MoveToFront(el)
		return el.Value.(*configEntry).config, nil
	}
	config := o.policy.config(host, snap.Certificate, roots)
	o.configs[key] = o.recent.PushFront(&configEntry{key, config})
	if o.recent.Len() > maxConfigs {
		delete(o.configs, o.recent.Remove(o.recent.Back()).(*configEntry).key)
	}
	return config, nil
}

// trust is what a policy verifies peers with.
type trust struct {
	roots      *Roots       // nil: the system's
	whose      string       // describes roots, for messages
	revoked    *Revocations // the identity's, with any roots; may be nil
	listed     bool         // the CAs of leaves must have a list in revoked
	generation uint64       // of the Source of roots; 0 without
}

// trustedBy returns the roots that verify the other side now: the system's if
// system is set, else given's, else the identity's (in snap), else the system's.
//
// An identity's revocation lists are for its own roots: below those, or if it has
// none, below given's, each CA of a leaf must have a list. Below other roots,
// like the system's, a CA without a list is accepted.
func trustedBy(snap *Snapshot, given *Source, system bool) (trust, error) {
	t := trust{whose: "the system's", revoked: snap.Roots.revoked()}
	switch {
	case system:
	case given != nil:
		roots, err := given.Current()
		if err != nil {
			return trust{}, err
		}
		t.roots, t.whose, t.generation, t.listed = roots.Roots, "those of tls.ca"+roots.Roots.limits(), roots.Generation, snap.Roots.pool() == nil
	case snap.Roots.pool() != nil:
		t.roots, t.whose, t.listed = snap.Roots, "the identity's"+snap.Roots.limits(), true
	}
	return t, nil
}

// config makes a configuration for one address and one generation.
//
// InsecureSkipVerify turns off the checks of crypto/tls, which checks a host name
// and knows no principals. VerifyConnection does all checks instead, because it
// is called for every connection; VerifyPeerCertificate is not called when a
// session is resumed.
func (p *ClientPolicy) config(host string, cert *tls.Certificate, roots trust) *tls.Config {
	name := p.ServerName
	if name == "" {
		name = strings.TrimSuffix(host, ".") // the root's dot is for the resolver (RFC 6066, section 3)
	}
	c := &tls.Config{
		ServerName:         name,
		MinVersion:         p.MinVersion,
		MaxVersion:         p.MaxVersion,
		CipherSuites:       p.CipherSuites,
		CurvePreferences:   p.Curves,
		NextProtos:         p.ALPN,
		InsecureSkipVerify: true,
		// Small first records only help a client that renders while it loads.
		DynamicRecordSizingDisabled: true,
	}
	if !p.NoResumption {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(sessionsKept)
	}
	if p.Renegotiate {
		c.Renegotiation = tls.RenegotiateFreelyAsClient
	}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return offer(cert, time.Now()) }
	}
	if !p.SkipVerify {
		j := judge{name: name, principals: p.Principals, roots: roots.roots.pool(), known: roots.roots.known(), whose: roots.whose, domains: roots.roots.domains(), revoked: roots.revoked, listed: roots.listed, verified: &verified{}}
		c.VerifyConnection = func(cs tls.ConnectionState) error { return j.verify(cs.PeerCertificates, time.Now()) }
	}
	return c
}

// offer checks our certificate again before it is sent: it may have expired since
// Config.
func offer(cert *tls.Certificate, now time.Time) (*tls.Certificate, error) {
	if err := Validity(cert.Leaf, now); err != nil {
		return nil, fmt.Errorf("identity %w: %w", ErrNotReady, err)
	}
	return cert, nil
}
