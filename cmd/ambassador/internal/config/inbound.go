package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v4"

	"ambassador/certs"
	"ambassador/l4"
	"ambassador/l4/upstream"
)

// The keys that say what comes before a session at its listener, and what a PROXY
// header says of it upstream.

// ListenerTLSSection is a listener's tls.
type ListenerTLSSection struct {
	Identity, CA, Client, MinVersion string
	Identities, Principals, ALPN     []string
}

// The values of a listener's tls.client.
const (
	clientRequired = "required"
	clientNone     = "none"
)

// tlsField is a listener's tls.
func (l *ListenerSection) tlsField() field {
	t := &ListenerTLSSection{}
	section := sectionField("tls", "Be a TLS server: clients speak TLS to us. Without this key they speak plaintext.", []field{
		textField("identity", "The certificate that we show: one of identities.", &t.Identity, nil),
		listField("identities", "Several, instead of identity: a client gets the one whose certificate is for the name that it asks for (SNI), else the first.", &t.Identities, nil),
		enumField("client", "Whether clients must show a certificate.", &t.Client, clientRequired, clientNone).or(clientRequired),
		listField("principals", "One of these a client must prove: spiffe://domain/path, dns:NAME, ip:ADDRESS, spki:sha256/BASE64 (instead of a chain), any (chain only).", &t.Principals, checkPrincipal),
		textField("ca", "File of the roots that verify clients, which is watched, or system. Default: the identity's ca.", &t.CA, nil),
		listField("alpn", "Protocols that we speak by ALPN. A client that offers only others is refused; one that offers none is accepted. Default: none.", &t.ALPN, nil),
		enumField("min_version", ``, &t.MinVersion, "1.2", "1.3").or("1.2")})
	decode := section.decode
	section.decode = func(d *decoder, n *yaml.Node, path string) {
		l.TLS = t
		decode(d, n, path)
	}
	return section
}

// validate finds what no key by itself shows.
func (t *ListenerTLSSection) validate(d *decoder, path string, f *File) {
	has := func(key string) bool { return d.at[path+"."+key] != nil }
	switch {
	case has("identity") && has("identities"):
		d.failAt(path+".identities", "identity names the certificate that we show already; remove one of them")
	case t.Identity == "" && len(t.Identities) == 0:
		d.failAt(path, "no certificate to show; give identity: NAME, one of identities")
	}
	for _, name := range t.names() {
		switch id := f.identity(name); {
		case id == nil:
			d.failAt(path+"."+t.namesKey(), "%s", unknownName(name, "identities", namesOf(f.Identities, func(id *IdentitySection) string { return id.Name })))
		case id.Files.OnlyRoots():
			d.failAt(path+"."+t.namesKey(), "identity %s has only roots, and a TLS server must show a certificate; give files.cert and files.key of it", name)
		}
	}
	switch {
	case t.Client == clientNone && has("principals"):
		d.failAt(path+".principals", "clients show no certificate with client: none, so principals have no meaning; remove one of them")
	case t.Client == clientNone && has("ca"):
		d.failAt(path+".ca", "clients show no certificate with client: none, so ca has no meaning; remove one of them")
	case t.Client == clientNone:
	case len(t.Principals) == 0:
		d.failAt(path, "clients must show a certificate, and nothing says whose; give principals ([any] allows every certificate of the CA), or client: none")
	case t.CA == "":
		t.validateRoots(d, path, f)
	}
}

// validateRoots wants roots for clients where the identity cannot bring them.
func (t *ListenerTLSSection) validateRoots(d *decoder, path string, f *File) {
	for _, name := range t.names() {
		if id := f.identity(name); id != nil && id.Files.Cert != "" && id.Files.CA == "" {
			d.failAt(path, "nothing verifies clients: give ca: FILE here, or files.ca of identity %s; system is every public CA, and has to be asked for", name)
		}
	}
}

// names are the identities.
func (t *ListenerTLSSection) names() []string {
	if t.Identity != "" {
		return []string{t.Identity}
	}
	return t.Identities
}

func (t *ListenerTLSSection) namesKey() string {
	if t.Identity != "" {
		return "identity"
	}
	return "identities"
}

// CAFile is the file of the roots that verify clients; empty if there is none.
func (l *ListenerSection) CAFile() string {
	if l.TLS == nil || l.TLS.CA == "system" {
		return ""
	}
	return l.TLS.CA
}

// asked is the protocol in which clients ask for TLS; empty if there is none.
func (l *ListenerSection) asked() string {
	if l.StartTLS == "none" {
		return ""
	}
	return l.StartTLS
}

