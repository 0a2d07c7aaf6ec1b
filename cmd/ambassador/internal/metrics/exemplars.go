package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// exemplars adds times of sessions to histograms, with the session's ID as the exemplar of
// those that are worth one: an exemplar costs as much as ten times.
type exemplars struct {
	mu     sync.Mutex
	lately map[prometheus.Observer]observed // guarded by mu; by series; nil: none yet
}

// observed is what a series got last.
type observed struct {
	second  int64         // of the exemplar, since 1970
	slowest time.Duration // of that second
}

// observe adds a session's time at now. Only OpenMetrics and the protobuf format carry
// the exemplar. An empty id has none.
func (x *exemplars) observe(o prometheus.Observer, now time.Time, d time.Duration, id string) {
	e, ok := o.(prometheus.ExemplarObserver)
	if !ok || id == "" || !x.wants(o, now, d) {
		o.Observe(d.Seconds())
		return
	}
	e.ObserveWithExemplar(d.Seconds(), prometheus.Labels{"session_id": id})
}

// wants reports whether a time becomes an exemplar: the first one of a series in each
// second, and each that is slower.
func (x *exemplars) wants(o prometheus.Observer, now time.Time, d time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if last := x.lately[o]; last.second == now.Unix() && d <= last.slowest {
		return false
	}
	if x.lately == nil {
		x.lately = map[prometheus.Observer]observed{}
	}
	x.lately[o] = observed{now.Unix(), d}
	return true
}

// forget drops what is known of the series, some of which may be gone.
func (x *exemplars) forget() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lately = nil
}
