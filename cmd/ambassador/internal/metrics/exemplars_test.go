package metrics

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The first time of a series in a second has an exemplar, and each that is slower.
func TestExemplarsOfASecond(t *testing.T) {
	h := newHistogram("x", "", establishBuckets(), "a")
	one, two := h.WithLabelValues("one"), h.WithLabelValues("two")
	start := time.Unix(1000, 0)
	var x exemplars
	for i, step := range []struct {
		series prometheus.Observer
		at     time.Duration
		d      time.Duration
		want   bool
	}{
		{one, 0, 5, true},
		{one, time.Millisecond, 5, false},
		{one, 2 * time.Millisecond, 4, false},
		{two, 3 * time.Millisecond, 1, true},
		{one, 4 * time.Millisecond, 6, true},
		{one, 5 * time.Millisecond, 5, false},
		{one, time.Second, 1, true},
		{one, 1900 * time.Millisecond, 1, false},
		{two, 5 * time.Second, 1, true},
	} {
		if got := x.wants(step.series, start.Add(step.at), step.d); got != step.want {
			t.Errorf("step %d: %t, want %t", i, got, step.want)
		}
	}
	if x.forget(); !x.wants(one, start.Add(1900*time.Millisecond), 1) {
		t.Error("a series that was forgotten has no exemplar")
	}
}
