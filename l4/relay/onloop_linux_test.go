package relay

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"ambassador/l4/relay/load"
)

// runner runs a caller for a loop: it is suspended, or leaves.
type runner struct {
	suspended, left atomic.Int32
}

func (r *runner) Leave() { r.left.Add(1) }

func (r *runner) Suspend(arm func(resume func()) bool) bool {
	if r.left.Load() > 0 {
		return false
	}
	resumed := make(chan struct{})
	if !arm(func() { close(resumed) }) {
		return false
	}
	r.suspended.Add(1)
	<-resumed
	return true
}

// read reads once from s, for r, and sends the result.
func (r *runner) read(s *Socket) (got chan string) {
	s.SetLeaver(r)
	got = make(chan string, 1)
	go func() { // ends when something has arrived
		b := make([]byte, 16)
		n, err := s.Read(b)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(b[:n])
	}()
	return got
}

// A read gives its loop back until the bytes arrive, and goes on with the loop.
func TestReadWaitsOnTheLoop(t *testing.T) {
	e := New()
	defer e.Close()
	for try := 0; ; try++ { // the bytes come too late on a slow machine
		near, far := newSockets(t, e)
		r := &runner{}
		got := r.read(near)
		waitFor(t, func() bool { return r.suspended.Load() > 0 })
		io.WriteString(far, "x")
		if b := <-got; b != "x" {
			t.Fatalf("read %q", b)
		}
		if r.left.Load() == 0 {
			return
		}
		if try == 100 {
			t.Fatal("the reader leaves the loop each time")
		}
	}
}

// A read for which nothing arrives leaves the loop, and is then a goroutine's.
func TestReadLeavesTheLoop(t *testing.T) {
	e := New()
	defer e.Close()
	near, far := newSockets(t, e)
	r := &runner{}
	got := r.read(near)
	near.waiting(t)
	if r.suspended.Load() != 1 || r.left.Load() == 0 {
		t.Errorf("suspended %d times, left %d times", r.suspended.Load(), r.left.Load())
	}
	io.WriteString(far, "x")
	if b := <-got; b != "x" {
		t.Errorf("read %q", b)
	}
}

// A socket that is closed while its reader is suspended ends the read.
func TestCloseEndsASuspendedRead(t *testing.T) {
	e := New()
	defer e.Close()
	near, _ := newSockets(t, e)
	r := &runner{}
	got := r.read(near)
	waitFor(t, func() bool { return r.suspended.Load() > 0 })
	near.Close()
	if b := <-got; b != net.ErrClosed.Error() {
		t.Errorf("read %q", b)
	}
}

// A dial gives its loop back, too.
func TestDialWaitsOnTheLoop(t *testing.T) {
	e := New()
	defer e.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &runner{}
	failed := make(chan error, 1)
	to := deaf(t)
	go func() { // awaited below
		c, err := e.DialMarked(ctx, to, 0, &net.KeepAliveConfig{}, r)
		if err == nil {
			c.Close()
		}
		failed <- err
	}()
	waitFor(t, func() bool { return r.left.Load() > 0 })
	if r.suspended.Load() != 1 {
		t.Errorf("suspended %d times before it left", r.suspended.Load())
	}
	cancel()
	if err := <-failed; err != context.Canceled {
		if op, ok := err.(*net.OpError); !ok || op.Err != context.Canceled {
			t.Errorf("the dial ends with %v", err)
		}
	}
}

// A loop does not compute for longer than turnTime before it looks for events again, and
// after a slow step it computes nothing for a while.
func TestComputingIsBounded(t *testing.T) {
	e := New()
	l := &loop{engine: e}
	did := 0
	for range load.MaxSteps {
		l.steps.Take(func() {
			did++
			for began := e.now(); time.Duration(e.now()-began) < turnTime; {
			}
		}, e.now())
	}
	for want := 1; want <= load.MaxSteps; want++ {
		l.last = e.now()
		if l.compute(); did != want {
			t.Fatalf("%d steps were done, want %d", did, want)
		}
	}
	l.steps = load.Steps{}
	slow := func() {
		for began := e.now(); time.Duration(e.now()-began) <= load.SlowStep; {
		}
	}
	l.last = e.now()
	l.steps.Take(slow, l.last)
	others := make(chan struct{}, 2)
	for range cap(others) {
		l.steps.Take(func() { others <- struct{}{} }, l.last)
	}
	if l.compute(); l.steps.Take(slow, l.last) || l.steps.Wait() {
		t.Error("the loop has steps after a slow one")
	}
	for range cap(others) {
		<-others
	}
}

// AwaitStep calls f as a step of the loop, and on a goroutine after a slow step.
func TestAwaitStep(t *testing.T) {
	e := New()
	defer e.Close()
	arrives := func(f func(onLoop bool)) {
		t.Helper()
		near, far := newSockets(t, e)
		if !near.AwaitStep(f) {
			t.Fatal("nobody waits")
		}
		io.WriteString(far, "x")
	}
	for range 20 { // a slow machine may let the pause pass
		done := make(chan bool, 1)
		arrives(func(onLoop bool) {
			for began := e.now(); time.Duration(e.now()-began) <= load.SlowStep; {
			}
			done <- onLoop
		})
		first := <-done
		waitFor(t, func() bool { return e.Working() == 0 })
		arrives(func(onLoop bool) { done <- onLoop })
		if first && !<-done {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Error("no step on the loop, or one after a slow one")
}
