package task

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"time"
)

// job is a Job of two functions.
type job struct {
	run  func(ctx context.Context)
	left int
}

func (j *job) Run(ctx context.Context) { j.run(ctx) }
func (j *job) Left()                   { j.left++ }
func (j *job) Suspended()              {}

// goid is the calling goroutine, as a stack names it.
func goid() string {
	text := make([]byte, 64)
	text = text[:runtime.Stack(text, false)]
	return string(text[:slices.Index(text, '[')])
}

// TestRunWaitsForNothing: a task that leaves gives its starter's goroutine back, and
// goes on elsewhere; onLeave runs between the two.
func TestRunWaitsForNothing(t *testing.T) {
	var p Pool
	defer p.Close()
	goOn, done := make(chan struct{}), make(chan struct{})
	var did []string
	j := &job{run: func(ctx context.Context) {
		defer close(done)
		OnLeave(ctx, func() { did = append(did, "first") })
		forget := OnLeave(ctx, func() { t.Error("called, though forgotten") })
		OnLeave(ctx, func() { did = append(did, "second") })
		forget()
		if !IsOnLoop(ctx) {
			t.Error("not on the loop at first")
		}
		<-leave(ctx, goOn)
		if IsOnLoop(ctx) {
			t.Error("on the loop still")
		}
		OnLeave(ctx, func() { did = append(did, "at once") })
	}}
	p.Run(t.Context(), j)
	if j.left != 1 {
		t.Errorf("Left was called %d times", j.left)
	}
	close(goOn)
	<-done
	if want := []string{"first", "second", "at once"}; !slices.Equal(did, want) {
		t.Errorf("onLeave: %q, want %q", did, want)
	}
}

func leave(ctx context.Context, c chan struct{}) chan struct{} {
	Leave(ctx)
	Leave(ctx) // does nothing more
	return c
}

// TestSuspend: a suspended task goes on with the goroutine that resumes it, also if that
// is faster than the task.
func TestSuspend(t *testing.T) {
	var p Pool
	defer p.Close()
	var it *Task
	steps := 0
	j := &job{run: func(ctx context.Context) {
		for range 2 {
			if !Suspend(ctx, func(t *Task) bool { it = t; return true }) {
				t.Error("not suspended")
			}
			steps++
		}
		if !Suspend(ctx, func(t *Task) bool { t.Resume(); return true }) { // before it was suspended
			t.Error("not suspended")
		}
		if Suspend(ctx, func(*Task) bool { return false }) {
			t.Error("suspended, though nobody resumes it")
		}
		steps++
	}}
	p.Run(t.Context(), j)
	for want := range 2 {
		if steps != want {
			t.Errorf("%d steps, want %d", steps, want)
		}
		it.Resume()
	}
	if steps != 3 || j.left != 0 {
		t.Errorf("%d steps, left %d times; want 3 on this goroutine", steps, j.left)
	}
	if len(p.idle) != 1 {
		t.Errorf("%d idle coroutines, want 1", len(p.idle))
	}
}

// TestWithoutATask: nothing is left, and nothing suspended.
func TestWithoutATask(t *testing.T) {
	ctx := t.Context()
	Leave(ctx)
	called := false
	OnLeave(ctx, func() { called = true })()
	if !called {
		t.Error("OnLeave does not call")
	}
	if IsOnLoop(ctx) || Suspend(ctx, func(*Task) bool { return true }) {
		t.Error("on a loop")
	}
	before := goid()
	var p Pool
	defer p.Close()
	done := make(chan string)
	j := &job{run: func(ctx context.Context) {
		Leave(ctx)
		done <- goid()
	}}
	if p.Go(ctx, j); <-done == before || j.left != 1 {
		t.Errorf("Go ran on the caller's goroutine, or left %d times", j.left)
	}
}

func TestWait(t *testing.T) {
	event := make(chan struct{})
	close(event)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, got := range map[string]error{
		"an event":   Wait(t.Context(), time.Hour, event),
		"a duration": Wait(t.Context(), time.Nanosecond, nil),
		"no wait":    Wait(t.Context(), 0, nil),
	} {
		if got != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	if err := Wait(ended, time.Hour, nil); err != context.Canceled {
		t.Errorf("the end of ctx: %v", err)
	}
}

// TestCloseOnALockedThread: a goroutine that is locked to its thread, as one that has
// changed its network namespace is, may close a pool.
func TestCloseOnALockedThread(t *testing.T) {
	var p Pool
	p.Run(t.Context(), &job{run: func(context.Context) {}})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p.Close()
}

// Goroutines that a task has begun use it at once.
func TestSuspendAfterLeave(t *testing.T) {
	var p Pool
	defer p.Close()
	done := make(chan bool, 2)
	p.Run(t.Context(), &job{run: func(ctx context.Context) {
		for range cap(done) {
			Go(ctx, func() { done <- From(ctx).Suspend(func(func()) bool { return true }) })
		}
	}})
	for range cap(done) {
		if <-done {
			t.Error("a task that has left was suspended")
		}
	}
}

// A task that has waited too often for its loop leaves, and what has its task when it is
// over does not stop the next one.
func TestSuspendIsBounded(t *testing.T) {
	var p Pool
	defer p.Close()
	var over *Task
	waits := 0
	p.Run(t.Context(), &job{run: func(ctx context.Context) {
		over = From(ctx)
		for over.Suspend(func(resume func()) bool { resume(); return true }) {
			waits++
		}
		if !Suspend(ctx, func(t *Task) bool { t.Resume(); return true }) {
			t.Error("a wait that something else ends is refused")
		}
	}})
	if waits != maxWaits {
		t.Errorf("%d waits, want %d", waits, maxWaits)
	}
	ran := false
	p.Run(t.Context(), &job{run: func(ctx context.Context) {
		over.Leave()
		ran = IsOnLoop(ctx)
	}})
	if !ran || over.Suspend(func(func()) bool { return true }) {
		t.Error("a task that is over has stopped another one")
	}
}
