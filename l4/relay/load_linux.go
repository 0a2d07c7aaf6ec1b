package relay

import (
	"syscall"
	"time"

	"ambassador/l4/relay/load"
)

// rebalance checks the load; cpu is the CPU time that the process has used. A working
// loop calls it when a check is due.
func (e *Engine) rebalance(now int64, cpu time.Duration) {
	all := e.loops.Load()
	if all == nil {
		return // the engine is being closed
	}
	activities := make([]*load.Activity, len(*all))
	for i, l := range *all {
		activities[i] = &l.activity
	}
	active := int(e.active.Load())
	plan, ok := e.load.Check(now, cpu, active, activities)
	if !ok {
		return
	}
	if plan.Loops != active {
		e.use(plan.Loops)
	}
	if plan.Sessions > 0 {
		from := (*all)[plan.From]
		from.giveTo.Store((*all)[plan.To])
		from.give.Store(int32(plan.Sessions))
	}
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
