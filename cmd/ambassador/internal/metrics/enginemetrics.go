package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"ambassador/l4"
)

// engineCollector reads how the loops of the byte engine do, and what sessions hold.
type engineCollector struct{ server *l4.Server }

func newStallDesc() *prometheus.Desc {
	return prometheus.NewDesc("ambassador_loop_stall_seconds", "Time that one event took on a loop of the byte engine, during which the other sessions of the loop waited, in seconds.", nil, nil)
}

func newHeldDesc() *prometheus.Desc {
	return prometheus.NewDesc("ambassador_held_bytes", "Memory held for clients that are not connected to an upstream yet, and for sides that do not take what was sent to them, in bytes; limits.memory bounds it.", nil, nil)
}

func (c *engineCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- newStallDesc()
	ch <- newHeldDesc()
}

func (c *engineCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(newHeldDesc(), prometheus.GaugeValue, float64(c.server.HeldBytes()))
	s := c.server.Stalls()
	buckets, total := map[float64]uint64{}, uint64(0)
	for i, n := range s.Counts {
		total += n
		if i < len(l4.StallBounds) {
			buckets[l4.StallBounds[i].Seconds()] = total
		}
	}
	ch <- prometheus.MustNewConstHistogram(newStallDesc(), total, s.Sum.Seconds(), buckets)
}
