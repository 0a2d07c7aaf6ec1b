package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
	"ambassador/policy"
)

// fakeNet answers dials from a script, in the fake time of a bubble.
type fakeNet struct {
	answer map[string]func(ctx context.Context) (net.Conn, error)

	mu    sync.Mutex
	began time.Time
	log   []string // "250ms 127.0.0.1:1"
}

func (f *fakeNet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	f.mu.Lock()
	f.log = append(f.log, fmt.Sprint(time.Since(f.began).Round(time.Millisecond), " ", address))
	f.mu.Unlock()
	return f.answer[address](ctx)
}

func accepts(context.Context) (net.Conn, error) { c, _ := net.Pipe(); return c, nil }

func refuses(context.Context) (net.Conn, error) {
	return nil, l4test.Sys("connect", syscall.ECONNREFUSED)
}

func unreachable(context.Context) (net.Conn, error) {
	return nil, l4test.Sys("connect", syscall.EHOSTUNREACH)
}

func hangs(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// after returns a dial that answers like next, but only after d.
func after(d time.Duration, next func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		if err := task.Wait(ctx, d, nil); err != nil {
			return nil, err
		}
		return next(ctx)
	}
}

type connectResult struct {
	address  string
	err      *outcome.Error
	took     time.Duration
	attempts []outcome.Reason // as the observer got them
	dials    []string
}

// connectIn runs one connect in a bubble. Pauses have jitter, so tests compare times
// only if there was no pause before.
func connectIn(t *testing.T, f *fakeNet, cfg Config, cancelAfter time.Duration) (res connectResult) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f.began = time.Now()
		cfg.Name = "u"
		u, err := New(cfg, Deps{Dial: f.dial, Log: slog.New(slog.DiscardHandler), Observer: Observer{
			Attempt: func(_ string, r outcome.Reason) { res.attempts = append(res.attempts, r) }}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if cancelAfter > 0 {
			time.AfterFunc(cancelAfter, cancel)
		}
		conn, failure := u.connect(ctx, noProgress)
		res.took, res.err = time.Since(f.began), failure
		if conn != nil {
			res.address = conn.candidate.String()
			conn.closeRaw()
		}
		synctest.Wait() // the losers of races end
		res.dials = f.log
	})
	return res
}

func endpointsOf(addresses ...string) (out []EndpointConfig) {
	for _, a := range addresses {
		out = append(out, EndpointConfig{Address: a})
	}
	return out
}

type answers map[string]func(context.Context) (net.Conn, error)

