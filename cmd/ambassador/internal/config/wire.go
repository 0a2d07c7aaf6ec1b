package config

import (
	"context"
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/l4"
	"ambassador/l4/htpasswd"
	"ambassador/l4/lookup"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
)

// RootFiles are the files of tls.ca, each once: identities with only roots, their
// paths being their names.
func (f *File) RootFiles() (out []*IdentitySection) {
	seen := map[string]bool{"": true}
	add := func(ca string) {
		if !seen[ca] {
			seen[ca] = true
			out = append(out, &IdentitySection{Name: ca, Files: files.Files{CA: ca}})
		}
	}
	for _, u := range f.Upstreams {
		add(u.CAFile())
	}
	for _, l := range f.Listeners {
		add(l.CAFile())
	}
	return out
}

// Parts is what a configuration names and does not hold.
type Parts struct {
	// Identity is the source of one of identities; nil if there is none of that name.
	Identity func(name string) *certs.Source
	// Roots is the source of a file of tls.ca; nil for an empty path.
	Roots func(path string) *certs.Source
	// Users are those of a users_file; nil for an empty path.
	Users func(path string) *htpasswd.Users
	// Login says what a probe logs in with, each time it is called.
	Login func(HealthSection) (user, password string, err error)
	// Discover is the source of the addresses of a Service. Nil: there is none, and such
	// an endpoint is looked up in vain.
	Discover func(kubernetes.Service) *lookup.Discovery
	// Ask asks the question of health.http, of a host.
	Ask func(ctx context.Context, h HTTPSection, host netip.Addr) error
}

// ServerConfig translates the configuration for l4.
func (f *File) ServerConfig(p Parts) (cfg l4.Config, err error) {
	cfg.MaxSessions, cfg.MaxMemory = f.Limits.Connections, f.Limits.Memory
	cfg.Tracing = l4.Tracing{On: f.Tracing.OTLP != "", Sample: f.Tracing.Sample}
	for _, u := range f.Upstreams {
		up, err := f.upstreamConfig(u, p)
		if err != nil {
			return cfg, err
		}
		cfg.Upstreams = append(cfg.Upstreams, up)
	}
	for _, l := range f.Listeners {
		listener, err := l.config(p)
		if err != nil {
			return cfg, err
		}
		listener.Users, listener.DNSServers, listener.Greeting = p.Users(l.UsersFile()), f.DNSServers(), f.greeting(l)
		cfg.Listeners = append(cfg.Listeners, listener)
	}
	return cfg, nil
}

// greeting is the text of all that decides how clients of a listener are greeted, but
// for the users who may log in.
func (f *File) greeting(l *ListenerSection) string {
	text := fmt.Sprintf("%#v", []any{l.ProxyFrom, l.ProxyOptional, l.asked(), l.requestProtocol(), l.SNI, l.Context})
	if l.TLS == nil {
		return text
	}
	text += fmt.Sprintf("%#v", *l.TLS)
	for _, name := range l.TLS.names() {
		text += f.identity(name).Key()
	}
	return text
}

// Problem is a mistake found after the file was read, at the place of its key.
func (f *File) Problem(path string, err error) Problem {
	if f.places.flagOf != nil {
		return Problem{File: f.places.flagOf(path), Text: fileErrorWithFlags(err.Error())}
	}
	d := &decoder{file: f.places.file, at: f.places.at}
	d.failAt(path, "%v", err)
	return d.problems[0]
}

