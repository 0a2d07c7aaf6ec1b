package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253  // bytes of a name without the root's dot, RFC 1035 and its wire form
	maxLabel = 63   // bytes of a label
	maxInput = 1024 // bytes that a name may have in Unicode; 253 of A-labels are fewer
)

// lookup maps a name in Unicode to the A-labels for its DNS lookup (UTS 46). The
// ASCII letters in it are checked by checkLabel and not by STD 3, which forbids
// underscores.
var lookup = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false), idna.CheckHyphens(false))

// ParseHost parses a host from a client or a file. For an IP address, plain or in
// brackets, it returns addr, with IPv4-mapped ones unmapped. For anything else it
// returns host: the name's lower-case A-labels without the trailing dot, of
// letters, digits, dashes and underscores. It refuses, among others, addresses
// with a zone, and names whose last label is a number ("127.1", "0x7f.1",
// "2130706433"): some resolvers take them for IPv4 addresses. The error says what
// to write. A canonical name costs no allocation.
func ParseHost(s string) (host string, addr netip.Addr, err error) {
	if strings.HasPrefix(s, "[") || strings.Contains(s, ":") {
		addr, err = parseIPv6(s)
	} else if host, err = parseName(s); err == nil && endsInNumber(host) {
		host = ""
		addr, err = parseIPv4(s)
	}
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("host %.*q: %w", maxName, s, err)
	}
	return host, addr, nil
}

func parseIPv6(s string) (netip.Addr, error) {
	text, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		var closed bool
		if text, closed = strings.CutSuffix(text, "]"); !closed {
			return netip.Addr{}, errors.New("it has no closing bracket at its end; write [::1], and the port apart")
		}
	}
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return netip.Addr{}, errors.New("not an IPv6 address; write one as ::1 or [::1], and the port apart")
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("an address with a zone means another host on every machine; write %s", addr.WithZone(""))
	case bracketed && addr.Is4():
		return netip.Addr{}, fmt.Errorf("brackets are for IPv6; write %s", addr)
	}
	return addr.Unmap(), nil
}

func parseIPv4(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, errors.New("a name does not end in a number; write an IPv4 address as four decimal numbers without leading zeros, 127.0.0.1")
	}
	return addr, nil
}

func parseName(s string) (string, error) {
	if len(s) > maxInput {
		return "", fmt.Errorf("it has %d bytes, and a name has at most %d", len(s), maxName)
	}
	if !utf8.ValidString(s) {
		return "", errors.New("it is not UTF-8; write the name's A-labels, xn--…")
	}
	if !isASCII(s) {
		mapped, err := lookup.ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("not a name that can be registered (%w); write its A-label, xn--…", err)
		}
		s = mapped
	}
	name := strings.TrimSuffix(s, ".")
	if err := checkName(name); err != nil {
		return "", err
	}
	return strings.ToLower(name), nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("it is empty; write a name or an IP address")
	case len(name) > maxName:
		return fmt.Errorf("it has %d bytes, and a name has at most %d", len(name), maxName)
	}
	for rest, more := name, true; more; {
		var label string
		label, rest, more = strings.Cut(rest, ".")
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	return nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("it has an empty label; write one dot between labels")
	case len(label) > maxLabel:
		return fmt.Errorf("the label %q has %d bytes, and a label has at most %d", label, len(label), maxLabel)
	case label[0] == '-':
		return fmt.Errorf("the label %q begins with a dash; a label begins with a letter, a digit or an underscore", label)
	}
	for i := range len(label) {
		if !isNameByte(label[i]) {
			return fmt.Errorf("it has %q; a name has letters, digits, dashes, underscores and dots only", rune(label[i]))
		}
	}
	return nil
}

func isNameByte(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || isDigit(b) || b == '-' || b == '_'
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

// endsInNumber is the URL standard's test that separates IPv4 addresses from
// names: the last label is decimal, octal or hexadecimal.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// IsAbsolute reports whether a name that ParseHost accepts ends in the root's dot. A
// lookup of such a name appends no search domain. The resolver must get
// the dot, or it may look up another name than the one that was judged.
func IsAbsolute(s string) bool {
	return slices.ContainsFunc(rootDots, func(dot string) bool { return strings.HasSuffix(s, dot) })
}

// rootDots are the dot and what UTS 46 maps to it.
var rootDots = []string{".", "\u3002", "\uff0e", "\uff61"}

// ParseHostPattern parses one of a rule's Hosts or SNIs: a name, or "*." and a
// name, which matches every name with one or more labels before it. The result is
// canonical, as of ParseHost; the error says what to write.
func ParseHostPattern(s string) (string, error) {
	suffix, wild := strings.CutPrefix(s, "*.")
	switch {
	case s == "*":
		return "", errors.New(`pattern "*": leave the key out to match every name`)
	case strings.Contains(suffix, "*"):
		return "", fmt.Errorf("pattern %q: * stands for one or more whole labels at the beginning; write *.example.com", s)
	}
	host, addr, err := ParseHost(suffix)
	switch {
	case err != nil:
		return "", fmt.Errorf("pattern %q: %w", s, err)
	case addr.IsValid():
		return "", fmt.Errorf("pattern %q: addresses are matched by the key ip, never by name; write ip: [%s]", s, netip.PrefixFrom(addr, addr.BitLen()))
	case wild:
		return "*." + host, nil
	}
	return host, nil
}
