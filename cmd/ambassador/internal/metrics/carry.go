package metrics

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ambassador/policy"
)

// bytesName is the series that sessions count themselves, those of the program before
// included.
const bytesName = "ambassador_bytes_total"

// counters are the counters by their names.
func (m *Metrics) counters() map[string]*prometheus.CounterVec {
	out := map[string]*prometheus.CounterVec{}
	for _, c := range []*prometheus.CounterVec{m.opened, m.ended, m.attempts, m.reloads, m.pauses, m.preconnects, m.rules, m.panics, m.probes, m.upgraded} {
		desc := make(chan *prometheus.Desc, 1)
		c.Describe(desc)
		out[nameOf(<-desc)] = c
	}
	return out
}

// nameOf returns the name of a series. A Desc shows it only in its text.
func nameOf(d *prometheus.Desc) string {
	_, rest, _ := strings.Cut(d.String(), `fqName: "`)
	name, _, _ := strings.Cut(rest, `"`)
	return name
}

// Carry returns the counters and histograms of this program, for the one that takes its
// place.
func (m *Metrics) Carry() ([]byte, error) {
	families, err := m.gather()
	if err != nil {
		return nil, err
	}
	var out []*dto.MetricFamily
	for _, f := range families {
		counts := f.GetType() == dto.MetricType_COUNTER || f.GetType() == dto.MetricType_HISTOGRAM
		if counts && strings.HasPrefix(f.GetName(), "ambassador_") && f.GetName() != bytesName {
			for _, one := range f.GetMetric() {
				withoutExemplars(one.GetHistogram())
			}
			out = append(out, f)
		}
	}
	return json.Marshal(out)
}

// withoutExemplars removes the exemplars, and the bucket without a bound, which a
// histogram has only for an exemplar: JSON has no infinity, and SampleCount is its count.
func withoutExemplars(h *dto.Histogram) {
	if h == nil {
		return
	}
	h.Exemplars = nil
	h.Bucket = slices.DeleteFunc(h.Bucket, func(b *dto.Bucket) bool { return math.IsInf(b.GetUpperBound(), 1) })
	for _, b := range h.Bucket {
		b.Exemplar = nil
	}
}

// Recall goes on with the counters and histograms of the program before, as far as their
// listeners, rules and upstreams are configured. It is called once, after Applied.
func (m *Metrics) Recall(b []byte) error {
	var families []*dto.MetricFamily
	if err := json.Unmarshal(b, &families); err != nil {
		return fmt.Errorf("the metrics of the program before: %w", err)
	}
	counters, before := m.counters(), map[string]map[string]*dto.Metric{}
	for _, f := range families {
		c := counters[f.GetName()]
		for _, one := range f.GetMetric() {
			if c == nil {
				keep(before, f.GetName(), one)
			} else if labels := labelsOf(one); m.knows(labels) {
				if counter, err := c.GetMetricWith(labels); err == nil && one.GetCounter().GetValue() > 0 {
					counter.Add(one.GetCounter().GetValue())
				}
			}
		}
	}
	m.before.Store(&before)
	return nil
}

func keep(all map[string]map[string]*dto.Metric, name string, m *dto.Metric) {
	if all[name] == nil {
		all[name] = map[string]*dto.Metric{}
	}
	all[name][keyOf(m)] = m
}

func labelsOf(m *dto.Metric) prometheus.Labels {
	out := prometheus.Labels{}
	for _, l := range m.GetLabel() {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// keyOf identifies a series of a family.
func keyOf(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() { // sorted
		fmt.Fprintf(&b, "%q=%q ", l.GetName(), l.GetValue())
	}
	return b.String()
}

// knows says whether the configuration in use has what the labels name.
func (m *Metrics) knows(labels prometheus.Labels) bool {
	names := m.serving.Load()
	if names == nil {
		return false
	}
	if rule, ok := labels["rule"]; ok {
		return names.rules[Rule{labels["listener"], rule, policy.Verdict(labels["verdict"])}]
	}
	listener, hasListener := labels["listener"]
	upstream := labels["upstream"]
	return (!hasListener || slices.Contains(names.listeners, listener)) && (upstream == "" || names.upstreams[upstream])
}

// gather returns all series. Those that the program before has counted too include its
// counts.
func (m *Metrics) gather() ([]*dto.MetricFamily, error) {
	families, err := m.registry.Gather()
	before := m.before.Load()
	if before == nil {
		return families, err
	}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			if was := (*before)[f.GetName()][keyOf(one)]; was != nil {
				addTo(one, was)
			}
		}
	}
	return families, err
}

