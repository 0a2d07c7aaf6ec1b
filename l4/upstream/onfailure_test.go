package upstream

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// quietHealth is testHealth with OnFailure.
func quietHealth() HealthConfig {
	h := testHealth
	h.OnFailure = true
	return h
}

// dialsTo counts the dials of one address.
func (f *fakeNet) dialsTo(address string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, line := range f.log {
		if strings.HasSuffix(line, " "+address) {
			n++
		}
	}
	return n
}

// A server like `nc -l` accepts one connection in its life. A probe must not be that.
func TestASoleAddressIsNeverProbed(t *testing.T) {
	var up atomic.Bool
	answer := func(ctx context.Context) (net.Conn, error) {
		if up.Load() {
			return says("")(ctx)
		}
		return refuses(ctx)
	}
	prove(t, Config{Health: quietHealth(), Breaker: policy.BreakerConfig{Failures: 2, Open: 5 * time.Second, MaxOpen: 5 * time.Second, Probes: 1}, Required: true, Connect: ConnectConfig{Attempts: 1}}, answer, func(p *proved) {
		time.Sleep(10 * time.Minute)
		if n := p.dials(); n != 0 {
			t.Fatalf("%d probes of a server that no session has used", n)
		}
		for range 4 {
			if _, err := p.connect(p.t.Context(), noProgress); err == nil || err.Reason != outcome.Refused && err.Reason != outcome.BreakerOpen {
				t.Fatalf("a session with a dead server: %v", err)
			}
			synctest.Wait()
		}
		time.Sleep(10 * time.Minute)
		if n := p.dials(); n != 2 || p.address().verdict() != policy.Unknown {
			t.Fatalf("%d dials, %s; want those of 2 sessions, and no verdict", n, p.address().verdict())
		}
		up.Store(true)
		p.session(outcome.OK) // makes the trial of the breaker
		p.await(policy.Healthy, 10*time.Second)
		time.Sleep(10 * time.Minute)
		if n := p.dials(); n != 3 {
			t.Errorf("%d dials, want 3: a healthy server is not probed", n)
		}
	})
}

// With another address to use, probes make the trials of one at which sessions failed.
func TestProbesFollowFailedSessions(t *testing.T) {
	var up atomic.Bool
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": says(""), "127.0.0.1:2": func(ctx context.Context) (net.Conn, error) {
			if up.Load() {
				return says("")(ctx)
			}
			return refuses(ctx)
		}}}
		cfg := Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.1:2"), Health: quietHealth(),
			Breaker: policy.BreakerConfig{Failures: 2, Open: 5 * time.Second, MaxOpen: 5 * time.Second, Probes: 1}}
		u, err := New(cfg, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, u)()
		p := &proved{u, f, t}
		bad := slices.IndexFunc(u.members(), func(m member) bool { return m.Address.name == "127.0.0.1:2" })
		time.Sleep(time.Minute)
		if n := p.dials(); n != 0 {
			t.Fatalf("%d probes before the first session", n)
		}
		for range 8 {
			p.session(outcome.OK)
		}
		before := f.dialsTo("127.0.0.1:2")
		time.Sleep(time.Minute)
		if n := f.dialsTo("127.0.0.1:2"); n < before+3 {
			t.Errorf("%d dials of the dead address, %d of them before it was left to probes", n, before)
		}
		up.Store(true)
		for a := u.members()[bad].Address; a.breaker.State() != policy.Closed || a.verdict() != policy.Healthy; {
			if time.Sleep(time.Second); time.Since(f.began) > 10*time.Minute {
				t.Fatalf("the address works again, and is %s, breaker %s", a.verdict(), a.breaker.State())
			}
		}
		before = p.dials()
		time.Sleep(10 * time.Minute)
		if n := p.dials(); n != before {
			t.Errorf("%d probes after the address works again", n-before)
		}
	})
}

// A question about readiness makes a trial, and nothing else does.
func TestReadinessIsTriedOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": func(ctx context.Context) (net.Conn, error) {
			if up.Load() {
				return says("")(ctx)
			}
			return refuses(ctx)
		}}}
		u, err := New(Config{Name: "up", Endpoints: endpointsOf("127.0.0.1:1"), Required: true, Health: quietHealth()}, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, u)()
		waiting := func(want string) {
			t.Helper()
			time.Sleep(2 * time.Second)
			if got := strings.Join(u.Status().Waiting(), "\n"); (got == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("it waits for %q, want %q", got, want)
			}
		}
		waiting("upstream up: not reached yet; no attempt was made yet")
		u.Try()
		waiting("connection refused")
		up.Store(true)
		waiting("connection refused")
		u.Try()
		waiting("")
		if n := f.dialsTo("127.0.0.1:1"); n != 2 {
			t.Errorf("%d trials, want the 2 that were asked for", n)
		}
	})
}
