package limits

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"ambassador/policy"
)

func TestLargest(t *testing.T) {
	hold := func(name string, bytes int64, age time.Duration) Holder[string] {
		from := "10.0.0.1"
		if strings.HasPrefix(name, "other") {
			from = "10.0.0.2"
		}
		return Holder[string]{name, policy.SourceOf(netip.MustParseAddr(from)), bytes, age}
	}
	const k = 1 << 10
	all := func() []Holder[string] {
		return []Holder[string]{hold("young", 20*k, time.Second), hold("honest", 60*k, 2*time.Second), hold("old", 16*k, time.Hour),
			hold("large", 300*k, time.Second), hold("larger", 301*k, time.Millisecond), hold("other", 99*k, time.Hour)}
	}
	for _, tt := range []struct {
		bytes int64
		want  string
	}{
		{0, ""},
		{1, "larger"},
		{301 * k, "larger"},
		{301*k + 1, "larger large"},
		{701 * k, "larger large other old"},
		{720 * k, "larger large other old honest"}, // among usual ones, age decides
		{650 * k, "larger large other"},            // from the source that holds most
		{9999 * k, "larger large other old honest young"},
	} {
		var got []string
		for _, h := range Largest(all(), tt.bytes) {
			got = append(got, h.Session)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%d bytes: %v, want %s", tt.bytes, got, tt.want)
		}
	}
}
