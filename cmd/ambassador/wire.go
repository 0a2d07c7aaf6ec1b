package main

import (
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/step"
	"ambassador/l4"
)

// rootFiles are the files of tls.ca, each once: identities with only roots, their
// paths being their names.
func (f *File) rootFiles() (out []*IdentitySection) {
	seen := map[string]bool{"": true}
	add := func(ca string) {
		if !seen[ca] {
			seen[ca] = true
			out = append(out, &IdentitySection{Name: ca, Files: files.Files{CA: ca}})
		}
	}
	for _, u := range f.Upstreams {
		add(u.caFile())
	}
	for _, l := range f.Listeners {
		add(l.caFile())
	}
	return out
}

// serverConfig translates the configuration for l4. ids gives the source of an
// identity, roots that of a file of tls.ca, users those of a users_file.
func (f *File) serverConfig(ids, roots identitySet, users usersSet) (cfg l4.Config, err error) {
	cfg.MaxSessions, cfg.MaxMemory = f.Limits.Connections, f.Limits.Memory
	for _, u := range f.Upstreams {
		up, err := f.upstreamConfig(u, ids, roots)
		if err != nil {
			return cfg, err
		}
		cfg.Upstreams = append(cfg.Upstreams, up)
	}
	for _, l := range f.Listeners {
		listener, err := l.config(ids, roots)
		if err != nil {
			return cfg, err
		}
		listener.Users, listener.DNSServers, listener.Greeting = users.users(l.usersFile()), f.dnsServers(), f.greeting(l)
		cfg.Listeners = append(cfg.Listeners, listener)
	}
	return cfg, nil
}

// greeting is the text of all that decides how clients of a listener are greeted, but
// for who may log in.
func (f *File) greeting(l *ListenerSection) string {
	text := fmt.Sprintf("%#v", []any{l.ProxyFrom, l.asked(), l.requestProtocol(), l.SNI, l.Context})
	if l.TLS == nil {
		return text
	}
	text += fmt.Sprintf("%#v", *l.TLS)
	for _, name := range l.TLS.names() {
		text += f.identity(name).key()
	}
	return text
}

// problem is a mistake found after the file was read, at the place of its key.
func (f *File) problem(path string, err error) Problem {
	if f.places.flagOf != nil {
		return Problem{File: f.places.flagOf(path), Text: err.Error()}
	}
	d := &decoder{file: f.places.file, at: f.places.at}
	d.failAt(path, "%v", err)
	return d.problems[0]
}

func (f *File) upstreamConfig(u *UpstreamSection, ids, roots identitySet) (l4.UpstreamConfig, error) {
	cfg := l4.UpstreamConfig{Name: u.Name, Required: u.Required,
		Connect: l4.ConnectConfig{Timeout: u.Connect.Timeout, AttemptTimeout: u.Connect.AttemptTimeout, Attempts: u.Connect.Attempts, Backoff: u.Connect.Backoff}}
	key := u.resilience(&cfg)
	if u.StartTLS != "none" {
		cfg.StartTLS = u.StartTLS
	}
	cfg.DNSServers, cfg.ProxyProtocol, cfg.Dynamic, cfg.Mark = f.dnsServers(), u.proxyVersion(), u.Dynamic, u.Mark
	cfg.Key = fmt.Sprintf("%#v", []any{key, cfg.StartTLS, cfg.ProxyProtocol, cfg.Connect, cfg.DNSServers, cfg.Required, cfg.Dynamic, cfg.Mark})
	if u.TLS == nil {
		return cfg, nil
	}
	policy, err := u.TLS.policy(ids)
	if err != nil {
		return cfg, err
	}
	policy.Roots = roots.source(u.caFile())
	cfg.Key += fmt.Sprintf("%#v", *u.TLS)
	if id := f.identity(u.TLS.Identity); id != nil {
		cfg.Key += id.key()
	}
	cfg.TLS = certs.NewOriginator(policy).Config
	if policy.Source != nil {
		cfg.IdentityReady, cfg.AwaitIdentity = policy.Source.Ready, policy.Source.Await
	}
	return cfg, nil
}