func (f *File) upstreamConfig(u *UpstreamSection, p Parts) (upstream.Config, error) {
	cfg := upstream.Config{Name: u.Name, Required: u.Required,
		Connect: upstream.ConnectConfig{Timeout: u.Connect.Timeout, AttemptTimeout: u.Connect.AttemptTimeout, Attempts: u.Connect.Attempts, Backoff: u.Connect.Backoff}}
	u.resilience(&cfg, p)
	if u.StartTLS != "none" {
		cfg.StartTLS, cfg.StartTLSOptions, cfg.StartTLSTimeout = u.StartTLS, u.StartTLSOptions.options(), u.StartTLSOptions.Timeout
	}
	cfg.DNSServers, cfg.ProxyProtocol, cfg.Dynamic, cfg.Mark = f.DNSServers(), u.proxyVersion(), u.Dynamic, u.Mark
	cfg.Key, cfg.StateKey = f.upstreamKey(u), f.stateKey(u)
	if u.TLS == nil {
		return cfg, nil
	}
	policy, err := u.TLS.policy(p)
	if err != nil {
		return cfg, err
	}
	policy.Roots = p.Roots(u.CAFile())
	policy.ALPN = u.alpn()
	cfg.TLS, cfg.Fault = certs.NewOriginator(policy).Config, faultOf(certs.ForServers)
	cfg.HoldHalfClose = u.TLS.HoldHalfClose
	if policy.Source != nil {
		cfg.IdentityReady, cfg.AwaitIdentity = policy.Source.Ready, policy.Source.Await
	}
	return cfg, nil
}

// Uses are what the certificate of an identity is for: upstreams send it to servers,
// listeners to clients.
func (f *File) Uses(identity string) (out []certs.Use) {
	if slices.ContainsFunc(f.Upstreams, func(u *UpstreamSection) bool { return u.TLS != nil && u.TLS.Identity == identity }) {
		out = append(out, certs.ForServers)
	}
	if slices.ContainsFunc(f.Listeners, func(l *ListenerSection) bool {
		return l.TLS != nil && slices.Contains(l.TLS.names(), identity)
	}) {
		out = append(out, certs.ForClients)
	}
	return out
}

// faultOf judges a certificate of ours for one use: it returns the gravest fault.
func faultOf(use certs.Use) func(*tls.Certificate) (what, fix string) {
	return func(cert *tls.Certificate) (what, fix string) {
		all := certs.Faults(cert, use, time.Now())
		if len(all) == 0 {
			return "", ""
		}
		return all[0].What, all[0].Fix
	}
}

// upstreamKey is the text of all that makes an upstream another one for a reload: its
// whole section, so that no key of it can be forgotten, and what that refers to.
func (f *File) upstreamKey(u *UpstreamSection) string {
	section := *u
	section.TLS = nil // a pointer is another one after each reload
	text := fmt.Sprintf("%#v%#v", section, f.DNS)
	if u.TLS == nil {
		return text
	}
	text += fmt.Sprintf("%#v", *u.TLS)
	if id := f.identity(u.TLS.Identity); id != nil {
		text += id.Key()
	}
	return text
}

// stateKey is upstreamKey without what says nothing about the state of an address.
func (f *File) stateKey(u *UpstreamSection) string {
	section := *u
	section.Endpoints, section.Balance, section.Required, section.Preconnect = nil, "", false, PreconnectSection{}
	return f.upstreamKey(&section)
}

// DNSServers are the addresses of dns.servers with their ports; none: the system's.
func (f *File) DNSServers() (out []string) {
	for _, s := range f.DNS.Servers {
		if _, err := netip.ParseAddr(s); err == nil {
			s = net.JoinHostPort(s, "53")
		}
		out = append(out, s)
	}
	return out
}

func (f *File) identity(name string) *IdentitySection { return f.identityOf[name] }

// policy translates an upstream's tls, but for the file of its roots.
func (t *TLSSection) policy(parts Parts) (p certs.ClientPolicy, err error) {
	p = certs.ClientPolicy{ALPN: t.ALPN, SkipVerify: t.UnsafeSkipVerify, SystemRoots: t.CA == "system"}
	if t.ServerName != "" {
		p.ServerName, _ = parseServerName(t.ServerName) // checked
	}
	t.translate(&p)
	if t.Identity != "" {
		p.Source = parts.Identity(t.Identity)
	}
	p.Principals, err = parsePrincipals(t.Principals)
	return p, err
}

