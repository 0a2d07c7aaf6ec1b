package load

import (
	"sync/atomic"
	"time"
)

// StallBounds are the upper bounds of Stalls.Counts.
var StallBounds = [...]time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second}

// Stalls counts how long single events delayed the other sessions of their loop.
type Stalls struct {
	// Counts has the number of events that took at most the bound in StallBounds, and
	// more than the previous bound; its last element counts longer ones.
	Counts [len(StallBounds) + 1]uint64
	// Sum is the total time of all events.
	Sum time.Duration
}

// Meter counts the events of one loop. Another goroutine may read it.
type Meter struct {
	Began atomic.Int64 // when the running event began, on the caller's clock; 0: none is running

	counts [len(StallBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

// Slow counts an event that took more than the first bound.
func (m *Meter) Slow(d time.Duration) {
	i := 1
	for i < len(StallBounds) && d > StallBounds[i] {
		i++
	}
	m.counts[i].Add(1)
}

// Worked counts the events that took at most the first bound, and the time in nanoseconds
// of all.
func (m *Meter) Worked(quick int, all int64) {
	m.counts[0].Add(uint64(quick))
	m.sum.Add(all)
}

// AddTo adds what was counted.
func (m *Meter) AddTo(all *Stalls) {
	for i := range m.counts {
		all.Counts[i] += m.counts[i].Load()
	}
	all.Sum += time.Duration(m.sum.Load())
}