// dnsServers are the addresses of dns.servers with their ports; none: the system's.
func (f *File) dnsServers() (out []string) {
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
func (t *TLSSection) policy(ids identitySet) (p certs.ClientPolicy, err error) {
	p = certs.ClientPolicy{ServerName: t.ServerName, ALPN: t.ALPN, SkipVerify: t.UnsafeSkipVerify, SystemRoots: t.CA == "system", MinVersion: tlsVersions()[t.MinVersion]}
	if t.Identity != "" {
		p.Source = ids.source(t.Identity)
	}
	p.Principals, err = parsePrincipals(t.Principals)
	return p, err
}

func tlsVersions() map[string]uint16 {
	return map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
}

func (l *ListenerSection) config(ids, roots identitySet) (cfg l4.ListenerConfig, err error) {
	cfg = l4.ListenerConfig{Name: l.Name, Address: l.Listen, UnsafePlaintextListen: l.UnsafePlaintextListen, Upstream: l.Upstream, Limits: l.Limits,
		Request: l.requestProtocol(), SNI: l.SNI, Context: l.Context,
		Timeouts: l4.Timeouts{Handshake: l.Timeouts.Handshake, Idle: l.Timeouts.Idle, HalfCloseIdle: l.Timeouts.HalfCloseIdle, Lifetime: l.Timeouts.Lifetime}}
	if mode, err := strconv.ParseUint(l.Socket.Mode, 8, 32); err == nil {
		cfg.Socket.Mode = fs.FileMode(mode)
	}
	if l.Socket.Owner != "" {
		cfg.Socket.UID, cfg.Socket.GID, _ = lookupOwner(l.Socket.Owner) // checked when the file was read
	}
	for _, s := range l.ProxyFrom {
		prefix, err := parsePrefix(s)
		if err != nil {
			return cfg, err
		}
		cfg.ProxyFrom = append(cfg.ProxyFrom, prefix)
	}
	if cfg.Rules, err = l.rules(); err != nil {
		return cfg, err
	}
	if l.TLS != nil {
		cfg.StartTLS = l.asked()
		cfg.TLS, err = l.TLS.server(l.alpn(), ids, roots.source(l.caFile()))
	}
	return cfg, err
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

// checkFiles reads every file that the configuration names, and says what is
// wrong with each, at the place of its key. It also finds certificates and
// revocation lists that cannot be used now, with which a process starts nevertheless.
func (f *File) checkFiles() []Problem {
	problems := f.fileProblems()
	for _, id := range f.Identities {
		if id.Files.Certificate() == "" {
			continue
		}
		cert, roots, err := files.Load(id.Files)
		if err != nil {
			continue // it is among the problems
		}
		if roots != nil {
			unusable, _ := roots.Revoked.Faults(time.Now())
			for _, text := range unusable {
				problems = append(problems, f.problem("identities."+id.Name+".files.crl", fmt.Errorf("%s: %s", id.Files.CRL, text)))
			}
		}
		if err := certs.Validity(cert.Leaf, time.Now()); err != nil {
			problems = append(problems, f.problem("identities."+id.Name+"."+id.keyOf(nil), fmt.Errorf("%s: %w; get a new one", id.Files.Certificate(), err)))
		}
	}
	return problems
}

// fileProblems reads every file that the configuration names, and says why it
// cannot be used. Keys that are not there are mistakes of the text.
func (f *File) fileProblems() []Problem {
	failed := map[string]error{}
	for _, id := range f.Identities {
		if err := id.check(); err != nil {
			failed[id.Name] = err
		}
	}
	return f.problemsOf(failed, failedRoots(f.rootFiles()), failedUsers(f.usersPaths()))
}

// check reads the identity's files. Nobody is contacted, and no token is spent.
func (id *IdentitySection) check() error {
	switch {
	case id.Step != nil:
		return id.checkStep()
	case id.Files.PKCS12 != "" || id.Files.Cert != "" && id.Files.Key != "":
		_, _, err := files.Load(id.Files)
		return err
	}
	return nil
}

// checkStep wants the token file where a token will be needed.
func (id *IdentitySection) checkStep() error {
	if err := id.checkPassword(); err != nil {
		return err
	}
	if _, err := step.CheckStorage(*id.Step); err != nil {
		return &keyError{"step.storage", err}
	}
	if id.Step.TokenFile == "" || step.Stored(*id.Step) {
		return nil
	}
	if _, err := certs.ReadSecret(id.Step.TokenFile); err != nil {
		return &keyError{"step.token_file", fmt.Errorf("%w; storage has no certificate yet, so that a one-time token is needed", err)}
	}
	return nil
}

// failedRoots reads the files of tls.ca.
func failedRoots(want []*IdentitySection) map[string]error {
	failed := map[string]error{}
	for _, ca := range want {
		if _, _, err := files.Load(ca.Files); err != nil {
			failed[ca.Name] = err
		}
	}
	return failed
}

// problemsOf are mistakes in files at the places of their keys: those of
// identities by name, those of roots and users by path, and admin.token_file.
func (f *File) problemsOf(ids, roots, users map[string]error) []Problem {
	problems := f.identityProblems(ids)
	for _, u := range f.Upstreams {
		if err := roots[u.caFile()]; err != nil {
			problems = append(problems, f.problem("upstreams."+u.Name+".tls.ca", err))
		}
		if _, _, err := u.Health.login(); err != nil {
			problems = append(problems, f.problem("upstreams."+u.Name+".health.password_file", err))
		}
	}
	for _, l := range f.Listeners {
		if err := roots[l.caFile()]; err != nil {
			problems = append(problems, f.problem("listeners."+l.Name+".tls.ca", err))
		}
	}
	problems = append(problems, f.usersProblems(users)...)
	return append(problems, f.tokenProblems()...)
}

// caFile is the file of the roots that verify the upstream; empty if there is none.
func (u *UpstreamSection) caFile() string {
	if u.TLS == nil || u.TLS.CA == "system" {
		return ""
	}
	return u.TLS.CA
}

// tokenProblems is what is wrong with admin.token_file.
func (f *File) tokenProblems() []Problem {
	if _, err := f.adminToken(); err != nil {
		return []Problem{f.problem("admin.token_file", err)}
	}
	return nil
}

// flatten lists the errors that were joined.
func flatten(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// adminToken is the content of admin.token_file; empty if there is none.
func (f *File) adminToken() (string, error) {
	if f.Admin.TokenFile == "" {
		return "", nil
	}
	b, err := certs.ReadSecret(f.Admin.TokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return "", fmt.Errorf("%s: %d characters are no token; put at least 16 random ones there: openssl rand -hex 16", f.Admin.TokenFile, len(token))
	}
	return token, nil
}
