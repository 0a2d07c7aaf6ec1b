package config

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"ambassador/l4"
)

// The keys by which clients say where they want to go, and those of the upstreams
// that take them there. The rules say what they may do.

// RequestSection is a listener's socks5 or http_connect.
type RequestSection struct {
	UsersFile string // empty: no login is required
}

// requestField is socks5 or http_connect.
func requestField(key, doc string, to **RequestSection) field {
	r := &RequestSection{}
	section := sectionField(key, doc, []field{
		textField("users_file", "Clients log in with a user and password of this file, which is watched: lines of `htpasswd -nbB USER PASSWORD` (bcrypt). Default: nobody is asked.", &r.UsersFile, nil)})
	decode := section.decode
	section.decode = func(d *decoder, n *yaml.Node, path string) {
		*to = r
		decode(d, n, path)
	}
	return section
}

// markField is an upstream's mark, in decimal or, as nft and ip write it, in
// hexadecimal.
func markField(to *int) field {
	schema := schemaWith("type", []string{"integer", "string"}, "minimum", 0, "maximum", uint32(1<<32-1))
	return field{key: "mark", doc: "SO_MARK of the connections to it, for routing and firewalls (Linux; needs CAP_NET_ADMIN).", to: to, schema: schema, decode: func(d *decoder, n *yaml.Node, path string) {
		s, ok := d.scalar(n, path, "a number")
		if !ok {
			return
		}
		v, err := strconv.ParseUint(s, 0, 32)
		if err != nil {
			d.fail(n, path, "%q is no mark; write a number from 0 to 4294967295, or 0x…", s)
			return
		}
		*to = int(v)
	}}.or(0, ": none")
}

// Request is the section of the protocol in which clients ask; nil if there is none.
func (l *ListenerSection) Request() *RequestSection {
	if l.SOCKS5 != nil {
		return l.SOCKS5
	}
	return l.HTTPConnect
}

// RequestKey is the key of request.
func (l *ListenerSection) RequestKey() string {
	if l.SOCKS5 != nil {
		return "socks5"
	}
	return "http_connect"
}

// requestProtocol is how clients of the listener say where they want to go.
func (l *ListenerSection) requestProtocol() l4.RequestProtocol {
	switch {
	case l.SOCKS5 != nil:
		return l4.RequestSOCKS5
	case l.HTTPConnect != nil:
		return l4.RequestConnect
	case l.OriginalDestination:
		return l4.RequestOriginal
	}
	return l4.RequestNone
}

// HasDestination says whether clients of the listener say where they want to go.
func (l *ListenerSection) HasDestination() bool { return l.requestProtocol() != l4.RequestNone }

// UsersFile is the file of the users who may ask; empty if no login is required.
func (l *ListenerSection) UsersFile() string {
	if r := l.Request(); r != nil {
		return r.UsersFile
	}
	return ""
}

// completeDynamic takes away the defaults that a dynamic upstream has no use for.
// What is given nevertheless is a mistake that validateDynamic finds.
func (f *File) completeDynamic() {
	for _, u := range f.Upstreams {
		if u.Dynamic {
			u.Required, u.Health = false, HealthSection{}
		}
	}
}

// validateDynamic finds what has no meaning for an upstream that has no address of
// its own.
func (u *UpstreamSection) validateDynamic(d *decoder, path string) {
	for _, key := range []string{"endpoints", "srv", "balance", "resolve", "health", "preconnect", "limits"} {
		if d.at[path+"."+key] != nil {
			d.failAt(path+"."+key, "a dynamic upstream dials what the client asked for, so %s has no meaning; remove it, or dynamic", key)
		}
	}
	if n := d.at[path+".required"]; n != nil && n.Value == "true" {
		d.failAt(path+".required", "nobody knows before a client asks where a dynamic upstream goes, so that it cannot be tried; remove required")
	}
}

// validateMark finds marks that nothing sets.
func (u *UpstreamSection) validateMark(d *decoder, path string) {
	switch {
	case u.Mark == 0:
	case runtime.GOOS != "linux":
		d.failAt(path+".mark", "only Linux marks connections; remove it")
	case len(u.Endpoints) > 0 && !slices.ContainsFunc(u.Endpoints, func(e EndpointSection) bool { return !strings.HasPrefix(e.Address, "unix:") }):
		d.failAt(path+".mark", "connections to unix sockets have no mark; remove it")
	}
}

// validateRequests finds what no key by itself shows of how clients ask.
func (l *ListenerSection) validateRequests(d *decoder, path string) {
	var ways []string
	for _, w := range []struct {
		key string
		on  bool
	}{{"socks5", l.SOCKS5 != nil}, {"http_connect", l.HTTPConnect != nil}, {"original_destination", l.OriginalDestination}} {
		if w.on {
			ways = append(ways, w.key)
		}
	}
	if len(ways) > 1 {
		d.failAt(path+"."+ways[1], "clients say in one way where they want to go; give only one of %s, the other a listener of its own", strings.Join(ways, ", "))
	}
	if l.OriginalDestination {
		if err := l.checkOriginal(); err != nil {
			d.failAt(path+".original_destination", "%v", err)
		}
	}
	if l.SNI {
		if err := l.checkSNI(); err != nil {
			d.failAt(path+".sni", "%v", err)
		}
	}
	if l.Context && l.HTTPConnect == nil && l.UsersFile() == "" && len(l.ProxyFrom) == 0 {
		d.failAt(path+".context", "nothing could carry it: clients say it in http_connect's header, behind the user name of socks5 with users_file, or in the headers of proxy_protocol; give one of them, or remove context")
	}
}

