package descriptors

import (
	"math"
	"testing"

	"ambassador/l4/upstream"
)

// Sessions leave descriptors for everything else, however few there are.
func TestSessions(t *testing.T) {
	one := Needs{Addresses: []string{"127.0.0.1:0"}, Upstreams: []upstream.Config{{Endpoints: []upstream.EndpointConfig{{Address: "127.0.0.1:1"}}}}}
	many := one
	for range 100 {
		many.Upstreams = append(many.Upstreams, upstream.Config{Endpoints: []upstream.EndpointConfig{{Address: "db.internal:5432"}}})
	}
	for _, tt := range []struct {
		what     string
		needs    Needs
		limit    int
		reserved int // by the caller
		want     int
	}{
		{"45 % where that leaves enough", one, 1 << 20, 100, 1 << 20 * 45 / 100},
		{"few descriptors", one, 256, 64, (256 - one.besides(256) - 64) / 2},
		{"probes of many names", many, 1024, 64, (1024 - many.besides(1024) - 64) / 2},
		{"next to nothing", one, 32, 64, 1},
		{"no limit", one, math.MaxInt32, 64, math.MaxInt32 * 45 / 100},
	} {
		tt.needs.Reserved = tt.reserved
		got := tt.needs.Sessions(tt.limit)
		if got != tt.want {
			t.Errorf("%s: %d sessions, want %d", tt.what, got, tt.want)
		}
		if besides := tt.needs.besides(tt.limit); got > 1 && 2*got+besides > tt.limit {
			t.Errorf("%s: %d sessions and %d descriptors besides are more than %d", tt.what, got, besides, tt.limit)
		}
	}
}
