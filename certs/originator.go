package certs

import (
	"container/list"
	"crypto/tls"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ClientPolicy is how we begin TLS with one upstream, and whom we accept there.
// The zero value has no certificate of ours, and verifies the endpoint's host up
// to the system's roots.
type ClientPolicy struct {
	// Source is our identity. If nil, we have no certificate.
	Source *Source
	// Roots has the roots that verify the peer, and its generations are followed
	// as those of Source are. If nil, the identity's roots do it, and if it brings
	// none, the system's.
	Roots *Source
	// SystemRoots asks for the system's roots, whatever Roots and the identity
	// have.
	SystemRoots bool
	// ServerName is sent as SNI, unless it is an IP address, and without
	// Principals it is what the peer's certificate must be for. If empty, it is
	// the endpoint's host.
	ServerName string
	// Principals, if any, are what the peer must prove instead of ServerName.
	Principals Principals
	// MinVersion is one of crypto/tls. If zero, it is TLS 1.2. The highest is
	// always TLS 1.3.
	MinVersion uint16
	// ALPN are the protocols offered, the preferred one first (RFC 7301). A server
	// that selects another is refused. One that selects none is accepted: it may know
	// no ALPN, and speak the protocol nevertheless.
	ALPN []string
	// SkipVerify accepts any peer, whatever Principals says.
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
// than the addresses of most upstreams, at about 5 KiB each.
const maxConfigs = 256

// sessionsKept is how many sessions a cache holds. crypto/tls keeps the newest of
// each server name, and there is one name to an address.
const sessionsKept = 1

// NewOriginator makes an originator. What the policy points to must not be
// modified afterwards.
func NewOriginator(p ClientPolicy) *Originator {
	if p.MinVersion == 0 {
		p.MinVersion = tls.VersionTLS12
	}
	if p.Source == nil {
		p.Source = NewSource("none")
		p.Source.Publish(nil, nil)
	}
	p.Principals, p.ALPN = slices.Clone(p.Principals), slices.Clone(p.ALPN)
	return &Originator{policy: p, configs: map[configKey]*list.Element{}, recent: list.New()}
}

// Config is the configuration for one connection to address ("10.0.0.7:5432"),
// which an endpoint configured as host resolved to. It must not be modified. It
// is the same as long as the generation of the identity and of the roots is, so
// that sessions are resumed and nothing is allocated; with a new generation, all
// sessions of the old one are dropped. The error wraps ErrNotReady.
//
// A handshake that fails because of the peer's certificate returns a
// *tls.CertificateVerificationError around a *PeerError. The certificate
// configured is sent whatever CAs the server says it knows: its refusal tells
// more than our silence would.
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

// trust is what a policy verifies by.
type trust struct {
	roots      *Roots       // nil: the system's
	whose      string       // in words
	revoked    *Revocations // the identity's, whosever the roots are; may be nil
	listed     bool         // the CAs of leaves must have a list in revoked
	generation uint64       // of the Source of roots; 0 without
}

// trustedBy are the roots that verify the other side now: the system's if they are
// asked for, else those of given, else those of the identity, which are in snap,
// else none, which is the system's.
//
// An identity's lists are for its own roots: of those, and where it has none of those
// given, each CA of a leaf must have one. Of others, the system's say, a CA without a
// list is accepted.
func trustedBy(snap *Snapshot, given *Source, system bool) (trust, error) {
	t := trust{whose: "the system's", revoked: snap.Roots.revoked()}
	switch {
	case system:
	case given != nil:
		roots, err := given.Current()
		if err != nil {
			return trust{}, err
		}
		t.roots, t.whose, t.generation, t.listed = roots.Roots, "those of tls.ca", roots.Generation, snap.Roots.pool() == nil
	case snap.Roots.pool() != nil:
		t.roots, t.whose, t.listed = snap.Roots, "the identity's", true
	}
	return t, nil
}

// config makes a configuration for one address and one generation.
//
// InsecureSkipVerify turns off only what crypto/tls would do by itself, which
// checks a host name and knows no principals. VerifyConnection does all of it
// instead, because it is called for every connection; VerifyPeerCertificate is
// not called when a session is resumed.
func (p *ClientPolicy) config(host string, cert *tls.Certificate, roots trust) *tls.Config {
	name := p.ServerName
	if name == "" {
		name = host
	}
	c := &tls.Config{
		ServerName:         name,
		MinVersion:         p.MinVersion,
		MaxVersion:         tls.VersionTLS13,
		NextProtos:         p.ALPN,
		InsecureSkipVerify: true,
		// Small first records are for readers that show a page while it loads.
		DynamicRecordSizingDisabled: true,
		ClientSessionCache:          tls.NewLRUClientSessionCache(sessionsKept),
	}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return offer(cert, time.Now()) }
	}
	if !p.SkipVerify {
		j := judge{name: name, principals: p.Principals, roots: roots.roots.pool(), whose: roots.whose, domains: roots.roots.domains(), revoked: roots.revoked, listed: roots.listed, verified: &verified{}}
		c.VerifyConnection = func(cs tls.ConnectionState) error { return j.verify(cs.PeerCertificates, time.Now()) }
	}
	return c
}

// offer is the last look at our certificate before it is sent: it may have
// expired since Config.
func offer(cert *tls.Certificate, now time.Time) (*tls.Certificate, error) {
	if err := Validity(cert.Leaf, now); err != nil {
		return nil, fmt.Errorf("identity %w: %w", ErrNotReady, err)
	}
	return cert, nil
}
