package metrics

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ambassador/l4"
	"ambassador/l4/upstream"
)

// counted returns the value of a counter, or the sample count and the native counts of a
// histogram.
func counted(t *testing.T, m *Metrics, name string, labels prometheus.Labels) *dto.Metric {
	t.Helper()
	families, err := m.gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			same := f.GetName() == name
			for k, v := range labels {
				same = same && labelsOf(one)[k] == v
			}
			if same {
				return one
			}
		}
	}
	t.Fatalf("there is no %s%v", name, labels)
	return nil
}

// nativeCounts are the counts of a histogram's native buckets.
func nativeCounts(h *dto.Histogram) map[int32]int64 {
	out := map[int32]int64{}
	i, n, count := int32(0), 0, int64(0)
	for _, s := range h.GetPositiveSpan() {
		i += s.GetOffset()
		for range s.GetLength() {
			count += h.GetPositiveDelta()[n]
			out[i] = count
			i, n = i+1, n+1
		}
	}
	return out
}

// The counts of a program and of the two before it are those of one that lived as long.
func TestCountsGoOn(t *testing.T) {
	cfg := l4.Config{Listeners: []l4.ListenerConfig{{Name: "in", Upstream: "db"}}, Upstreams: []upstream.Config{{Name: "db"}}}
	labels := prometheus.Labels{"listener": "in", "upstream": "db"}
	whole := New("v")
	whole.Applied(cfg, nil)
	var carried []byte
	var m *Metrics
	values := []float64{0.00001, 0.5, 0.5, 3, 1e5, 7, 7.0001, 1e-9, 250}
	for i := range 3 {
		m = New("v")
		m.Applied(cfg, nil)
		if i > 0 {
			if err := m.Recall(carried); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range values[i*3 : i*3+3] {
			for _, to := range []*Metrics{m, whole} {
				to.duration.With(labels).Observe(v)
				to.opened.WithLabelValues("in").Inc()
			}
		}
		var err error
		if carried, err = m.Carry(); err != nil {
			t.Fatal(err)
		}
	}
	if got := counted(t, m, "ambassador_sessions_opened_total", prometheus.Labels{"listener": "in"}).GetCounter().GetValue(); got != 9 {
		t.Errorf("opened %v, want 9", got)
	}
	got, want := counted(t, m, "ambassador_session_duration_seconds", labels).GetHistogram(), counted(t, whole, "ambassador_session_duration_seconds", labels).GetHistogram()
	if got.GetSampleCount() != want.GetSampleCount() || math.Abs(got.GetSampleSum()-want.GetSampleSum()) > 1e-6 {
		t.Errorf("%d samples, sum %v; want %d, %v", got.GetSampleCount(), got.GetSampleSum(), want.GetSampleCount(), want.GetSampleSum())
	}
	for i, b := range want.GetBucket() {
		if n := got.GetBucket()[i].GetCumulativeCount(); n != b.GetCumulativeCount() {
			t.Errorf("bucket %v has %d, want %d", b.GetUpperBound(), n, b.GetCumulativeCount())
		}
	}
	g, w := nativeCounts(got), nativeCounts(want)
	if len(g) != len(w) {
		t.Errorf("native buckets %v, want %v", g, w)
	}
	for i, n := range w {
		if g[i] != n {
			t.Errorf("native bucket %d has %d, want %d", i, g[i], n)
		}
	}
}

// A session that lasted longer than the last bound has an exemplar in a bucket without a
// bound: it is carried as a count.
func TestCarryBeyondTheLastBound(t *testing.T) {
	m := New("v")
	cfg := l4.Config{Listeners: []l4.ListenerConfig{{Name: "in"}}}
	m.Applied(cfg, nil)
	labels := prometheus.Labels{"listener": "in", "upstream": ""}
	slow := func(m *Metrics) {
		new(exemplars).observe(m.duration.With(labels), time.Now(), 400*24*time.Hour, "ABCD-1")
	}
	slow(m)
	carried, err := m.Carry()
	if err != nil {
		t.Fatal(err)
	}
	next := New("v")
	next.Applied(cfg, nil)
	if err := next.Recall(carried); err != nil {
		t.Fatal(err)
	}
	slow(next)
	h := counted(t, next, "ambassador_session_duration_seconds", labels).GetHistogram()
	last := h.GetBucket()[len(h.GetBucket())-1]
	if h.GetSampleCount() != 2 || !math.IsInf(last.GetUpperBound(), 1) || last.GetCumulativeCount() != 2 {
		t.Errorf("%d samples, the last bucket %v", h.GetSampleCount(), last)
	}
}

// A resolution that is halved puts two buckets into one: the bucket of (1, 2] is in that
// of (1, 4], and that of (2, 4], too.
func TestCoarser(t *testing.T) {
	for _, tt := range [][3]int32{{0, 1, 0}, {1, 1, 1}, {2, 1, 1}, {3, 1, 2}, {-1, 1, 0}, {-2, 1, -1}, {5, 2, 2}, {5, 0, 5}} {
		if got := coarser(tt[0], tt[1]); got != tt[2] {
			t.Errorf("coarser(%d, %d) = %d, want %d", tt[0], tt[1], got, tt[2])
		}
	}
}

// What is configured no more has no series.
func TestRecallForgets(t *testing.T) {
	old, m := New("v"), New("v")
	both := l4.Config{Listeners: []l4.ListenerConfig{{Name: "in"}, {Name: "gone"}}}
	old.Applied(both, nil)
	old.opened.WithLabelValues("gone").Inc()
	old.opened.WithLabelValues("in").Inc()
	m.Applied(l4.Config{Listeners: both.Listeners[:1]}, nil)
	carried, err := old.Carry()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Recall(carried); err != nil {
		t.Fatal(err)
	}
	after, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range after {
		for _, one := range f.GetMetric() {
			if labelsOf(one)["listener"] == "gone" {
				t.Errorf("%s has a series of a listener that is gone", f.GetName())
			}
		}
	}
	if got := counted(t, m, "ambassador_sessions_opened_total", prometheus.Labels{"listener": "in"}).GetCounter().GetValue(); got != 1 {
		t.Errorf("opened %v, want 1", got)
	}
}
