package relay

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// load decides how many loops are in use. One that is busy does the work of two that
// are half idle for about a tenth less CPU: it is woken less often, and finds more to
// do each time. So new sessions go to the first loops, of which there are more once
// those have too much to do, and fewer once they have had too little for a while. A
// loop with more to do than another gives sessions away.
type load struct {
	next atomic.Int64 // when to look, on the engine's clock; loops that work ask

	mu   sync.Mutex
	at   int64         // guarded by mu, as all below; when the load was looked at last
	cpu  time.Duration // of the process, until then
	used float64       // processors, over the last looks
	calm int           // looks in a row for which fewer loops would have done
}

const (
	// lookEvery is the least time between two looks.
	lookEvery = 20 * time.Millisecond
	// calmLooks is how many looks make a while.
	calmLooks = 50
	// recent is how much of what is known of the processors used the last look is.
	recent = 0.2
	// unequal is how much more of its time one loop works than another before it gives
	// sessions away.
	unequal = 0.3
)

// doing is what a loop has done since the last look.
type doing struct {
	busy  atomic.Int64  // nanoseconds in which it did not wait
	seen  atomic.Uint64 // a bit for each session that had an event, by hash
	heavy atomic.Uint64 // the same of those that moved much
}

// done is what a loop has done in a time.
type done struct {
	busy            float64 // the part in which it did not wait
	sessions, heavy int     // about how many had events, and moved much; up to 64
}

// take begins anew.
func (d *doing) take(elapsed int64) done {
	return done{float64(d.busy.Swap(0)) / float64(elapsed), bits.OnesCount64(d.seen.Swap(0)), bits.OnesCount64(d.heavy.Swap(0))}
}

// look is called by a loop that works, at most every lookEvery.
func (e *Engine) look(now int64) {
	d := &e.load
	if !d.mu.TryLock() {
		return
	}
	defer d.mu.Unlock()
	all := e.loops.Load()
	if all == nil || now <= d.at {
		return // it is being closed; or another has just looked
	}
	d.next.Store(now + int64(lookEvery))
	elapsed, cpu := now-d.at, cpuTime()
	d.used += recent * (float64(cpu-d.cpu)/float64(elapsed) - d.used)
	d.at, d.cpu = now, cpu
	loops, active := *all, int(e.active.Load())
	most, least := 0, 0
	did := make([]done, len(loops))
	for i, l := range loops {
		did[i] = l.doing.take(elapsed)
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
		return // the next look finds it idle
	case want == active:
		d.calm = 0
	default:
		if d.calm++; d.calm >= calmLooks {
			d.calm = 0
			e.use(want)
		}
	}
	if n := sessionsToGive(did[most], did[least]); n > 0 {
		loops[most].giveTo.Store(loops[least])
		loops[most].give.Store(int32(n))
	}
}

// wantedLoops is how many loops should be in use where active are, of at most n, and
// the process uses so many processors. Messages are better kept together until a
// processor is full with them. Sessions that move much want processors of their own;
// on a machine that is busy itself, loops do not get whole ones.
func wantedLoops(active, n int, used float64, busiest done) int {
	more, fewer := 0.8, 0.75
	if busiest.heavy > 1 {
		more, fewer = 0.6, 0.4
	}
	switch {
	case active < n && used > more*float64(active) && busiest.busy > more:
		return active + 1
	case active > 1 && used < fewer*float64(active-1):
		return active - 1
	}
	return active
}

// sessionsToGive is how many of its sessions a loop gives to one that works for much
// less of its time. One session alone is as well here as there.
func sessionsToGive(most, least done) int {
	difference := most.busy - least.busy
	if difference < unequal || most.sessions < 2 {
		return 0
	}
	return max(1, int(math.Round(float64(most.sessions)*difference/most.busy/2)))
}

// use makes the first n loops those that accept, and that new sessions go to. It
// does nothing while others change the engine: there is always a next look.
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

// cpuTime is what the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
