package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/policy"
)

// TestATrialOnDemand asserts that a trial that passes makes an address usable before
// anything is due, and that one that fails changes nothing.
func TestATrialOnDemand(t *testing.T) {
	var up, wrong atomic.Bool
	answer := func(ctx context.Context) (net.Conn, error) {
		if up.Load() {
			return says("")(ctx)
		}
		return refuses(ctx)
	}
	health := testHealth
	health.Interval = time.Hour
	health.Check = func(context.Context, netip.Addr) error {
		if wrong.Load() {
			return errors.New("not the primary")
		}
		return nil
	}
	prove(t, Config{Health: health, Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour, MaxOpen: time.Hour, Probes: 1}, Connect: ConnectConfig{Attempts: 1}}, answer, func(p *proved) {
		synctest.Wait()
		if _, err := p.connect(p.t.Context(), noProgress); err == nil {
			t.Fatal("a session with a dead server")
		}
		for range 3 {
			p.judge(p.address(), false, "dead", time.Now())
		}
		a := p.address()
		state := func(breaker policy.BreakerState, health policy.Health, usable bool) {
			t.Helper()
			if a.breaker.State() != breaker || a.verdict() != health || a.usable(time.Now()) != usable {
				t.Errorf("breaker %s, %s, usable: %t; want %s, %s, %t", a.breaker.State(), a.verdict(), a.usable(time.Now()), breaker, health, usable)
			}
		}
		try := func(want bool) {
			t.Helper()
			for _, one := range p.Trials(p.t.Context()) {
				if err := one.Now(p.t.Context()); (err == nil) != want {
					t.Errorf("the trial ended with %v", err)
				}
			}
		}
		state(policy.Open, policy.Unhealthy, false)
		try(false)
		state(policy.Open, policy.Unhealthy, false)
		up.Store(true)
		wrong.Store(true)
		try(false)
		state(policy.Open, policy.Unhealthy, false)
		wrong.Store(false)
		try(true)
		state(policy.Closed, policy.Unknown, true)
		p.session("ok")
	})
}
