package l4

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// runner runs sessions, one after the other, on whatever goroutine resumes it: a
// session begins on the one that has accepted it, and has one of its own only if
// it has to wait. A session that needs no waiting, since it forwards to an address
// of this host, begins and is relayed on one thread: waking others would cost
// more than all of its work. So does one that rests until its client says more,
// which the loop tells that would have to be woken otherwise. A runner is used
// again because its stack has grown.
type runner struct {
	// Static after construction.
	next func() (what step, ok bool) // runs on until something else is to be done
	stop func()

	session *session     // the next; owned by who has taken the runner
	resting atomic.Int32 // an atRest
}

// step is why a runner's session does not run on.
type step int

const (
	stepOver step = iota // it has ended, or is handed over, or is parked
	stepWait             // it goes on, on a goroutine of its own
	stepRest             // it goes on when it is woken
)

// atRest is how far a runner is with coming to rest: it may be woken before it has.
const (
	running int32 = iota
	resting
	woken
)

// leave lets a session wait, once: from then on it has a goroutine of its own.
type leave struct {
	left    atomic.Bool
	runner  *runner
	session *session
	rested  bool // it has been at rest; owned by who runs the session, as what follows
	yield   func(step) bool
	before  []func() // what is to be called once it waits; owned by who runs the session
}

// waiting is the key of what mayWait calls.
type waiting struct{}

// mayWait must be called before anything that may wait, with the context of the
// session, if it is one, and first on the session's own goroutine.
func mayWait(ctx context.Context) {
	l, ok := ctx.Value(waiting{}).(*leave)
	if !ok || l.left.Swap(true) {
		return
	}
	l.session.hold(waitCost)
	l.yield(stepWait)
	for _, f := range l.before {
		if f != nil {
			f()
		}
	}
	l.before = nil
}

// onWait calls f before the session of ctx waits for the first time, or at once where
// that has been, or there is no session. Forget takes back what has not been called.
// It is for who runs the session, as f is.
func onWait(ctx context.Context, f func()) (forget func()) {
	l, ok := ctx.Value(waiting{}).(*leave)
	if !ok || l.left.Load() {
		f()
		return func() {}
	}
	at := len(l.before)
	l.before = append(l.before, f)
	return func() {
		switch n := len(l.before); {
		case at == n-1:
			l.before = l.before[:at]
		case at < n:
			l.before[at] = nil
		}
	}
}

func newRunner(ctx context.Context) *runner {
	r := &runner{}
	r.next, r.stop = iter.Pull(func(yield func(step) bool) {
		for again := true; again; again = yield(stepOver) {
			s := r.session
			r.session = nil
			s.run(context.WithValue(ctx, waiting{}, &leave{runner: r, session: s, yield: yield}))
		}
	})
	return r
}

// runners are those that nobody uses.
type runners struct {
	mu     sync.Mutex
	idle   []*runner // guarded by mu
	closed bool      // guarded by mu
}

// maxIdleRunners is enough for a burst: each has a stack of some 8 KiB.
const maxIdleRunners = 16

// run runs a session, up to where it has to wait, and what is left on a goroutine
// of its own.
func (rs *runners) run(ctx context.Context, s *session) {
	r := rs.take(ctx)
	r.session = s
	rs.resume(r)
}

func (rs *runners) resume(r *runner) {
	for {
		switch what, _ := r.next(); {
		case what == stepWait:
			go rs.finish(r) // Shutdown waits for the session, by quiet
			return
		case what == stepOver:
			rs.giveBack(r)
			return
		case r.resting.CompareAndSwap(running, resting):
			return
		}
		r.resting.Store(running) // it was woken on its way
	}
}

// wake goes on with a runner that rests, or is about to. It is called once for
// each time that it does.
func (rs *runners) wake(r *runner) {
	if r.resting.Swap(woken) == resting {
		r.resting.Store(running)
		rs.resume(r)
	}
}

func (rs *runners) finish(r *runner) {
	r.next()
	rs.giveBack(r)
}

func (rs *runners) take(ctx context.Context) *runner {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if n := len(rs.idle); n > 0 {
		r := rs.idle[n-1]
		rs.idle = rs.idle[:n-1]
		return r
	}
	return newRunner(ctx)
}

func (rs *runners) giveBack(r *runner) {
	rs.mu.Lock()
	keep := !rs.closed && len(rs.idle) < maxIdleRunners
	if keep {
		rs.idle = append(rs.idle, r)
	}
	rs.mu.Unlock()
	if !keep {
		r.stop()
	}
}

// close ends the idle runners, and each of the others when it is given back.
func (rs *runners) close() {
	rs.mu.Lock()
	idle := slices.Clone(rs.idle)
	rs.idle, rs.closed = nil, true
	rs.mu.Unlock()
	done := make(chan struct{})
	go func() { // a coroutine does not end on a goroutine that is locked to a thread
		defer close(done)
		for _, r := range idle {
			r.stop()
		}
	}()
	<-done
}
