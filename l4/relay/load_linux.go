package relay

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// load decides how many loops are active. One loop costs up to a tenth less CPU than
// two: it is woken less often, and finds more to do each time. But events wait for one
// another in a loop long before it is full: beyond growAt a second loop raises the
// throughput and lowers the median latency by a tenth, for that CPU. So the first loops
// get new sessions, their number grows when they have something to do for much of their
// time, and shrinks when they have had little to do for a while. A loop with much more
// work than another moves sessions to it.
type load struct {
	next atomic.Int64 // when the next check is due, on the engine's clock; working loops read it

	mu   sync.Mutex
	at   int64         // guarded by mu, like all below; when the load was last checked
	cpu  time.Duration // of the process, until then
	used float64       // processors, averaged over the last checks
	calm int           // checks in a row at which fewer loops would have sufficed
}

const (
	// checkEvery is the shortest time between two checks.
	checkEvery = 20 * time.Millisecond
	// calmChecks is how many calm checks in a row remove a loop.
	calmChecks = 50
	// recent is the weight of the last check in the average of processors used.
	recent = 0.2
	// unequal is how much more of its time one loop works than another before it moves
	// sessions to it.
	unequal = 0.3
	// growAt and shrinkAt are the use of the active loops' processors at which loops
	// are added and removed.
	growAt, shrinkAt = 0.4, 0.3
)

// activity is the work of a loop since the last check.
type activity struct {
	busy atomic.Int64  // nanoseconds in which it did not wait
	seen atomic.Uint64 // a bit for each session that had an event, by hash
}

// activityRate is the work of a loop between two checks.
type activityRate struct {
	busy     float64 // the fraction of time in which it did not wait
	sessions int     // about how many had events; up to 64
}

// take returns the activity and resets it.
func (d *activity) take(elapsed int64) activityRate {
	return activityRate{float64(d.busy.Swap(0)) / float64(elapsed), bits.OnesCount64(d.seen.Swap(0))}
}

// rebalance checks the load. A working loop calls it, at most every checkEvery.
func (e *Engine) rebalance(now int64) {
	d := &e.load
	if !d.mu.TryLock() {
		return
	}
	defer d.mu.Unlock()
	all := e.loops.Load()
	if all == nil || now <= d.at {
		return // the engine is being closed, or another loop has just checked
	}
	d.next.Store(now + int64(checkEvery))
	elapsed, cpu := now-d.at, cpuTime()
	d.used += recent * (float64(cpu-d.cpu)/float64(elapsed) - d.used)
	d.at, d.cpu = now, cpu
	loops, active := *all, int(e.active.Load())
	most, least := 0, 0
	did := make([]activityRate, len(loops))
	for i, l := range loops {
		did[i] = l.activity.take(elapsed)
		if did[i].busy > did[most].busy {
			most = i
		}
		if i < active && did[i].busy < did[least].busy {
			least = i
		}
	}
	switch want := wantedLoops(active, len(loops), d.used, did[most]); {
	case want > active:
		d.calm = 0
		e.use(want)
		return // the next check finds the new loop idle
	case want == active:
		d.calm = 0
	default:
		if d.calm++; d.calm >= calmChecks {
			d.calm = 0
			e.use(want)
		}
	}
	if n := sessionsToGive(did[most], did[least]); n > 0 {
		loops[most].giveTo.Store(loops[least])
		loops[most].give.Store(int32(n))
	}
}

// wantedLoops returns how many loops should be active if active are now, of at
// most n, and the process uses that many processors.
func wantedLoops(active, n int, used float64, busiest activityRate) int {
	switch {
	case active < n && used > growAt*float64(active) && busiest.busy > growAt:
		return active + 1
	case active > 1 && used < shrinkAt*float64(active-1):
		return active - 1
	}
	return active
}

// sessionsToGive returns how many sessions a loop moves to one that works for
// much less of its time. A single session gains nothing by a move.
func sessionsToGive(most, least activityRate) int {
	difference := most.busy - least.busy
	if difference < unequal || most.sessions < 2 {
		return 0
	}
	return max(1, int(math.Round(float64(most.sessions)*difference/most.busy/2)))
}

// use makes the first n loops accept connections and receive new sessions. It
// does nothing while the engine is locked: the next check tries again.
func (e *Engine) use(n int) {
	if !e.mu.TryLock() {
		return
	}
	defer e.mu.Unlock()
	loops := e.loops.Load()
	if loops == nil {
		return
	}
	e.active.Store(int32(n))
	for _, a := range e.acceptors {
		a.acceptWith((*loops)[:n])
	}
}

// cpuTime is the CPU time that the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
