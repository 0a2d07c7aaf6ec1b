package evicted

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ambassador/policy"
)

var failed = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// breakerOf returns an open breaker if open, else a closed one with two failures.
func breakerOf(i int, open bool) Destination {
	d := Destination{Key: fmt.Sprint(i), Breaker: policy.BreakerMemory{Failures: 2}}
	if open {
		d.Breaker = policy.BreakerMemory{Opened: 1, Open: true, RetryAt: failed.Add(time.Hour)}
		d.Cause, d.Failed = "connection refused", failed
	}
	return d
}

func TestTheOldestIsReplaced(t *testing.T) {
	var b Breakers
	for i := range Max {
		b.Keep(breakerOf(i, i%2 == 0))
	}
	if d, ok := b.Take("0"); !ok || d != breakerOf(0, true) {
		t.Errorf("%v, %v", d, ok)
	}
	if d, ok := b.Take("1"); !ok || d != breakerOf(1, false) {
		t.Errorf("%v, %v", d, ok)
	}
	if _, ok := b.Take("0"); ok {
		t.Error("a breaker is taken twice")
	}
	b.Keep(breakerOf(0, true))
	b.Keep(breakerOf(1, false))
	b.Keep(breakerOf(Max, true)) // replaces 2
	if _, ok := b.Take("2"); ok {
		t.Error("the oldest was not replaced")
	}
	all := b.All()
	if closed, open := b.Count(); closed+open != Max || open != Max/2 || len(all) != Max {
		t.Errorf("%d closed, %d open, %d in all", closed, open, len(all))
	}
	if all[0] != breakerOf(3, false) || all[Max-3] != breakerOf(0, true) || all[Max-1] != breakerOf(Max, true) {
		t.Errorf("the order is %v … %v", all[0], all[Max-3:])
	}
}

func TestAnotherProgramsBreakers(t *testing.T) {
	var all []Destination
	for i := range Max + 3 {
		all = append(all, breakerOf(i, i%3 == 0))
	}
	var b Breakers
	b.Recall(all)
	if got := b.All(); len(got) != Max || got[0] != all[3] || got[Max-1] != all[Max+2] {
		t.Errorf("%d are recalled", len(got))
	}
	b.Keep(breakerOf(-1, true)) // replaces the oldest
	if _, ok := b.Take("3"); ok || len(b.All()) != Max {
		t.Errorf("%d after one more", len(b.All()))
	}
}

func TestCausesAreBounded(t *testing.T) {
	var b Breakers
	d := breakerOf(0, true)
	d.Cause = strings.Repeat("x", 1000)
	b.Keep(d)
	if got, _ := b.Take("0"); len(got.Cause) != maxCause {
		t.Errorf("%d bytes are kept", len(got.Cause))
	}
}
