package metrics

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// Ended is the number of sessions that have ended, and of those whose reason is a
// failure.
func (m *Metrics) Ended(isFailure func(outcome.Reason) bool) (all, failures int64) {
	each(m.ended, func(labels map[string]string, n int64) {
		all += n
		if isFailure(outcome.Reason(labels["reason"])) {
			failures += n
		}
	})
	return all, failures
}

// RuleHits is the number of sessions that a rule has decided.
type RuleHits struct {
	Rule
	Hits int64
}

// RuleHits lists the rules of the configuration in use by listener and name.
func (m *Metrics) RuleHits() (out []RuleHits) {
	each(m.rules, func(labels map[string]string, n int64) {
		out = append(out, RuleHits{Rule{labels["listener"], labels["rule"], policy.Verdict(labels["verdict"])}, n})
	})
	slices.SortFunc(out, func(a, b RuleHits) int {
		return cmp.Or(cmp.Compare(a.Listener, b.Listener), cmp.Compare(a.Rule.Rule, b.Rule.Rule), cmp.Compare(a.Verdict, b.Verdict))
	})
	return out
}

// each calls f for each series of a counter.
func each(c *prometheus.CounterVec, f func(labels map[string]string, n int64)) {
	ch := make(chan prometheus.Metric, 64)
	go func() { // ends when the loop below has read all
		c.Collect(ch)
		close(ch)
	}()
	for m := range ch {
		var d dto.Metric
		if m.Write(&d) != nil {
			continue // a counter of ours always has valid labels
		}
		labels := map[string]string{}
		for _, l := range d.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		f(labels, int64(d.GetCounter().GetValue()))
	}
}
