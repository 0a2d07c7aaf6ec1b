package l4

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/upstream"
)

const (
	// mayStall is how long an event may occupy a loop in a test.
	mayStall = 100 * time.Millisecond
	// stallLook is how often a test checks.
	stallLook = 10 * time.Millisecond
)

// watchLoops fails the test if an event waits on a loop for more than mayStall: all
// sessions of that loop wait with it. An event that only waits for a processor does not
// count: that is the machine's load.
func watchLoops(t *testing.T, s *Server) {
	done, over := make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(over)
		tick := time.NewTicker(stallLook)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-done:
				return
			}
			if took := s.engine.Working(); took > mayStall {
				// The stacks count only if the event still lasts after they were taken.
				if stacks := allStacks(); !anyOnALoopRuns(stacks) && s.engine.Working() > took {
					t.Errorf("an event has held a loop up for %v:\n%s", took, stacks)
					return
				}
			}
		}
	}()
	t.Cleanup(func() { close(done); <-over })
}

func allStacks() string {
	b := make([]byte, 4<<20)
	return string(b[:runtime.Stack(b, true)])
}

// anyOnALoopRuns reports whether a goroutine that may be working for a loop is running,
// or would be if it had a processor. A loop's system calls do not wait, except for
// events. semacquire and GC belong to the runtime, in a goroutine that allocates.
func anyOnALoopRuns(stacks string) bool {
	for _, g := range strings.Split(stacks, "\n\n") {
		if !strings.Contains(g, "relay.(*loop).run") && !strings.Contains(g, "task.(*Pool).newCoroutine") {
			continue
		}
		first, _, _ := strings.Cut(g, "\n")
		_, state, _ := strings.Cut(first, "[")
		if strings.HasPrefix(state, "syscall") && !strings.Contains(g, "unix.EpollWait") {
			return true
		}
		for _, runs := range []string{"runn", "preempted", "semacquire", "GC "} {
			if strings.HasPrefix(state, runs) {
				return true
			}
		}
	}
	return false
}

// A session that waits for an identity delays no other session.
func TestAnIdentityThatDoesNotComeHoldsNobodyUp(t *testing.T) {
	asked, come := make(chan struct{}, 9), make(chan struct{})
	defer close(come)
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "silent", Addresses: []string{"127.0.0.1:0"}, Upstream: "silent"})
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "silent", Endpoints: endpointsAt("127.0.0.1:1"),
		IdentityReady: func() error { return errors.New("not enrolled yet") },
		AwaitIdentity: func(ctx context.Context) error {
			asked <- struct{}{}
			select {
			case <-ctx.Done():
			case <-come:
			}
			return errors.New("the CA does not answer")
		}})
	f := serve(t, Options{}, cfg)
	c := f.client(0)
	ping(t, c)
	for range 4 {
		f.client(1)
		<-asked
		ping(t, c)
	}
	ping(t, f.client(0))
}
