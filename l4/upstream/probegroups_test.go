package upstream

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProbesComeInGroups counts what the probes of 20 idle addresses cost: how many there
// are, and how often they wake the process. Addresses that answer are probed once in an
// idle interval if there is one.
func TestProbesComeInGroups(t *testing.T) {
	const addresses, lasts = 20, time.Hour
	for _, tt := range []struct {
		name        string
		idle        time.Duration
		least, most int // probes of all addresses
		moments     int // at most, at which there are probes
	}{
		// 720 intervals of 0.9 to 1.1 times 5 s, in seven slots each
		{name: "each interval", least: addresses * 650, most: addresses * 801, moments: 7 * 801},
		// 60 idle intervals, each ended by the next step of the prober
		{name: "once a minute", idle: time.Minute, least: addresses * 53, most: addresses * 61, moments: addresses * 61},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNet{began: time.Now(), answer: answers{}}
				var names []string
				for i := range addresses {
					names = append(names, fmt.Sprintf("127.0.0.1:%d", i+1))
					f.answer[names[i]] = says("")
				}
				health := testHealth
				health.IdleInterval = tt.idle
				u, err := New(Config{Name: "u", Endpoints: endpointsOf(names...), Health: health}, Deps{Dial: f.dial})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), lasts)
				defer cancel()
				u.run(ctx)
				moments := map[string]bool{}
				for _, line := range f.log {
					at, _, _ := strings.Cut(line, " ")
					moments[at] = true
				}
				if n := len(f.log); n < tt.least || n > tt.most || len(moments) > tt.moments {
					t.Errorf("%d probes at %d moments in %v; want %d to %d at %d moments at most", n, len(moments), lasts, tt.least, tt.most, tt.moments)
				} else {
					t.Logf("%d probes at %d moments in %v", n, len(moments), lasts)
				}
			})
		})
	}
}
