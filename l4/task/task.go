package task

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Job is the work of a task.
type Job interface {
	// Run is the work. The functions of this package know its task by ctx.
	Run(ctx context.Context)
	// Left is called once the task is about to have a goroutine of its own, which costs
	// memory until Run returns.
	Left()
	// Suspended is called each time that the task may be about to be suspended, which
	// costs memory, too.
	Suspended()
}

// Task is a Job that runs. A nil Task stands for work on an ordinary goroutine.
type Task struct {
	job       Job
	coroutine *coroutine
	yield     func(step) bool
	left      atomic.Bool
	onLeave   []func() // owned by the goroutine that runs the job, as waits is
	waits     int      // calls of (*Task).Suspend
}

// maxWaits is how many short waits a task has on its loop, before it leaves. A handshake
// has three for each side; more is a peer that sends its bytes one by one, and what
// OnLeave delays would never begin.
const maxWaits = 16

// key is the key of a context's Task.
type key struct{}

// From is the task of ctx; nil if there is none.
func From(ctx context.Context) *Task {
	t, _ := ctx.Value(key{}).(*Task)
	return t
}

// Leave gives the task a goroutine of its own, unless it has one. It must be called
// before anything that waits or computes for long.
func (t *Task) Leave() {
	if t == nil || t.left.Swap(true) {
		return
	}
	t.job.Left()
	t.yield(stepLeave)
	for _, f := range t.onLeave {
		if f != nil {
			f()
		}
	}
	t.onLeave = nil
}

// Leave is (*Task).Leave for the task of ctx.
func Leave(ctx context.Context) { From(ctx).Leave() }

// IsOnLoop says whether the task of ctx still runs on the goroutine of its starter.
func IsOnLoop(ctx context.Context) bool {
	t := From(ctx)
	return t != nil && !t.left.Load()
}

// OnLeave calls f when the task of ctx leaves, or at once where it has left or there is
// none: it delays work that only a wait makes necessary. Forget takes f back if it was
// not called yet.
func OnLeave(ctx context.Context, f func()) (forget func()) {
	t := From(ctx)
	if t == nil || t.left.Load() {
		f()
		return func() {}
	}
	at := len(t.onLeave)
	t.onLeave = append(t.onLeave, f)
	return func() {
		switch n := len(t.onLeave); {
		case at == n-1:
			t.onLeave = t.onLeave[:at]
		case at < n:
			t.onLeave[at] = nil
		}
	}
}

// Wait leaves, and waits for d, for an event, or for the end of ctx, whose error it
// returns. A nil channel is no event. It does not wait if d is not positive.
func Wait(ctx context.Context, d time.Duration, event <-chan struct{}) error {
	if d <= 0 {
		return ctx.Err()
	}
	Leave(ctx)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-event:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Go leaves, and runs f on another goroutine, which may use what the task uses.
func Go(ctx context.Context, f func()) {
	Leave(ctx)
	go f()
}

// Suspend gives the goroutine back to the task's starter for a short wait, until resume is
// called, of which arm makes sure: resume may be called before Suspend has given anything
// back. False: the task has left, has waited too often, or arm was false, and nothing was
// suspended.
func (t *Task) Suspend(arm func(resume func()) bool) bool {
	if t == nil || t.left.Load() || t.waits >= maxWaits { // several goroutines may use a task that has left
		return false
	}
	t.waits++
	return t.suspend(func() bool { return arm(t.Resume) })
}

// Suspend is (*Task).Suspend for the task of ctx, and a wait of any length that something
// else ends. Arm gets the task, to call its Resume.
func Suspend(ctx context.Context, arm func(*Task) bool) bool {
	t := From(ctx)
	return t.suspend(func() bool { return arm(t) })
}

func (t *Task) suspend(arm func() bool) bool {
	if t == nil || t.left.Load() {
		return false
	}
	t.job.Suspended()
	if !arm() {
		return false
	}
	t.yield(stepSuspend)
	return true
}

// Resume goes on with a suspended task on the goroutine of the caller. It is called
// once for each time that the task is suspended.
func (t *Task) Resume() {
	c := t.coroutine
	if c.state.Swap(resumed) == suspended {
		c.state.Store(running)
		c.pool.resume(c)
	}
}

// coroutine runs jobs, one after the other, on the goroutine that resumes it. It is
// used again because its stack has grown.
type coroutine struct {
	// Static after construction.
	pool *Pool
	next func() (why step, ok bool) // runs the job until it stops
	stop func()

	ctx   context.Context // of the next job; owned by the user of the coroutine, as job is
	job   Job
	state atomic.Int32
}

// step is why a job does not run on.
type step int

const (
	stepOver    step = iota // Run has returned
	stepLeave               // it goes on, on a goroutine of its own
	stepSuspend             // it goes on after Resume
)

// The states of a coroutine. Resume may come before the job has stopped.
const (
	running int32 = iota
	suspended
	resumed
)

func (p *Pool) newCoroutine() *coroutine {
	c := &coroutine{pool: p}
	c.next, c.stop = iter.Pull(func(yield func(step) bool) {
		for again := true; again; again = yield(stepOver) {
			t := &Task{job: c.job, coroutine: c, yield: yield}
			ctx := context.WithValue(c.ctx, key{}, t)
			c.ctx, c.job = nil, nil
			t.job.Run(ctx)
			t.left.Store(true) // who still has it must not stop the coroutine
		}
	})
	return c
}

// Pool runs tasks. The zero Pool is ready to be used, by several goroutines at once.
type Pool struct {
	mu     sync.Mutex
	idle   []*coroutine // guarded by mu
	closed bool         // guarded by mu
}

// maxIdle is enough for a burst: each idle coroutine has a stack of some 8 KiB.
const maxIdle = 16

// Run runs a job on the calling goroutine, up to where the job ends, leaves or is
// suspended.
func (p *Pool) Run(ctx context.Context, job Job) {
	c := p.take()
	c.ctx, c.job = ctx, job
	p.resume(c)
}

// Go runs a job on a goroutine of its own from the beginning.
func (p *Pool) Go(ctx context.Context, job Job) {
	job.Left()
	go job.Run(ctx)
}

func (p *Pool) resume(c *coroutine) {
	for {
		switch why, _ := c.next(); {
		case why == stepLeave:
			go p.finish(c) // ends with the job
			return
		case why == stepOver:
			p.giveBack(c)
			return
		case c.state.CompareAndSwap(running, suspended):
			return
		}
		c.state.Store(running) // it was resumed before it had stopped
	}
}

func (p *Pool) finish(c *coroutine) {
	c.next()
	p.giveBack(c)
}

func (p *Pool) take() *coroutine {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return c
	}
	return p.newCoroutine()
}

func (p *Pool) giveBack(c *coroutine) {
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < maxIdle
	if keep {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		c.stop()
	}
}

// Close ends the idle coroutines, and each of the others when its job ends.
func (p *Pool) Close() {
	p.mu.Lock()
	idle := slices.Clone(p.idle)
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { // a coroutine does not end on a goroutine that is locked to a thread
		defer close(done)
		for _, c := range idle {
			c.stop()
		}
	}()
	<-done
}
