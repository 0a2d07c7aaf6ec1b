package task

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Pacing is the pacing of probes: the probers of a process take their steps in small
// groups. To wake an idle process, and the monitor of Go's scheduler with it, costs as
// much as half of a probe. It is safe for concurrent use.
type Pacing struct {
	phase   int64 // nanoseconds; random, so that other ambassadors do not probe at the same time
	probers atomic.Int64
}

// GroupSize is the intended size of a group, if there are many probers: the work of a
// group delays sessions by some milliseconds at most.
const GroupSize = 3

// NewPacing makes the pacing of a process, with a random phase.
func NewPacing() *Pacing { return &Pacing{phase: rand.Int64N(int64(time.Hour))} }

// Enter counts a prober until leave is called.
func (r *Pacing) Enter() (leave func()) {
	r.probers.Add(1)
	return func() { r.probers.Add(-1) }
}

// Wait returns the time from now to a step that is due after about one interval. Jitter
// (0 to 1) moves it by up to a tenth either way. It is then moved, by less than that, to
// the step of other probers.
func (r *Pacing) Wait(now time.Time, interval time.Duration, jitter float64) time.Duration {
	slot := int64(interval) * GroupSize / max(r.probers.Load(), 7*GroupSize) // a seventh of interval, or less if there are many probers
	from := now.UnixNano() + r.phase
	at := from + int64(float64(interval)*(0.9+jitter/5)) + slot/2
	if slot > 0 {
		at -= at % slot
	}
	return time.Duration(at - from)
}
