package certs

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The rules of SPIFFE IDs: https://github.com/spiffe/spiffe, SPIFFE-ID.md, 2.

const (
	maxSPIFFEID    = 2048 // bytes
	maxTrustDomain = 255  // bytes
)

// CheckSPIFFEID returns nil if s is a canonical SPIFFE ID: no user, port, query
// or fragment, no escapes, lower case except for the path. The path may be empty.
func CheckSPIFFEID(s string) error {
	domain, path, ok := splitSPIFFE(s)
	switch {
	case !ok:
		return errors.New("not a SPIFFE ID; write spiffe://domain/path, in lower case")
	case len(s) > maxSPIFFEID:
		return fmt.Errorf("longer than a SPIFFE ID can be, which is %d bytes", maxSPIFFEID)
	case !isTrustDomain(domain):
		return errors.New("the trust domain may have only lower-case letters, digits, dots, dashes and underscores, and at most 255 of them; a SPIFFE ID has no user and no port")
	}
	if i := slices.IndexFunc(path, func(s string) bool { return !plainSegment(s) }); i >= 0 {
		return fmt.Errorf("the path segment %q is not one of a SPIFFE ID; use letters, digits, dots, dashes and underscores, no query, no fragment, and no slash at the end", path[i])
	}
	return nil
}

// splitSPIFFE splits a SPIFFE ID without checking the letters of its parts. It
// does not use net/url, which drops an empty fragment and unescapes.
func splitSPIFFE(s string) (domain string, path []string, ok bool) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	domain, tail, hasPath := strings.Cut(rest, "/")
	if !ok || !hasPath {
		return domain, nil, ok
	}
	return domain, strings.Split(tail, "/"), true
}

func isTrustDomain(s string) bool { return len(s) <= maxTrustDomain && madeOf(s, domainLetters) }

// plainSegment reports whether s is a path segment of a SPIFFE ID.
func plainSegment(s string) bool {
	return s != "." && s != ".." && madeOf(s, pathLetters)
}

// meansSPIFFE reports whether a URI has the scheme of SPIFFE IDs, valid or not.
func meansSPIFFE(uri string) bool {
	const scheme = "spiffe:"
	return len(uri) >= len(scheme) && strings.EqualFold(uri[:len(scheme)], scheme)
}

// trustDomain returns the trust domain of the leaf's SPIFFE ID; empty if it has
// none. A certificate with two URIs has no ID (X.509-SVID, 2).
func trustDomain(leaf *x509.Certificate) string {
	all := uris(leaf)
	if len(all) != 1 || CheckSPIFFEID(all[0]) != nil {
		return ""
	}
	domain, _, _ := splitSPIFFE(all[0])
	return domain
}

// uris returns the URIs among the certificate's SANs, byte for byte. Those in
// x509.Certificate are parsed: there "spiffe://corp/orders#" has become
// "spiffe://corp/orders".
func uris(c *x509.Certificate) []string {
	const uniformResourceIdentifier = 6 // RFC 5280, 4.2.1.6
	var out []string
	for _, n := range extensionElements(c, oidSAN) {
		if n.Class == asn1.ClassContextSpecific && n.Tag == uniformResourceIdentifier {
			out = append(out, string(n.Bytes))
		}
	}
	return out
}
