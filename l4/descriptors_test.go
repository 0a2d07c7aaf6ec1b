package l4

import (
	"log/slog"
	"math"
	"strings"
	"testing"
)

// Sessions leave descriptors for everything else, however few there are.
func TestDefaultOfMaxSessions(t *testing.T) {
	one := Config{Listeners: make([]ListenerConfig, 1), Upstreams: []UpstreamConfig{{Endpoints: []EndpointConfig{{Address: "127.0.0.1:1"}}}}}
	many := one
	for range 100 {
		many.Upstreams = append(many.Upstreams, UpstreamConfig{Endpoints: []EndpointConfig{{Address: "db.internal:5432"}}})
	}
	set := one
	set.MaxSessions = 5000
	for _, tt := range []struct {
		what     string
		cfg      Config
		limit    int
		reserved int // reserved by the caller
		want     int
	}{
		{"45 % where that leaves enough", one, 1 << 20, 100, 1 << 20 * 45 / 100},
		{"few descriptors", one, 256, 64, (256 - one.reserved(256) - 64) / 2},
		{"probes of many names", many, 1024, 64, (1024 - many.reserved(1024) - 64) / 2},
		{"next to nothing", one, 32, 64, 1},
		{"no limit", one, math.MaxInt32, 64, math.MaxInt32 * 45 / 100},
		{"what is set", set, 1024, 64, 5000},
	} {
		tt.cfg.ReservedDescriptors = tt.reserved
		if got := tt.cfg.maxSessions(tt.limit); got != tt.want {
			t.Errorf("%s: %d sessions, want %d", tt.what, got, tt.want)
		}
		if got := tt.cfg.maxSessions(tt.limit); tt.cfg.MaxSessions == 0 && got > 1 && 2*got+tt.cfg.reserved(tt.limit) > tt.limit {
			t.Errorf("%s: %d sessions and %d reserved descriptors are more than %d", tt.what, got, tt.cfg.reserved(tt.limit), tt.limit)
		}
	}
}

func TestSessionsBeyondTheDescriptorsAreSaid(t *testing.T) {
	for _, tt := range []struct {
		sessions int
		said     bool
	}{{0, false}, {1, false}, {math.MaxInt32, true}} {
		var log strings.Builder
		cfg := oneUpstream("127.0.0.1:1")
		cfg.MaxSessions = tt.sessions
		serve(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, cfg)
		if got := strings.Contains(log.String(), "more than the descriptors allow"); got != tt.said {
			t.Errorf("limits.connections %d: said %v, want %v: %s", tt.sessions, got, tt.said, log.String())
		}
	}
}
