package relay

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

// stalls counts the events of one loop. Another goroutine may read it.
type stalls struct {
	counts [len(StallBounds) + 1]atomic.Uint64
	sum    atomic.Int64
	began  atomic.Int64 // when the running event began, on the engine's clock; 0: none is running
}

// note counts an event that took more than the first bound.
func (s *stalls) note(d time.Duration) {
	i := 1
	for i < len(StallBounds) && d > StallBounds[i] {
		i++
	}
	s.counts[i].Add(1)
}

func (s *stalls) addTo(all *Stalls) {
	for i := range s.counts {
		all.Counts[i] += s.counts[i].Load()
	}
	all.Sum += time.Duration(s.sum.Load())
}
