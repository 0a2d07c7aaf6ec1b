package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
	"ambassador/policy"
)

// panicking makes an upstream whose first n dials panic, and runs test with it in a
// bubble.
func panicking(t *testing.T, cfg Config, n int, test func(u *Upstream, s *l4test.Survived)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, dials := &l4test.Survived{}, atomic.Int64{}
		cfg.Name, cfg.Endpoints = "u", endpointsOf("127.0.0.1:1")
		u, err := New(cfg, Deps{Guard: task.Guard{Count: s.Count}, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if dials.Add(1) <= int64(n) {
				panic("a bug")
			}
			return says("")(ctx)
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, u)()
		test(u, s)
		if got := u.members()[0].places.Load(); cfg.Preconnect.Connections == 0 && got != 0 {
			t.Errorf("%d places are taken at the address", got)
		}
	})
}

func TestProberGoesOnAfterAPanic(t *testing.T) {
	panicking(t, Config{Health: testHealth}, 2, func(u *Upstream, s *l4test.Survived) {
		a := u.members()[0].Address
		time.Sleep(time.Second)
		if a.asked.Load() {
			t.Error("after a panic trials are left to the prober still")
		}
		time.Sleep(3 * testHealth.Interval)
		if got := a.verdict(); got != policy.Healthy {
			t.Errorf("the address is %s, want healthy by the third probe", got)
		}
		s.Want(t, map[string]int{PartProber: 2})
	})
}

func TestFirstContactGoesOnAfterAPanic(t *testing.T) {
	panicking(t, Config{Required: true}, 2, func(u *Upstream, s *l4test.Survived) {
		time.Sleep(5 * time.Second)
		if u.reached.Load() == nil {
			t.Error("the upstream is not reached")
		}
		s.Want(t, map[string]int{PartUpstream: 2})
	})
}

func TestPreconnectGoesOnAfterAPanic(t *testing.T) {
	panicking(t, Config{Preconnect: PreconnectConfig{Connections: 3, MaxAge: time.Hour}}, 2, func(u *Upstream, s *l4test.Survived) {
		time.Sleep(10 * time.Second)
		if got := u.preconnectedPool.count(); got != 3 {
			t.Errorf("%d connections are kept, want 3", got)
		}
		if got := u.members()[0].places.Load(); got != 3 {
			t.Errorf("%d places are taken at the address, want 3", got)
		}
		s.Want(t, map[string]int{PartPreconnect: 2})
	})
}

// bugConn panics when it is read.
type bugConn struct{ net.Conn }

func (bugConn) Read([]byte) (int, error) { panic("a bug") }

// A panic while a connection waits for its session says nothing about the server.
func TestPanicWhileAConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ended := &l4test.Survived{}, make(chan outcome.Reason, 1)
		u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Preconnect: PreconnectConfig{Connections: 1}},
			Deps{Guard: task.Guard{Count: s.Count}, Observer: Observer{Attempt: func(_ string, r outcome.Reason) { ended <- r }},
				Dial: func(context.Context, string, string) (net.Conn, error) {
					ours, _ := net.Pipe()
					return bugConn{ours}, nil
				}})
		if err != nil {
			t.Fatal(err)
		}
		u.preconnectedPool.missing(time.Now())
		u.preconnectedPool.add(t.Context())
		synctest.Wait()
		u.preconnectedPool.sweep(time.Now())
		if got := <-ended; got != outcome.Internal {
			t.Errorf("the attempt ended as %s, want %s", got, outcome.Internal)
		}
		if got := u.members()[0].places.Load(); got != 0 || u.preconnectedPool.count() != 0 {
			t.Errorf("%d places are taken, %d connections are kept, want none", got, u.preconnectedPool.count())
		}
		s.Want(t, map[string]int{PartPreconnect: 1})
	})
}

// All callers that wait for a lookup get its panic as an error, and the next call starts
// a new lookup.
func TestPanicOfALookupReleasesAllWhoWait(t *testing.T) {
	s, began, goOn := &l4test.Survived{}, make(chan struct{}), make(chan struct{})
	var once sync.Once
	u, err := New(Config{Name: "u", Endpoints: endpointsOf("localhost:1")}, Deps{Guard: task.Guard{Count: s.Count}, Observer: Observer{
		Phase: func(_, _ string, _ Phase, _ time.Duration) {
			once.Do(func() {
				close(began)
				<-goOn
				panic("a bug")
			})
		}}})
	if err != nil {
		t.Fatal(err)
	}
	e, errs := u.endpoints[0], make(chan error, 5)
	for range cap(errs) {
		go func() { errs <- u.resolve(t.Context(), e) }() // received below
	}
	<-began
	close(goOn)
	for range cap(errs) {
		var panicked *task.PanicError
		select {
		case err := <-errs:
			if err != nil && (!errors.As(err, &panicked) || ending.Classify(outcome.StageDial, err) != outcome.Internal) {
				t.Errorf("a waiting caller heard %v", err)
			}
		case <-time.After(l4test.Bound):
			t.Fatal("a caller waits for a lookup that has panicked")
		}
	}
	if err := u.resolve(t.Context(), e); err != nil || len(u.members()) == 0 {
		t.Errorf("the next lookup: %v, %d addresses", err, len(u.members()))
	}
	s.Want(t, map[string]int{PartResolver: 1})
}

// If one of two racing dials panics, the other continues.
func TestPanicOfARacingDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &l4test.Survived{}
		u, err := New(Config{Name: "u", Endpoints: endpointsOf("localhost:1")}, Deps{Guard: task.Guard{Count: s.Count},
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				if address == "127.0.0.1:1" {
					time.Sleep(2 * raceDelay)
					panic("a bug")
				}
				return accepts(ctx)
			}})
		if err != nil {
			t.Fatal(err)
		}
		u.learned(u.endpoints[0], placesOf("127.0.0.1:1", "[::1]:1"))
		conn, failure := u.connect(t.Context(), noProgress)
		if failure != nil {
			t.Fatal(failure)
		}
		if got := conn.candidate.String(); got != "[::1]:1" {
			t.Errorf("connected to %s", got)
		}
		conn.closeRaw()
		time.Sleep(2 * raceDelay)
		for _, m := range u.members() {
			if got := m.places.Load(); got != 0 {
				t.Errorf("%s: %d places are taken", m.name, got)
			}
		}
		s.Want(t, map[string]int{PartUpstream: 1})
	})
}