// addTo adds a counter or a histogram to another one.
func addTo(m, more *dto.Metric) {
	if c := m.GetCounter(); c != nil {
		sum := c.GetValue() + more.GetCounter().GetValue()
		c.Value = &sum
	}
	h, old := m.GetHistogram(), more.GetHistogram()
	if h == nil || old == nil {
		return
	}
	count, sum := h.GetSampleCount()+old.GetSampleCount(), h.GetSampleSum()+old.GetSampleSum()
	h.SampleCount, h.SampleSum = &count, &sum
	for _, b := range h.GetBucket() {
		if math.IsInf(b.GetUpperBound(), 1) {
			b.CumulativeCount = &count
			continue
		}
		n := b.GetCumulativeCount() + countBelow(old, b.GetUpperBound())
		b.CumulativeCount = &n
	}
	addNative(h, old)
}

// countBelow is the count of a histogram's bucket with that bound, or of the next lower
// one.
func countBelow(h *dto.Histogram, bound float64) (n uint64) {
	for _, b := range h.GetBucket() {
		if b.GetUpperBound() <= bound {
			n = max(n, b.GetCumulativeCount())
		}
	}
	return n
}

// addNative adds the native buckets. The result has the lower of the two resolutions.
func addNative(h, old *dto.Histogram) {
	if h.Schema == nil || old.Schema == nil {
		return
	}
	schema := min(h.GetSchema(), old.GetSchema())
	merged := map[int32]int64{}
	for _, from := range []*dto.Histogram{h, old} {
		index := int32(0)
		var count int64
		next := 0
		for _, span := range from.GetPositiveSpan() {
			index += span.GetOffset()
			for range span.GetLength() {
				if next < len(from.GetPositiveDelta()) {
					count += from.GetPositiveDelta()[next]
					merged[coarser(index, from.GetSchema()-schema)] += count
				}
				index, next = index+1, next+1
			}
		}
	}
	zero, threshold := h.GetZeroCount()+old.GetZeroCount(), max(h.GetZeroThreshold(), old.GetZeroThreshold())
	h.Schema, h.ZeroCount, h.ZeroThreshold = &schema, &zero, &threshold
	h.PositiveSpan, h.PositiveDelta = spansOf(merged)
}

// coarser is the index of a bucket in a histogram whose schema is smaller by n.
func coarser(index, n int32) int32 {
	for range n {
		index = (index + 1) >> 1
	}
	return index
}

// spansOf encodes the counts of native buckets.
func spansOf(counts map[int32]int64) (spans []*dto.BucketSpan, deltas []int64) {
	var order []int32
	for i := range counts {
		order = append(order, i)
	}
	slices.Sort(order)
	end, last := int32(0), int64(0)
	for n, i := range order {
		if offset := i - end; n == 0 || offset > 0 {
			length := uint32(0)
			spans = append(spans, &dto.BucketSpan{Offset: &offset, Length: &length})
		}
		*spans[len(spans)-1].Length++
		deltas = append(deltas, counts[i]-last)
		end, last = i+1, counts[i]
	}
	return spans, deltas
}

// Upgraded counts the sessions of an upgrade in place.
func (m *Metrics) Upgraded(carried, ended int) {
	m.upgraded.WithLabelValues("carried").Add(float64(carried))
	m.upgraded.WithLabelValues("ended").Add(float64(ended))
}
