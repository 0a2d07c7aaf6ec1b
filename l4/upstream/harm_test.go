package upstream

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// stalling is an upstream with one address that accepts no connection before until.
type stalling struct{ until time.Time }

func (s *stalling) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := task.Wait(ctx, time.Until(s.until), nil); err != nil {
		return nil, err
	}
	return accepts(ctx)
}

// burst connects n sessions at once and returns the errors of those that failed.
func burst(t *testing.T, u *Upstream, n int) (failed []error) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			conn, err := u.connect(t.Context(), noProgress)
			if err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
				return
			}
			conn.Succeeded()
			conn.closeRaw()
		})
	}
	all.Wait()
	return failed
}

// A server that stalls for no longer than its clients wait loses none of them, and gets
// new ones at once: many attempts at the same time count as one failure.
func TestAStallIsNotManyFailures(t *testing.T) {
	for _, tt := range []struct {
		name      string
		endpoints []string
		stall     time.Duration
		connect   ConnectConfig
	}{
		{"a sole address", []string{"127.0.0.1:1"}, 4 * time.Second, ConnectConfig{}},
		{"a sole address, nearly for the whole timeout", []string{"127.0.0.1:1"}, 9 * time.Second, ConnectConfig{}},
		{"a sole address with a short attempt_timeout", []string{"127.0.0.1:1"}, 4 * time.Second, ConnectConfig{AttemptTimeout: 2 * time.Second}},
		{"one address of each family", []string{"127.0.0.1:1", "[::1]:1"}, 4 * time.Second, ConnectConfig{}},
		{"two addresses", []string{"127.0.0.1:1", "127.0.0.2:1"}, 4 * time.Second, ConnectConfig{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stalling{until: time.Now().Add(tt.stall)}
				u, err := New(Config{Name: "u", Endpoints: endpointsOf(tt.endpoints...), Connect: tt.connect,
					Breaker: policy.BreakerConfig{Failures: 5, Open: 5 * time.Second, MaxOpen: 30 * time.Second}}, Deps{Dial: s.dial})
				if err != nil {
					t.Fatal(err)
				}
				if failed := burst(t, u, 50); len(failed) > 0 {
					t.Errorf("%d of 50 failed, the first: %v", len(failed), failed[0])
				}
				start := time.Now()
				if failed := burst(t, u, 10); len(failed) > 0 || time.Since(start) > 0 {
					t.Errorf("after the stall %d of 10 failed, in %v", len(failed), time.Since(start))
				}
			})
		})
	}
}

// A session whose attempts have failed waits for the trial of the breaker that has
// opened meanwhile, and continues after the trial succeeds. A new session is refused at
// once.
func TestSessionsWaitForTheTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, alive := time.Now(), 5*time.Second
		answer := func(ctx context.Context) (net.Conn, error) {
			if time.Since(begun) < alive {
				return after(100*time.Millisecond, unreachable)(ctx)
			}
			return accepts(ctx)
		}
		f := &fakeNet{began: begun, answer: answers{"127.0.0.1:1": answer}}
		u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"),
			Breaker: policy.BreakerConfig{Failures: 2, Open: 7 * time.Second, MaxOpen: time.Minute}}, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan []error)
		go func() { done <- burst(t, u, 20) }()
		time.Sleep(time.Second)
		if a := u.members()[0]; a.breaker.State() != policy.Open {
			t.Fatalf("the breaker is %v after %v", a.breaker.State(), f.log)
		}
		start := time.Now()
		_, failure := u.connect(t.Context(), noProgress)
		if failure == nil || failure.Reason != outcome.BreakerOpen || time.Since(start) > 0 {
			t.Errorf("a new session: %v after %v, want a refusal at once", failure, time.Since(start))
		}
		if failed := <-done; len(failed) > 0 {
			t.Errorf("%d of 20 failed, the first: %v\n%s", len(failed), failed[0], strings.Join(f.log, "\n"))
		}
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("served after %v, the trial was due after 7 s", took)
		}
	})
}

// A failure that no client waited for does not count: neither that of a stopped session
// nor one in a dialogue.
func TestStoppedDialogueIsNeutral(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1")
	c, ok := u.members()[0].permit(time.Now(), 0)
	if !ok {
		t.Fatal("not permitted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	conn := &Conn{opening: &opening{}, upstream: u, candidate: c}
	timeout := &starttls.SideError{Side: starttls.Upstream, Op: "read", Err: context.DeadlineExceeded}
	if e := conn.DialogueError(ctx, timeout); e.Reason != outcome.Timeout {
		t.Errorf("%v", e)
	}
	if reasons, _ := c.at.takeResult(); reasons != policy.Neutral || !conn.settled.Load() {
		t.Errorf("heard %v, told %v", reasons, conn.settled.Load())
	}
}
