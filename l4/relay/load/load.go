package load

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// CheckEvery is the shortest time between two checks.
	CheckEvery = 20 * time.Millisecond
	// CalmChecks is how many calm checks in a row remove a loop.
	CalmChecks = 50
	// recent is the weight of the last check in the average of processors used.
	recent = 0.2
	// unequal is how much more of its time one loop works than another before it moves
	// sessions to it.
	unequal = 0.3
	// growAt and shrinkAt are the use of the active loops' processors at which loops
	// are added and removed.
	growAt, shrinkAt = 0.4, 0.3
)

// Activity is the work of a loop since the last check. It is safe for concurrent use.
type Activity struct {
	busy atomic.Int64
	seen atomic.Uint64 // a bit for each session that had an event, by hash
}

// Worked adds time, in nanoseconds, in which the loop did not wait.
func (a *Activity) Worked(d int64) { a.busy.Add(d) }

// Saw notes an event of the session with this hash.
func (a *Activity) Saw(hash uint64) {
	if bit := uint64(1) << (hash % 64); a.seen.Load()&bit == 0 {
		a.seen.Or(bit)
	}
}

// rate is the work of a loop between two checks.
type rate struct {
	busy     float64 // the fraction of time in which it did not wait
	sessions int     // about how many had events; up to 64
}

// take returns the activity and resets it.
func (a *Activity) take(elapsed int64) rate {
	return rate{float64(a.busy.Swap(0)) / float64(elapsed), bits.OnesCount64(a.seen.Swap(0))}
}

// Load is what the checks remember. It is safe for concurrent use.
type Load struct {
	Next atomic.Int64 // when the next check is due, in nanoseconds on the caller's clock

	mu   sync.Mutex
	at   int64         // guarded by mu, like all below; when the load was last checked
	cpu  time.Duration // of the process, until then
	used float64       // processors, averaged over the last checks
	calm int           // checks in a row at which fewer loops would have sufficed
}

// Plan is the result of a check.
type Plan struct {
	Loops    int // how many are to be active
	From, To int // the loop that moves sessions, and the one that gets them
	Sessions int // how many; 0: none
}

// Check decides at a time. Cpu is what the process has used until then, and the first
// active of the loops are in use. False: another check runs, or has just run.
func (d *Load) Check(now int64, cpu time.Duration, active int, loops []*Activity) (Plan, bool) {
	if !d.mu.TryLock() {
		return Plan{}, false
	}
	defer d.mu.Unlock()
	if now <= d.at {
		return Plan{}, false
	}
	d.Next.Store(now + int64(CheckEvery))
	elapsed := now - d.at
	d.used += recent * (float64(cpu-d.cpu)/float64(elapsed) - d.used)
	d.at, d.cpu = now, cpu
	p := Plan{Loops: active}
	did := make([]rate, len(loops))
	for i, l := range loops {
		did[i] = l.take(elapsed)
		if did[i].busy > did[p.From].busy {
			p.From = i
		}
		if i < active && did[i].busy < did[p.To].busy {
			p.To = i
		}
	}
	switch want := wantedLoops(active, len(loops), d.used, did[p.From]); {
	case want > active:
		d.calm, p.Loops = 0, want
		return p, true // the next check finds the new loop idle
	case want == active:
		d.calm = 0
	default:
		if d.calm++; d.calm >= CalmChecks {
			d.calm, p.Loops = 0, want
		}
	}
	p.Sessions = sessionsToGive(did[p.From], did[p.To])
	return p, true
}

// wantedLoops returns how many loops should be active if active are now, of at
// most n, and the process uses that many processors.
func wantedLoops(active, n int, used float64, busiest rate) int {
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
func sessionsToGive(most, least rate) int {
	difference := most.busy - least.busy
	if difference < unequal || most.sessions < 2 {
		return 0
	}
	return max(1, int(math.Round(float64(most.sessions)*difference/most.busy/2)))
}