func (l *ListenerSection) checkOriginal() error {
	switch {
	case runtime.GOOS != "linux":
		return errors.New("only Linux tells where a redirected connection went; use socks5 or http_connect")
	case l.onUnix() || l.fromSystemd():
		return errors.New("only connections over TCP are redirected; listen on HOST:PORT")
	}
	return nil
}

func (l *ListenerSection) checkSNI() error {
	switch {
	case l.TLS != nil:
		return errors.New("the listener's tls ends the client's TLS, so that nothing is left to be read; remove one of them (identities are chosen by the name, too)")
	case l.Request() != nil:
		return fmt.Errorf("the ClientHello comes only after the answer to the %s request, which says where to; remove sni, and use host in the rules", l.RequestKey())
	case !slices.ContainsFunc(l.Rules, func(r RuleSection) bool { return len(r.SNIs) > 0 }):
		return errors.New("the name is read for rules, and none of them has sni; remove it, or add such a rule")
	}
	return nil
}

// validateChoice wants one way to choose an upstream, that leads somewhere.
func (l *ListenerSection) validateChoice(d *decoder, path string, f *File) {
	hasUpstream, hasRules := d.at[path+".upstream"] != nil, d.at[path+".rules"] != nil
	switch {
	case !hasUpstream && !hasRules:
		d.failAt(path, "no upstream; name one of upstreams, or give rules that choose")
	case hasUpstream && hasRules:
		d.failAt(path+".rules", "upstream says where all sessions go; remove one of them")
	case hasUpstream:
		l.validateUpstream(d, path+".upstream", l.Upstream, f)
	}
	l.validateRules(d, path, f)
}

// validateUpstream judges a reference of the listener to an upstream.
func (l *ListenerSection) validateUpstream(d *decoder, at, name string, f *File) {
	u := f.Upstream(name)
	switch {
	case name == "": // the mistake is told
	case u == nil:
		d.failAt(at, "%s", unknownName(name, "upstreams", namesOf(f.Upstreams, func(u *UpstreamSection) string { return u.Name })))
	case u.Dynamic && !l.HasDestination():
		d.failAt(at, "upstream %s is dynamic, and clients of this listener do not say where they want to go; give socks5, http_connect or original_destination, or another upstream", name)
	case u.Dynamic && l.OriginalDestination && u.TLS != nil && !u.TLS.named():
		d.failAt(at, "upstream %s verifies the name that was asked for, and a redirected connection has only an address; set tls.server_name or tls.principals there", name)
	}
}

// named says whether the upstream's certificate is judged by what the configuration
// has, whatever was asked for.
func (t *TLSSection) named() bool {
	return t.ServerName != "" || len(t.Principals) > 0 || t.UnsafeSkipVerify
}

// upstreams are those that the listener's sessions may go to.
func (l *ListenerSection) upstreams(f *File) (out []*UpstreamSection) {
	names := []string{l.Upstream}
	for _, r := range l.Rules {
		names = append(names, r.Upstream)
	}
	for _, u := range f.Upstreams {
		if slices.Contains(names, u.Name) {
			out = append(out, u)
		}
	}
	return out
}

// egressWarnings are the listener's settings that take away a protection.
func (l *ListenerSection) egressWarnings() (out []string) {
	at := "listeners." + l.Name
	if l.Request() != nil {
		key := at + "." + l.RequestKey()
		anybody := l.UnsafePlaintextListen || l.TLS != nil && l.TLS.Client == clientNone
		switch {
		case anybody && l.UsersFile() == "":
			out = append(out, key+": every client that reaches "+l.listening()+" may go where the rules allow, without users_file")
		case l.UnsafePlaintextListen:
			out = append(out, key+".users_file: passwords cross the network in plaintext")
		}
	}
	for i, r := range l.Rules {
		if name := r.opensMetadata(); name != "" {
			out = append(out, fmt.Sprintf("%s.rules[%d].ip: %s opens the metadata service of a cloud, which hands out credentials", at, i, name))
		}
	}
	return out
}

// egressNotes are what of the listener works otherwise than one might expect.
func (l *ListenerSection) egressNotes(f *File) (out []string) {
	at := "listeners." + l.Name
	if u := f.Upstream(l.Upstream); u != nil && l.HasDestination() {
		if u.Dynamic {
			out = append(out, at+".upstream: every destination is allowed but special addresses (loopback, private and the like); rules say which")
		} else {
			out = append(out, at+".upstream: all sessions go to "+u.Name+", whatever their clients ask for; rules tell destinations apart")
		}
	}
	for i, r := range l.Rules {
		u := f.Upstream(r.Upstream)
		if u != nil && u.Dynamic && u.TLS != nil && !u.TLS.named() && len(r.IPs) > 0 && len(r.Hosts) == 0 && !l.OriginalDestination {
			out = append(out, fmt.Sprintf("%s.rules[%d]: upstream %s verifies what was asked for, so that where clients ask for an address, the server's certificate must have it; tls.server_name or tls.principals there say otherwise", at, i, u.Name))
		}
	}
	return append(out, l.unreachableRules()...)
}

// UsersPaths are the users files of the listeners, each once.
func (f *File) UsersPaths() (out []string) {
	for _, l := range f.Listeners {
		if path := l.UsersFile(); path != "" && !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	return out
}