func TestConnectGoesToAnotherAddress(t *testing.T) {
	f := &fakeNet{answer: answers{"127.0.0.1:1": refuses, "127.0.0.2:1": accepts}}
	r := connectIn(t, f, Config{Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1")}, 0)
	if r.address != "127.0.0.2:1" || r.took != 0 || !slices.Equal(r.attempts, []outcome.Reason{outcome.Refused}) {
		t.Errorf("connected to %q after %v, heard %v; want the second address at once, one refused", r.address, r.took, r.attempts)
	}
}

// Every address is tried once while there is time, even if there are more of them than
// attempts. No address is repeated beyond these.
func TestConnectTriesEveryAddress(t *testing.T) {
	dead := answers{"127.0.0.1:1": refuses, "127.0.0.2:1": hangs, "127.0.0.3:1": refuses, "127.0.0.4:1": hangs, "127.0.0.5:1": accepts}
	all := endpointsOf("127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1", "127.0.0.4:1", "127.0.0.5:1")
	for _, attempts := range []int{0, 1, 3} {
		r := connectIn(t, &fakeNet{answer: dead}, Config{Endpoints: all, Connect: ConnectConfig{Attempts: attempts}}, 0)
		if r.err != nil || r.address != "127.0.0.5:1" || len(r.dials) != 5 || r.took != 2*DefaultAttemptTimeout {
			t.Errorf("attempts: %d: %q after %v and %v, %v; want the fifth", attempts, r.address, r.took, r.dials, r.err)
		}
	}
	r := connectIn(t, &fakeNet{answer: dead}, Config{Endpoints: all[:4], Connect: ConnectConfig{Attempts: 2}}, 0)
	if r.err == nil || len(r.dials) != 4 {
		t.Errorf("without a live one: %v after %v; want each address once", r.err, r.dials)
	}
	r = connectIn(t, &fakeNet{answer: dead}, Config{Endpoints: all, Connect: ConnectConfig{Timeout: 4 * time.Second}}, 0)
	if r.err == nil || r.took != 4*time.Second {
		t.Errorf("with 4 s for all: %v after %v", r.err, r.took)
	}
	u, err := New(Config{Name: "u", Endpoints: all}, Deps{Dial: (&fakeNet{answer: dead}).dial, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, exact := range []bool{false, true} { // a client that sets attempts gets no more
		p := plan{upstream: u, want: Want{Exact: exact}}
		if p.hasUntried() == exact {
			t.Errorf("exact: %v, and an untried address is worth an attempt: %v", exact, !exact)
		}
	}
}

func TestConnectTriesTheOnlyAddressAgainAfterAPause(t *testing.T) {
	n := 0
	third := func(ctx context.Context) (net.Conn, error) {
		if n++; n < 3 {
			return refuses(ctx)
		}
		return accepts(ctx)
	}
	r := connectIn(t, &fakeNet{answer: answers{"127.0.0.1:1": third}}, Config{Endpoints: endpointsOf("127.0.0.1:1")}, 0)
	if r.err != nil || r.took < 150*time.Millisecond || r.took > 300*time.Millisecond {
		t.Errorf("connected after %v (%v); want two pauses of 50–100 ms and 100–200 ms", r.took, r.err)
	}
}

func TestConnectEndsWithTheLastFailure(t *testing.T) {
	r := connectIn(t, &fakeNet{answer: answers{"127.0.0.1:1": refuses}}, Config{Endpoints: endpointsOf("127.0.0.1:1")}, 0)
	if r.err == nil || r.err.Reason != outcome.Refused || r.err.Stage != outcome.StageDial || len(r.dials) != 3 || len(r.attempts) != 3 {
		t.Fatalf("%v after %v; want refused at dial after three attempts", r.err, r.dials)
	}
	if want := "dial u 127.0.0.1:1"; !strings.HasPrefix(r.err.Error(), want) || !errors.Is(r.err, syscall.ECONNREFUSED) {
		t.Errorf("error %q; want it to begin with %q and to wrap the system's", r.err, want)
	}
}

func TestConnectBoundsAnAttemptAndTheWhole(t *testing.T) {
	f := &fakeNet{answer: answers{"127.0.0.1:1": hangs, "127.0.0.2:1": after(time.Second, accepts)}}
	cfg := Config{Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"), Connect: ConnectConfig{AttemptTimeout: 2 * time.Second}}
	r := connectIn(t, f, cfg, 0)
	if r.address != "127.0.0.2:1" || r.took != 3*time.Second || !slices.Equal(r.attempts, []outcome.Reason{outcome.Timeout}) {
		t.Errorf("connected to %q after %v, heard %v; want the second after attempt_timeout and a second", r.address, r.took, r.attempts)
	}
	f = &fakeNet{answer: answers{"127.0.0.1:1": hangs}}
	cfg = Config{Endpoints: endpointsOf("127.0.0.1:1"), Connect: ConnectConfig{Timeout: 5 * time.Second, AttemptTimeout: 4 * time.Second, Attempts: 9}}
	r = connectIn(t, f, cfg, 0)
	if r.err == nil || r.err.Reason != outcome.Timeout || r.took != 5*time.Second {
		t.Errorf("%v after %v; want timeout after connect.timeout", r.err, r.took)
	}
}

func TestConnectCancelledIsNeutral(t *testing.T) {
	r := connectIn(t, &fakeNet{answer: answers{"127.0.0.1:1": hangs}}, Config{Endpoints: endpointsOf("127.0.0.1:1")}, 100*time.Millisecond)
	if r.err == nil || r.took != 100*time.Millisecond || len(r.attempts) != 0 {
		t.Errorf("%v after %v, heard %v; want an end at once, and nothing heard", r.err, r.took, r.attempts)
	}
}

func TestConnectWithoutIdentityDialsNobody(t *testing.T) {
	cfg := Config{Endpoints: endpointsOf("127.0.0.1:1"), IdentityReady: func() error { return errors.New("expired yesterday") }}
	r := connectIn(t, &fakeNet{}, cfg, 0)
	if r.err == nil || r.err.Reason != outcome.NoIdentity || len(r.dials) != 0 || len(r.attempts) != 1 {
		t.Errorf("%v after dials %v, heard %v; want no_identity once and no dial", r.err, r.dials, r.attempts)
	}
}

// An attempt waits for an identity that is expected at once, within attempt_timeout.
func TestConnectAwaitsAnIdentity(t *testing.T) {
	ready := errors.New("not enrolled yet")
	await := func(after time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := task.Wait(ctx, after, nil); err != nil {
				return ready
			}
			return nil
		}
	}
	cfg := Config{Endpoints: endpointsOf("127.0.0.1:1"), IdentityReady: func() error { return ready }, AwaitIdentity: await(2 * time.Second)}
	r := connectIn(t, &fakeNet{answer: answers{"127.0.0.1:1": accepts}}, cfg, 0)
	if r.err != nil || r.took != 2*time.Second || len(r.dials) != 1 {
		t.Errorf("%v after %v and dials %v; want one dial after 2 s", r.err, r.took, r.dials)
	}
	cfg.AwaitIdentity, cfg.Connect.Attempts = await(time.Minute), 1
	r = connectIn(t, &fakeNet{}, cfg, 0)
	if r.err == nil || r.err.Reason != outcome.NoIdentity || r.took != DefaultAttemptTimeout || len(r.dials) != 0 {
		t.Errorf("%v after %v; want no_identity after attempt_timeout", r.err, r.took)
	}
}

// raceIn dials one address that has a sibling of the other family.
func raceIn(t *testing.T, six, four func(context.Context) (net.Conn, error)) (address string, dials []string, attempts []outcome.Reason, took time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{"[2001:db8::1]:1": six, "10.0.0.1:1": four}}
		u, _ := New(Config{Name: "u", Endpoints: endpointsOf("name:1")}, Deps{Dial: f.dial, Observer: Observer{
			Attempt: func(_ string, r outcome.Reason) { attempts = append(attempts, r) }}})
		u.learned(u.endpoints[0], placesOf("[2001:db8::1]:1", "10.0.0.1:1"))
		p := &plan{upstream: u}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		c, _ := p.next(ctx)
		conn := &Conn{opening: &opening{}, upstream: u, candidate: c}
		err = u.dialTo(ctx, p, conn)
		took, address = time.Since(f.began), conn.candidate.String()
		conn.Settle("", nil)
		conn.closeRaw()
		synctest.Wait()
		dials = f.log
		for _, m := range u.members() {
			if n := m.places.Load(); n != 0 {
				t.Errorf("%s has %d places left", m.name, n)
			}
		}
	})
	return
}

func TestDialRacesTheOtherFamily(t *testing.T) {
	slow := after(400*time.Millisecond, accepts)
	for _, tt := range []struct {
		name      string
		six, four func(context.Context) (net.Conn, error)
		want      string
		took      time.Duration
		dials     int
		reasons   []outcome.Reason
	}{
		{"fast first: no race", accepts, accepts, "[2001:db8::1]:1", 0, 1, nil},
		{"first hangs: the other wins, the loser is neutral", hangs, accepts, "10.0.0.1:1", 250 * time.Millisecond, 2, nil},
		{"first is slow but sooner", slow, slow, "[2001:db8::1]:1", 400 * time.Millisecond, 2, nil},
		{"first fails during the race", after(300*time.Millisecond, refuses), slow, "10.0.0.1:1", 650 * time.Millisecond, 2, []outcome.Reason{outcome.Refused}},
		{"the other fails, the first goes on", slow, refuses, "[2001:db8::1]:1", 400 * time.Millisecond, 2, []outcome.Reason{outcome.Refused}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, dials, reasons, took, err := raceIn(t, tt.six, tt.four)
			if err != nil || got != tt.want || took != tt.took || len(dials) != tt.dials || !slices.Equal(reasons, tt.reasons) {
				t.Errorf("%s after %v, dials %v, heard %v, error %v; want %s after %v, %d dials, heard %v",
					got, took, dials, reasons, err, tt.want, tt.took, tt.dials, tt.reasons)
			}
		})
	}
	t.Run("both fail", func(t *testing.T) {
		_, _, reasons, took, err := raceIn(t, hangs, refuses)
		if !netconn.IsTimeout(err) || took != 3*time.Second || !slices.Equal(reasons, []outcome.Reason{outcome.Refused}) {
			t.Errorf("error %v after %v, heard %v", err, took, reasons)
		}
	})
}

