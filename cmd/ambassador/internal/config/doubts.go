package config

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// plaintextFirst are the protocols whose servers, at these ports, begin in plaintext.
var plaintextFirst = map[string]string{"5432": "postgres", "3306": "mysql", "389": "ldap", "25": "smtp", "587": "smtp", "24": "lmtp",
	"143": "imap", "110": "pop3", "4190": "sieve", "119": "nntp", "4222": "nats", "5222": "xmpp"}

// Doubts are settings that are allowed, and that are probably a mistake; one line each,
// which begins with the key.
func (f *File) Doubts() (out []string) {
	for _, id := range f.Identities {
		if len(f.Uses(id.Name)) == 0 {
			out = append(out, "identities."+id.Name+": no upstream and no listener uses it; name it in a tls.identity, or remove it")
		}
	}
	for _, u := range f.Upstreams {
		used := slices.ContainsFunc(f.Listeners, func(l *ListenerSection) bool { return slices.Contains(l.upstreams(f), u) })
		if !used {
			out = append(out, "upstreams."+u.Name+": no listener leads to it; name it in a listener's upstream or rules, or remove it")
		}
		out = append(out, u.doubts()...)
	}
	return append(out, f.Tracing.doubts(f)...)
}

// doubts are about TLS to a port whose servers begin in plaintext.
func (u *UpstreamSection) doubts() (out []string) {
	if u.TLS == nil || u.StartTLS != "" && u.StartTLS != "none" || slices.Contains(u.TLS.ALPN, "postgresql") {
		return nil
	}
	for i, e := range u.Endpoints {
		_, port, err := net.SplitHostPort(strings.ReplaceAll(e.Address, kubernetesPrefix, ""))
		if name := plaintextFirst[port]; err == nil && name != "" {
			out = append(out, fmt.Sprintf("upstreams.%s.endpoints[%d]: at port %s servers begin in plaintext, and TLS begins at once; set starttls: %s if this is one", u.Name, i, port, name))
		}
	}
	return out
}

// Placed puts FILE:LINE:COLUMN before a warning or note, which begins with its key.
func (f *File) Placed(text string) string {
	path, rest, found := strings.Cut(text, ": ")
	if !found || f.places.flagOf != nil || strings.Contains(path, " ") {
		return text
	}
	p := f.Problem(path, fmt.Errorf("%s", rest))
	p.Text = rest // as long as it is
	return p.String()
}
