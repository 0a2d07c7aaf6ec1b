package task

import (
	"testing"
	"time"
)

func TestPacing(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, tt := range []struct {
		probers  int64
		interval time.Duration
		slot     time.Duration // the times of all steps are multiples of it
	}{
		{0, 7 * time.Second, time.Second},
		{1, 7 * time.Second, time.Second},
		{20, 7 * time.Second, time.Second},
		{2100, 7 * time.Second, 10 * time.Millisecond},
		{1 << 62, time.Second, 1},
		{20, 1, 1},
	} {
		r := &Pacing{phase: 123456789}
		r.probers.Store(tt.probers)
		seen := map[int64]bool{}
		for i := range 1000 {
			wait := r.Wait(now, tt.interval, float64(i)/1000)
			if wait < tt.interval*8/10 || wait > tt.interval*12/10 && tt.interval > 1 {
				t.Fatalf("%d probers: %v after %v", tt.probers, wait, tt.interval)
			}
			at := now.UnixNano() + r.phase + int64(wait)
			if at%int64(tt.slot) != 0 {
				t.Fatalf("%d probers, %v: a step %v after a slot of %v", tt.probers, tt.interval, time.Duration(at%int64(tt.slot)), tt.slot)
			}
			seen[at] = true
		}
		if tt.interval > 1 && len(seen) < 2 {
			t.Errorf("%d probers, %v: no jitter", tt.probers, tt.interval)
		}
	}
}
