package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"ambassador/certs"
	"ambassador/policy"
)

// This file has the grammar of hosts: endpoints, server_name, srv and the dns: principals
// are judged by policy.ParseHost, as the hosts of rules and clients are.

// checkEndpoint checks HOST:PORT or unix:/path.
func checkEndpoint(s string) error {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return checkUnixPath(path)
	}
	if rest, ok := strings.CutPrefix(s, kubernetesPrefix); ok {
		return fmt.Errorf("%q is no address; write a section: {kubernetes: %q}", s, strings.TrimLeft(rest, "/"))
	}
	if _, rest, ok := strings.Cut(s, "://"); ok {
		return fmt.Errorf("%q is a URL; write HOST:PORT alone: %s", s, withPort(rest))
	}
	if err := CheckHostPort(s); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(s)
	switch {
	case host == "":
		return fmt.Errorf("%q has no host; write HOST:PORT", s)
	case port == "0":
		return fmt.Errorf("%q: nobody listens on port 0; write the service's port", s)
	case strings.Contains(host, "*"):
		return fmt.Errorf("%q has a wildcard, and only a whole name can be looked up; write one endpoint for each host", s)
	case strings.HasPrefix(s, "[") && !strings.Contains(host, ":"):
		return fmt.Errorf("%q: brackets are for IPv6; write %s", s, net.JoinHostPort(host, port))
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil // an address of our own network may have a zone
	}
	_, _, err := policy.ParseHost(host)
	return err
}

// withPort is the host and port of a URL without its scheme; PORT where it has none.
func withPort(rest string) string {
	rest, _, _ = strings.Cut(rest, "/")
	if _, user, ok := strings.Cut(rest, "@"); ok {
		rest = user
	}
	if _, _, err := net.SplitHostPort(rest); err != nil {
		rest += ":PORT"
	}
	return rest
}

// hostAlone is the host of a URL or of HOST:PORT; empty if s is neither.
func hostAlone(s string) string {
	_, rest, isURL := strings.Cut(s, "://")
	if isURL {
		s = withPort(rest)
	}
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		return ""
	}
	return host
}

// canonicalEndpoint is an endpoint as it is looked up: with A-labels. Everything else
// stays as it was written.
func canonicalEndpoint(s string) string {
	host, port, err := net.SplitHostPort(s)
	if err != nil || strings.HasPrefix(s, "unix:") {
		return s
	}
	name := canonicalName(host)
	if name == host {
		return s
	}
	return net.JoinHostPort(name, port)
}

// canonicalName is a checked name with A-labels. The root's dot stays.
func canonicalName(s string) string {
	ascii := strings.IndexFunc(s, func(r rune) bool { return r > 127 }) < 0
	host, _, err := policy.ParseHost(s)
	switch {
	case ascii || err != nil || host == "":
		return s
	case policy.IsAbsolute(s):
		return host + "."
	}
	return host
}

// parseServerName checks a server_name, and returns it as TLS has it: a name without the
// root's dot, or an IP address without brackets.
func parseServerName(s string) (string, error) {
	host, addr, err := policy.ParseHost(s)
	switch {
	case err == nil && addr.IsValid():
		return addr.String(), nil
	case err == nil:
		return host, nil
	case strings.Contains(s, "*"):
		return "", fmt.Errorf("%q has a wildcard; write one whole name, or principals: [\"dns:%s\"]", s, s)
	}
	if alone := hostAlone(s); alone != "" {
		return "", fmt.Errorf("%q is more than a host; write the host alone: %s", s, alone)
	}
	return "", err
}

func checkServerName(s string) error {
	_, err := parseServerName(s)
	return err
}

// checkSRV checks the name of SRV records.
func checkSRV(s string) error {
	_, _, err := policy.ParseHost(s)
	if addr, notAddr := netip.ParseAddr(s); notAddr == nil {
		err = fmt.Errorf("%s is an address", addr)
	}
	if err != nil {
		return fmt.Errorf("%q is no SRV name (%w); write one like _postgresql._tcp.db.internal, the records have the ports", s, err)
	}
	return nil
}

// parsePrincipal parses one of principals. A dns: name may be written in Unicode.
func parsePrincipal(s string) (certs.Principal, error) {
	text := s
	if name, ok := strings.CutPrefix(s, "dns:"); ok {
		rest, wild := strings.CutPrefix(name, "*.")
		host, addr, err := policy.ParseHost(rest)
		switch {
		case strings.Contains(rest, "*") || addr.IsValid() || policy.IsAbsolute(rest): // certs says how to write it
		case err != nil && hostAlone(rest) != "":
			return certs.Principal{}, fmt.Errorf("principal %q: it is more than a name; write dns:%s", s, hostAlone(rest))
		case err != nil:
			return certs.Principal{}, fmt.Errorf("principal %q: %w", s, err)
		case wild:
			text = "dns:*." + host
		default:
			text = "dns:" + host
		}
	}
	p, err := certs.ParsePrincipal(text)
	if err != nil {
		if better := principalFor(s); better != "" {
			return p, fmt.Errorf("principal %q: write %s", s, better)
		}
	}
	return p, err
}

// principalFor guesses what a text that is no principal was meant to be; empty if it has
// no guess. What it returns is a principal.
func principalFor(s string) string {
	kind, rest, _ := strings.Cut(strings.TrimSpace(s), ":")
	guess := strings.ToLower(kind) + ":" + strings.Trim(strings.TrimSpace(rest), "[]")
	for _, name := range []string{strings.TrimSpace(s), hostAlone(strings.TrimSpace(s))} {
		if _, err := certs.ParsePrincipal(guess); err == nil {
			return guess
		}
		if host, addr, err := policy.ParseHost(name); err == nil && (strings.Contains(host, ".") || addr.IsValid()) {
			if addr.IsValid() {
				return "ip:" + addr.String()
			}
			return "dns:" + host
		}
	}
	return ""
}

func checkPrincipal(s string) error {
	_, err := parsePrincipal(s)
	return err
}