// alpn is what we speak: PostgreSQL's clients want its name where they begin with
// TLS at once (sslnegotiation=direct).
func (l *ListenerSection) alpn() []string {
	if len(l.TLS.ALPN) == 0 && l.asked() == "postgres" {
		return []string{"postgresql"}
	}
	return l.TLS.ALPN
}

// validateStartTLS finds what no key by itself shows.
func (l *ListenerSection) validateStartTLS(d *decoder, path string, f *File) {
	if l.asked() == "" {
		return
	}
	if l.TLS == nil {
		d.failAt(path, "there is no tls to start for clients; add tls, or remove starttls")
	}
	if l.Request() != nil {
		d.failAt(path, "clients begin with their %s request, not with %s; remove one of them", l.RequestKey(), l.StartTLS)
	}
	for _, u := range l.upstreams(f) {
		if u.StartTLS != "" && u.StartTLS != "none" && u.StartTLS != l.StartTLS {
			d.failAt(path, "clients ask for TLS as %s does, and upstream %s speaks %s; correct one of them", l.StartTLS, u.Name, u.StartTLS)
		}
	}
}

// Notes are what works otherwise than one might expect, one line each.
func (f *File) Notes() (out []string) {
	for _, u := range f.Upstreams {
		out = append(out, u.Health.notes(u)...)
	}
	for _, l := range f.Listeners {
		if l.asked() == "postgres" && slices.ContainsFunc(l.upstreams(f), func(u *UpstreamSection) bool { return u.StartTLS == "postgres" }) {
			out = append(out, "listeners."+l.Name+".starttls: TLS to us and TLS of ours to the upstream are two, and SCRAM binds a login to one: clients need channel_binding=disable")
		}
		out = append(out, l.egressNotes(f)...)
	}
	return out
}

// server translates the section for l4. Identity gives the source of an identity,
// roots is that of the file of ca.
func (t *ListenerTLSSection) server(alpn []string, identity func(name string) *certs.Source, roots *certs.Source) (*l4.ServerTLS, error) {
	p := certs.ServerPolicy{Clients: t.Client == clientRequired, Roots: roots, SystemRoots: t.CA == "system", ALPN: alpn, MinVersion: tlsVersions()[t.MinVersion]}
	for _, name := range t.names() {
		p.Sources = append(p.Sources, identity(name))
	}
	var err error
	if p.Principals, err = parsePrincipals(t.Principals); err != nil {
		return nil, err
	}
	terminator := certs.NewTerminator(p)
	return &l4.ServerTLS{
		Terminate: func(hello *tls.ClientHelloInfo) (l4.Termination, error) {
			how, err := terminator.Terminate(hello)
			return l4.Termination(how), err
		},
		Denied:        func(err error) bool { return errors.Is(err, certs.ErrPrincipal) },
		Fault:         faultOf(certs.ForClients),
		Anonymous:     !p.Clients,
		IdentityReady: terminator.Ready,
		Identities:    t.names(),
		Principals:    t.Principals,
	}, nil
}

func parsePrincipals(all []string) (out certs.Principals, err error) {
	for _, s := range all {
		p, err := parsePrincipal(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// proxyField is a listener's proxy_protocol.
func (l *ListenerSection) proxyField() field {
	return sectionField("proxy_protocol", "Clients come by proxies, which say in a PROXY header (version 1 or 2) who each is.", []field{
		listField("from", "The proxies: IP addresses or CIDR ranges. All others are refused.", &l.ProxyFrom, func(s string) error {
			_, err := ParsePrefix(s)
			return err
		}),
		boolField("optional", "The proxies may leave the header out, and are then clients themselves. A client that sends nothing is served after timeouts.handshake.", &l.ProxyOptional).or(false)})
}

func (l *ListenerSection) validateProxy(d *decoder, path string) {
	switch {
	case d.at[path] == nil:
	case len(l.ProxyFrom) == 0:
		d.failAt(path, "nobody may send headers; give from, the addresses of the proxies before us: [10.0.0.0/8]")
	case l.onUnix():
		d.failAt(path, "the clients of a unix socket have no addresses that could be in from; listen on HOST:PORT, or remove proxy_protocol")
	}
}

// ParsePrefix reads a CIDR range, or an address, which is a range of one.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is no range of IP addresses; write one like 10.0.0.0/8, or an address", s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s has bits behind its mask; did you mean %s, or the address %s?", s, p.Masked(), p.Addr())
	}
	return p, nil
}

// proxyVersion is an upstream's proxy_protocol.
func (u *UpstreamSection) proxyVersion() upstream.ProxyVersion {
	return map[string]upstream.ProxyVersion{"v1": upstream.ProxyV1, "v2": upstream.ProxyV2}[u.ProxyProtocol]
}
