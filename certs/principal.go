package certs

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Principal is a name, or a pattern of names, that a certificate must prove:
//
//	spiffe://domain/path   the only URI of the certificate; * is a whole segment, a final /** one or more
//	dns:db.internal        a DNS name; dns:*.internal has any leftmost label
//	ip:10.0.0.7            an IP address
//	spki:sha256/BASE64     the certificate's public key, which replaces the chain (the pin of RFC 7469)
//	any                    any certificate with a verified chain
//
// Make it with ParsePrincipal. The zero value matches nothing.
type Principal struct {
	text string
	kind principalKind
	name string     // of dns, or the trust domain of spiffe: lower case
	path []string   // of spiffe, by segment
	ip   netip.Addr // of ip, unmapped
	pin  []byte     // of spki
}

type principalKind int

const (
	kindSPIFFE principalKind = iota + 1
	kindDNS
	kindIP
	kindSPKI
	kindAny
)

// String is the principal as it was written.
func (p Principal) String() string { return p.text }

// ParsePrincipal parses a principal. The error says what is wrong and how to
// write it.
func ParsePrincipal(s string) (Principal, error) {
	p := Principal{text: s}
	var err error
	switch scheme, rest, _ := strings.Cut(s, ":"); {
	case s == "any":
		p.kind = kindAny
	case scheme == "spiffe":
		p.kind = kindSPIFFE
		p.name, p.path, err = parsePattern(s)
	case scheme == "dns":
		p.kind = kindDNS
		p.name, err = parseDNS(rest)
	case scheme == "ip":
		p.kind = kindIP
		p.ip, err = parseIP(rest)
	case scheme == "spki":
		p.kind = kindSPKI
		p.pin, err = parsePin(rest)
	default:
		err = unknownKind(s)
	}
	if err != nil {
		return Principal{}, fmt.Errorf("principal %q: %w", s, err)
	}
	return p, nil
}

// unknownKind suggests a kind for a principal that has none.
func unknownKind(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("write ip:%s", s)
	}
	if _, err := parseDNS(s); err == nil && strings.Contains(s, ".") {
		return fmt.Errorf("write dns:%s", s)
	}
	return errors.New("it begins with no known kind; write spiffe://domain/path, dns:NAME, ip:ADDRESS, spki:sha256/BASE64 or any")
}

// parsePattern parses a SPIFFE ID whose path segments may be wildcards.
func parsePattern(s string) (domain string, path []string, err error) {
	domain, path, ok := splitSPIFFE(s)
	switch {
	case !ok || domain == "":
		return "", nil, errors.New("not a SPIFFE ID; write spiffe://domain/path")
	case len(s) > maxSPIFFEID:
		return "", nil, fmt.Errorf("longer than a SPIFFE ID can be, which is %d bytes", maxSPIFFEID)
	case strings.Contains(domain, "*"):
		return "", nil, errors.New("the trust domain cannot have a wildcard; write one principal for each domain, spiffe://domain/**")
	case !isTrustDomain(domain):
		return "", nil, errors.New("the trust domain may have only lower-case letters, digits, dots, dashes and underscores, and at most 255 of them")
	case len(path) == 0 || len(path) == 1 && path[0] == "":
		return "", nil, errors.New("it has no path; write spiffe://domain/path, or spiffe://domain/** for all of the domain")
	}
	for i, segment := range path {
		last := i == len(path)-1
		switch {
		case segment == "*" || segment == "**" && last || plainSegment(segment):
		case segment == "**":
			return "", nil, errors.New("** stands for the rest of the path and must be its end; * stands for one segment")
		case segment == "" && last:
			return "", nil, errors.New("a SPIFFE ID does not end in a slash")
		case strings.Contains(segment, "*"):
			return "", nil, fmt.Errorf("the path segment %q is only partly a wildcard; * stands for one whole segment", segment)
		default:
			return "", nil, fmt.Errorf("the path segment %q is not one of a SPIFFE ID; use letters, digits, dots, dashes and underscores", segment)
		}
	}
	return domain, path, nil
}

const (
	lowerDigits   = "abcdefghijklmnopqrstuvwxyz0123456789"
	domainLetters = lowerDigits + ".-_"                          // SPIFFE ID, 2.1
	pathLetters   = domainLetters + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" // SPIFFE ID, 2.2
	dnsLetters    = lowerDigits + "-_"                           // of a label
	maxDNSName    = 253                                          // RFC 1035, as text
	maxDNSLabel   = 63                                           // RFC 1035
	dnsForm       = "write dns:db.internal, or dns:*.internal where * is the whole leftmost label"
	pinForm       = "write spki:sha256/ and the 44 letters of the base64 of the SHA-256 of the public key"
)

// madeOf reports whether s is not empty and consists of those letters.
func madeOf(s, letters string) bool {
	return s != "" && strings.Trim(s, letters) == ""
}

func parseDNS(s string) (string, error) {
	name := strings.ToLower(s)
	if _, err := netip.ParseAddr(s); err == nil {
		return "", fmt.Errorf("%s is an address; write ip:%s", s, s)
	}
	if strings.HasSuffix(s, ".") {
		return "", errors.New("names in certificates do not end in a dot; leave it out")
	}
	if len(name) > maxDNSName {
		return "", fmt.Errorf("longer than a DNS name can be, which is %d letters", maxDNSName)
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(name, "*."), ".") {
		switch {
		case strings.ContainsFunc(label, func(r rune) bool { return r > 127 }):
			return "", errors.New("write the name as it is in certificates, in ASCII: xn--…")
		case len(label) > maxDNSLabel || !madeOf(label, dnsLetters):
			return "", fmt.Errorf("%q is no label of a DNS name; %s", label, dnsForm)
		}
	}
	return name, nil
}