func TestConnectFailsFastWhileTheBreakerIsOpen(t *testing.T) {
	alive := false
	answer := func(ctx context.Context) (net.Conn, error) {
		if alive {
			return accepts(ctx)
		}
		return refuses(ctx)
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{answer: answers{"127.0.0.1:1": answer}}
		u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"),
			Breaker: policy.BreakerConfig{Failures: 5, Open: 5 * time.Second, MaxOpen: 30 * time.Second}}, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		session := func() (*Conn, *outcome.Error, time.Duration) {
			start := time.Now()
			conn, err := u.connect(t.Context(), noProgress)
			return conn, err, time.Since(start)
		}
		if _, err, _ := session(); err.Reason != outcome.Refused || err.Stage != outcome.StageDial || len(f.log) != 3 {
			t.Fatalf("while closed: %v (%s) after %v", err, err.Reason, f.log)
		}
		_, failure, took := session() // two attempts: the trial of the only address is not awaited
		if failure.Reason != outcome.Refused || took > 100*time.Millisecond || len(f.log) != 5 {
			t.Fatalf("while it opens: %v (%s) in %v after %v", failure, failure.Reason, took, f.log)
		}
		_, failure, _ = session()
		time.Sleep(failure.RetryIn)
		if _, err, took := session(); err.Reason != outcome.Refused || took != 0 || len(f.log) != 6 {
			t.Fatalf("the first trial: %v (%s) in %v after %v", err, err.Reason, took, f.log)
		}
		_, failure, took = session()
		if failure.Reason != outcome.BreakerOpen || failure.Stage != outcome.StagePermit || took != 0 || failure.RetryIn <= 5*time.Second || failure.RetryIn > 10*time.Second ||
			!strings.Contains(failure.Error(), "connection refused") || len(f.log) != 6 {
			t.Errorf("while open: %v (%s) after %v, retry in %v, %d dials", failure, failure.Reason, took, failure.RetryIn, len(f.log))
		}
		time.Sleep(failure.RetryIn)
		if _, err, took := session(); err.Reason != outcome.Refused || took != 0 || len(f.log) != 7 {
			t.Errorf("the trial: %v (%s), %d dials", err, err.Reason, len(f.log))
		}
		if _, err, _ := session(); err.Reason != outcome.BreakerOpen || err.RetryIn <= 10*time.Second {
			t.Errorf("after the trial: %v, retry in %v", err, err.RetryIn)
		}
		alive = true
		time.Sleep(20 * time.Second)
		conn, failure, _ := session()
		if failure != nil {
			t.Fatalf("the second trial: %v", failure)
		}
		if _, err, _ := session(); err == nil || err.Reason != outcome.BreakerOpen {
			t.Errorf("beside the trial: %v", err)
		}
		conn.Succeeded()
		conn.closeRaw()
		conn, failure, _ = session()
		if failure != nil {
			t.Fatalf("after a success: %v", failure)
		}
		conn.Abort(nil)
		if n := u.members()[0].places.Load(); n != 0 {
			t.Errorf("%d places left", n)
		}
	})
}

