package policy

import (
	"testing"
	"time"
)

func TestBackoffPause(t *testing.T) {
	const ms = time.Millisecond
	b := Backoff{Base: 100 * ms, Max: time.Second}
	for _, tt := range []struct {
		name   string
		b      Backoff
		n      int
		jitter float64
		want   time.Duration
	}{
		{"first", b, 0, 0, 100 * ms},
		{"doubles", b, 2, 0, 400 * ms},
		{"capped", b, 9, 0, time.Second},
		{"a huge count does not overflow", b, 1 << 20, 0, time.Second},
		{"jitter takes at most half", b, 0, 0.999999, 50 * ms},
		{"jitter in the middle", b, 1, 0.5, 150 * ms},
		{"zero is no pause", Backoff{}, 5, 0.3, 0},
		{"default cap", Backoff{Base: ms}, 40, 0, 32 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.b.Pause(tt.n, tt.jitter).Round(10 * time.Microsecond); got != tt.want {
				t.Errorf("Pause(%d, %v) = %v, want %v", tt.n, tt.jitter, got, tt.want)
			}
		})
	}
}