func parseIP(s string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		return netip.Addr{}, errors.New("not an IP address; write ip:10.0.0.7 or ip:2001:db8::7, without zone, port or mask")
	}
	return ip.Unmap(), nil
}

func parsePin(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(s, "sha256/")
	pin, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(pin) != sha256.Size || strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("not a pin; " + pinForm)
	}
	return pin, nil
}

// MatchCertificate reports whether the leaf proves the principal. Except for
// spki: the caller has verified the leaf's chain.
func (p Principal) MatchCertificate(leaf *x509.Certificate) bool {
	switch p.kind {
	case kindAny:
		return true
	case kindSPIFFE:
		return p.matchSPIFFE(leaf)
	case kindDNS:
		return slices.ContainsFunc(leaf.DNSNames, p.matchDNS)
	case kindIP:
		return slices.ContainsFunc(leaf.IPAddresses, p.matchIP)
	case kindSPKI:
		sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		return subtle.ConstantTimeCompare(sum[:], p.pin) == 1
	}
	return false
}

// MatchProved reports whether a name that a peer has proved matches the
// principal. The name has the form that a Terminator returns
// ("spiffe://corp/orders", "dns:db.internal"). any matches every name, but not a
// peer without one.
func (p Principal) MatchProved(name string) bool {
	kind, rest, _ := strings.Cut(name, ":")
	switch p.kind {
	case kindAny:
		return name != ""
	case kindSPIFFE:
		return p.matchID(name)
	case kindDNS:
		return kind == "dns" && p.matchDNS(rest)
	case kindIP:
		ip, err := netip.ParseAddr(rest)
		return kind == "ip" && err == nil && ip.Unmap() == p.ip
	case kindSPKI:
		return name == p.text
	}
	return false
}

// matchSPIFFE requires exactly one URI: a certificate with two has no SPIFFE ID
// (X.509-SVID, 2).
func (p Principal) matchSPIFFE(leaf *x509.Certificate) bool {
	all := uris(leaf)
	return len(all) == 1 && p.matchID(all[0])
}

// matchID accepts only well-formed SPIFFE IDs: an escaped, empty or dotted
// segment matches no wildcard.
func (p Principal) matchID(uri string) bool {
	if CheckSPIFFEID(uri) != nil {
		return false
	}
	domain, path, _ := splitSPIFFE(uri)
	if domain != p.name {
		return false
	}
	want := p.path
	if n := len(want) - 1; want[n] == "**" && len(path) > n {
		want, path = want[:n], path[:n]
	}
	return slices.EqualFunc(want, path, func(w, s string) bool { return w == "*" || w == s })
}

// matchDNS compares with a SAN. A SAN that is itself a wildcard is compared as
// text: it proves only a principal that is written like it.
func (p Principal) matchDNS(san string) bool {
	san = strings.ToLower(strings.TrimSuffix(san, "."))
	if san == p.name {
		return true
	}
	suffix, wild := strings.CutPrefix(p.name, "*")
	label, ok := strings.CutSuffix(san, suffix)
	return wild && ok && madeOf(label, dnsLetters)
}

// proof returns the name in the leaf that proves the principal, in the form of a
// principal; empty if the leaf does not prove it, or has no name.
func (p Principal) proof(leaf *x509.Certificate) string {
	switch p.kind {
	case kindSPKI:
		return p.text
	case kindAny:
		return anyName(leaf)
	}
	for _, name := range names(leaf) {
		kind, rest, _ := strings.Cut(name, ":")
		ip, err := netip.ParseAddr(rest)
		switch {
		case p.kind == kindSPIFFE && kind == "spiffe",
			p.kind == kindDNS && kind == "dns" && p.matchDNS(rest),
			p.kind == kindIP && kind == "ip" && err == nil && ip.Unmap() == p.ip:
			return name
		}
	}
	return ""
}

// anyName returns the first name of the leaf. It skips URIs if there are several:
// then none of them is proved.
func anyName(leaf *x509.Certificate) string {
	all := names(leaf)
	if n := len(uris(leaf)); n > 1 {
		all = all[n:]
	}
	if len(all) == 0 {
		return ""
	}
	return short(all[0])
}

func (p Principal) matchIP(san net.IP) bool {
	ip, ok := netip.AddrFromSlice(san)
	return ok && ip.Unmap() == p.ip
}

// Principals are alternatives: one of them must be proved.
type Principals []Principal

// MatchCertificate returns the first principal that the leaf proves; see
// Principal.MatchCertificate.
func (ps Principals) MatchCertificate(leaf *x509.Certificate) (Principal, bool) {
	i := slices.IndexFunc(ps, func(p Principal) bool { return p.MatchCertificate(leaf) })
	if i < 0 {
		return Principal{}, false
	}
	return ps[i], true
}

// split separates the pins, which replace a chain, from the others.
func (ps Principals) split() (pinned, chained Principals) {
	for _, p := range ps {
		if p.kind == kindSPKI {
			pinned = append(pinned, p)
		} else {
			chained = append(chained, p)
		}
	}
	return pinned, chained
}

// ofSPIFFE returns the principals that a SPIFFE ID alone can prove.
func (ps Principals) ofSPIFFE() (out Principals) {
	for _, p := range ps {
		if p.kind == kindSPIFFE || p.kind == kindAny {
			out = append(out, p)
		}
	}
	return out
}

// String lists the principals.
func (ps Principals) String() string {
	all := make([]string, len(ps))
	for i, p := range ps {
		all[i] = p.text
	}
	return strings.Join(all, ", ")
}
