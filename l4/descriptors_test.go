package l4

import (
	"log/slog"
	"math"
	"strings"
	"testing"
)

// What the configuration says counts, and else what its listeners and upstreams leave.
func TestMaxSessions(t *testing.T) {
	cfg := oneUpstream("127.0.0.1:1")
	const limit = 256
	one := cfg.maxSessions(limit)
	if want := cfg.needs().Sessions(limit); one != want || one <= 1 {
		t.Errorf("%d sessions by default, want %d", one, want)
	}
	more := cfg
	more.Listeners = append(more.Listeners, ListenerConfig{Addresses: []string{"127.0.0.1:0", "127.0.0.1:0"}})
	more.ReservedDescriptors = 20
	if got := more.maxSessions(limit); got != one-(2*2+20)/2 {
		t.Errorf("%d sessions with two sockets and 20 descriptors more, want %d", got, one-12)
	}
	cfg.MaxSessions = 5000
	if got := cfg.maxSessions(limit); got != 5000 {
		t.Errorf("%d sessions, want what is set", got)
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
