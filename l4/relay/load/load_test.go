package load

import (
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		active  int
		used    float64
		busiest rate
		want    int
	}{
		{1, 0.35, rate{0.95, 60}, 1},
		{1, 0.5, rate{0.5, 60}, 2},
		{1, 0.9, rate{0.3, 60}, 1}, // the process is busy with other work
		{2, 0.7, rate{0.5, 60}, 2},
		{2, 0.9, rate{0.5, 60}, 3},
		{2, 0.35, rate{0.3, 60}, 2}, // a loop that was added stays for a while
		{2, 0.25, rate{0.3, 8}, 1},
		{4, 3.9, rate{1, 60}, 4}, // there are no more
		{4, 0, rate{}, 3},
		{1, 0, rate{}, 1},
	} {
		if got := wantedLoops(tt.active, 4, tt.used, tt.busiest); got != tt.want {
			t.Errorf("%d loops, %.2f processors, %v: %d wanted, want %d", tt.active, tt.used, tt.busiest, got, tt.want)
		}
	}
	for _, tt := range []struct {
		most, least rate
		want        int
	}{
		{rate{1, 8}, rate{}, 4},
		{rate{1, 64}, rate{0.5, 64}, 16},
		{rate{1, 2}, rate{}, 1},
		{rate{1, 1}, rate{}, 0},
		{rate{0.6, 8}, rate{0.4, 8}, 0},
		{rate{0.4, 2}, rate{}, 1},
		{rate{}, rate{}, 0},
	} {
		if got := sessionsToGive(tt.most, tt.least); got != tt.want {
			t.Errorf("%v and %v: %d to give, want %d", tt.most, tt.least, got, tt.want)
		}
	}
}

// Check counts what the loops did since the last check, and averages the processors.
func TestCheck(t *testing.T) {
	const every = int64(CheckEvery)
	d, loops := &Load{}, []*Activity{{}, {}}
	at, cpu := every, time.Duration(0)
	check := func(active int, used time.Duration) Plan {
		t.Helper()
		at, cpu = at+every, cpu+used
		p, ok := d.Check(at, cpu, active, loops)
		if !ok || d.Next.Load() != at+every {
			t.Fatalf("checked: %v, the next one in %v", ok, time.Duration(d.Next.Load()-at))
		}
		return p
	}
	loops[0].Worked(every)
	if p := check(1, 10*CheckEvery); p != (Plan{Loops: 2}) {
		t.Errorf("one loop was full: %+v", p)
	}
	if _, ok := d.Check(at, cpu, 1, loops); ok {
		t.Error("checked twice at the same time")
	}
	loops[1].Worked(every)
	for hash := range uint64(4) {
		loops[1].Saw(hash)
		loops[1].Saw(hash + 64)
	}
	if p := check(2, 10*CheckEvery); p != (Plan{2, 1, 0, 2}) {
		t.Errorf("one of two works: %+v", p)
	}
	d.used = 0
	for i := range CalmChecks - 1 {
		if p := check(2, 0); p.Loops != 2 {
			t.Fatalf("%d loops after %d calm checks", p.Loops, i+1)
		}
	}
	if p := check(2, 0); p.Loops != 1 {
		t.Errorf("%d loops after %d calm checks", p.Loops, CalmChecks)
	}
}
