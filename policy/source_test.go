package policy

import (
	"net/netip"
	"testing"
)

// The specification of what counts as one client.
func TestSources(t *testing.T) {
	for _, tt := range []struct {
		one, other string
		same       bool
	}{
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "10.0.0.2", false},
		{"10.0.0.1", "::ffff:10.0.0.1", true},
		{"::ffff:10.0.0.1", "::ffff:10.0.0.2", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%1", "fe80::2%2", true}, // a zone is no part of the network
		{"127.0.0.1", "::1", false},
		{"0.0.0.0", "::", false},
	} {
		if one, other := sourceAt(tt.one), sourceAt(tt.other); (one == other) != tt.same {
			t.Errorf("%s is %v, %s is %v; the same: want %v", tt.one, one, tt.other, other, tt.same)
		}
	}
	if got := SourceOf(netip.Addr{}); got != (Source{}) {
		t.Errorf("no address: %v", got)
	}
}

func sourceAt(addr string) Source { return SourceOf(netip.MustParseAddr(addr)) }
