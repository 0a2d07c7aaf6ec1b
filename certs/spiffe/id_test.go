package spiffe

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"ambassador/certs"
)

// Package certs accepts the same SPIFFE IDs as go-spiffe, except for the bounds on
// their length, which go-spiffe does not check.
func FuzzCheckSPIFFEID(f *testing.F) {
	for _, s := range []string{"spiffe://corp/orders", "spiffe://corp/orders#", "spiffe://corp/orders?", "spiffe://corp/orders?#", "SPIFFE://corp/a", "spiffe://CORP/a",
		"spiffe://corp:1/a", "spiffe://u@corp/a", "spiffe://corp/a//b", "spiffe://corp/./a", "spiffe://corp/a/..", "spiffe://corp/%61", "spiffe://corp", "spiffe://corp/",
		"spiffe:///a", "spiffe:corp", "https://corp/a", "spiffe://corp/A_b-c.d", "spiffe://corp/\x00", "spiffe://corp/é", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		domain, _, _ := strings.Cut(strings.TrimPrefix(s, "spiffe://"), "/")
		if len(s) > 2048 || len(domain) > 255 {
			return
		}
		_, want := spiffeid.FromString(s)
		if got := certs.CheckSPIFFEID(s); (got == nil) != (want == nil) {
			t.Errorf("%q: %v; go-spiffe: %v", s, got, want)
		}
	})
}