func TestConnectSettlesEachTicketOnce(t *testing.T) {
	f := &fakeNet{answer: answers{"127.0.0.1:1": refuses, "127.0.0.2:1": accepts}}
	u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"),
		Breaker: policy.BreakerConfig{Failures: 2, Open: time.Hour}}, Deps{Dial: f.dial})
	if err != nil {
		t.Fatal(err)
	}
	for u.members()[0].breaker.State() != policy.Open || u.members()[1].breaker.State() != policy.Open {
		conn, failure := u.connect(t.Context(), noProgress)
		if failure != nil {
			continue // only the dead address was left; it fails until its breaker opens
		}
		conn.Settle(outcome.UpstreamEarlyClose, errors.New("closed early"))
		conn.Succeeded() // has no effect: the attempt is settled
		conn.Settle("", nil)
		conn.Abort(nil)
		conn.closeRaw()
	}
	if got := len(f.log); got > 6 {
		t.Errorf("%d dials until both breakers were open", got)
	}
	for _, m := range u.members() {
		if m.breaker.State() != policy.Open || m.places.Load() != 0 {
			t.Errorf("%s: breaker %v, %d places", m.name, m.breaker.State(), m.places.Load())
		}
	}
}

// After an address was too slow once, others are preferred for the first open time of a
// breaker, or until it answers. Each attempt at a slow address costs attempt_timeout.
func TestSlowAddressIsNotPreferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": hangs, "127.0.0.2:1": accepts}}
		u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"), Connect: ConnectConfig{AttemptTimeout: time.Second},
			Breaker: policy.BreakerConfig{Failures: 5, Open: 5 * time.Second}}, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		waits := func(n int) int { // at the same time
			var slow atomic.Int64
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					start := time.Now()
					conn, err := u.connect(t.Context(), noProgress)
					if err != nil {
						t.Error(err)
						return
					}
					if time.Since(start) > 0 {
						slow.Add(1)
					}
					conn.Succeeded()
					conn.closeRaw()
				})
				synctest.Wait()
			}
			all.Wait()
			return int(slow.Load())
		}
		if n := waits(20); n != 10 {
			t.Errorf("%d of 20 sessions waited, want those that met it before it was known", n)
		}
		if n := waits(20); n != 0 {
			t.Errorf("%d of 20 sessions waited, want none once it is known", n)
		}
		time.Sleep(5 * time.Second)
		if n := waits(20); n != 1 {
			t.Errorf("%d of 20 sessions waited after the time, want one that tries it again", n)
		}
		f.answer["127.0.0.1:1"] = accepts
		time.Sleep(5 * time.Second)
		if n := waits(4); n != 0 || u.members()[0].isSlow(time.Now()) {
			t.Errorf("%d of 4 sessions waited for an address that answers", n)
		}
	})
}

// connect is ConnectFor as the upstream is configured.
func (u *Upstream) connect(ctx context.Context, report progress) (*Conn, *outcome.Error) {
	return u.ConnectFor(ctx, Want{Connect: u.cfg.Connect}, report)
}
