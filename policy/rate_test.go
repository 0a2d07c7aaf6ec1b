package policy

import (
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	r := Rate{PerSecond: 10}
	at := func(d time.Duration, want int) {
		t.Helper()
		n := 0
		for r.Allow(epoch.Add(d)) {
			n++
		}
		if n != want {
			t.Errorf("at %v: %d allowed, want %d", d, n, want)
		}
	}
	at(0, 10)
	at(50*time.Millisecond, 0)
	at(100*time.Millisecond, 1)
	at(600*time.Millisecond, 5)
	at(time.Hour, 10)
	at(time.Minute, 0) // a clock that goes back gives nothing
	var none Rate
	for range 1000 {
		if !none.Allow(epoch) {
			t.Fatal("no bound, and refused")
		}
	}
}