func tlsVersions() map[string]uint16 {
	return map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
}

func (l *ListenerSection) config(p Parts) (cfg l4.ListenerConfig, err error) {
	cfg = l4.ListenerConfig{Name: l.Name, Addresses: l.Listen, UnsafePlaintextListen: l.UnsafePlaintextListen, Upstream: l.Upstream, Limits: l.Limits,
		LogProcess: l.LogProcess, Request: l.requestProtocol(), SNI: l.SNI, Context: l.Context, ProxyOptional: l.ProxyOptional,
		Timeouts: l4.Timeouts{Handshake: l.Timeouts.Handshake, Idle: l.Timeouts.Idle, HalfCloseIdle: l.Timeouts.HalfCloseIdle, Lifetime: l.Timeouts.Lifetime}}
	cfg.Socket = l.Socket.Config()
	for _, s := range l.ProxyFrom {
		prefix, err := ParsePrefix(s)
		if err != nil {
			return cfg, err
		}
		cfg.ProxyFrom = append(cfg.ProxyFrom, prefix)
	}
	if cfg.Rules, err = l.PolicyRules(); err != nil {
		return cfg, err
	}
	if l.TLS != nil {
		cfg.StartTLS = l.asked()
		cfg.TLS, err = l.TLS.server(l.alpn(), p.Identity, p.Roots(l.CAFile()))
	}
	return cfg, err
}

// Config translates the section for l4.
func (s SocketSection) Config() (cfg unixsocket.Config) {
	if mode, err := strconv.ParseUint(s.Mode, 8, 32); err == nil {
		cfg.Mode = fs.FileMode(mode)
	}
	if s.Owner != "" {
		cfg.UID, cfg.GID, _ = lookupOwner(s.Owner) // checked when the file was read
	}
	return cfg
}

// lookupOwner reads USER or USER:GROUP, names or numbers.
func lookupOwner(s string) (uid, gid *int, err error) {
	userName, groupName, hasGroup := strings.Cut(s, ":")
	if uid, err = lookupID(userName, "user", func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}); err != nil || !hasGroup {
		return uid, nil, err
	}
	gid, err = lookupID(groupName, "group", func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	return uid, gid, err
}

func lookupID(name, kind string, lookup func(string) (string, error)) (*int, error) {
	id := name
	if _, err := strconv.Atoi(name); err != nil {
		if id, err = lookup(name); err != nil {
			return nil, fmt.Errorf("there is no %s %q on this host; write USER or USER:GROUP, names or numbers", kind, name)
		}
	}
	n, err := strconv.Atoi(id)
	return &n, err
}

// CAFile is the file of the roots that verify the upstream; empty if there is none.
func (u *UpstreamSection) CAFile() string {
	if u.TLS == nil || u.TLS.CA == "system" {
		return ""
	}
	return u.TLS.CA
}

// KubernetesKeys are the keys that name objects of a Kubernetes API server.
func (f *File) KubernetesKeys() (out []string) {
	for _, id := range f.Identities {
		if id.Kubernetes != "" {
			out = append(out, "identities."+id.Name+".kubernetes")
		}
	}
	for _, u := range f.Upstreams {
		for i, e := range u.Endpoints {
			if e.Kubernetes != "" {
				out = append(out, fmt.Sprintf("upstreams.%s.endpoints[%d].kubernetes", u.Name, i))
			}
		}
	}
	return out
}

// Key is the text of all that makes an identity another one.
func (id *IdentitySection) Key() string {
	switch {
	case id.Step != nil:
		return id.Step.Key()
	case id.SPIFFE != "":
		return "spiffe " + id.SPIFFE
	case id.Kubernetes != "":
		return "kubernetes " + id.Kubernetes
	}
	return fmt.Sprintf("%#v", id.Files)
}
