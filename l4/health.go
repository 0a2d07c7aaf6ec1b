package l4

import (
	"context"
	"net/netip"
	"time"

	"ambassador/policy"
)

// HealthConfig is how the health of an upstream's addresses is told. If Interval
// is zero, it is not: only breakers judge.
type HealthConfig struct {
	// Interval is how often the verdict is brought up to date: by what sessions saw
	// meanwhile, else by a probe.
	Interval time.Duration
	// Timeout bounds a probe. If zero, DefaultHealthTimeout.
	Timeout time.Duration
	// Rise and Fall are how many in a row change the verdict. If zero, one.
	Rise, Fall int
	// IdleInterval is how often a healthy address without sessions is probed. If
	// zero, that is every interval.
	IdleInterval time.Duration
	// Send is sent by a probe; Expect must be in what comes back. Empty: nothing.
	// With one of them, and with Check, there is a probe every Interval, whatever
	// sessions see.
	Send, Expect string
	// LogIn says as whom a probe logs in and quits, anew each time. Its error means
	// that our side is not ready. Nil: probes do not log in. Only a protocol whose
	// trials can has it (starttls.Protocol.LogsIn).
	LogIn func() (user, password string, err error)
	// Check asks something else of the address's host, beside the connection. It
	// ends with ctx; its error is the cause of an unhealthy address. Nil: nothing.
	Check func(ctx context.Context, host netip.Addr) error
	// KillOnDown ends the sessions of an address that becomes unhealthy.
	KillOnDown bool
}

func (h *HealthConfig) timeout() time.Duration { return orDefault(h.Timeout, DefaultHealthTimeout) }

// talks says whether a probe hears what no session tells: a session with a server
// that answers every command with an error is a good one.
func (h *HealthConfig) talks() bool { return h.Send != "" || h.Expect != "" }

// asks says whether there is a question that idle_interval does not put off.
func (h *HealthConfig) asks() bool { return h.Check != nil || h.talks() }

func (h *HealthConfig) fold() policy.HealthConfig {
	return policy.HealthConfig{Rise: h.Rise, Fall: h.Fall}
}

// verdict is what health says of the address.
func (a *address) verdict() policy.Health {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.health.Verdict()
}

// takeHeard is what sessions have seen since the last call; Neutral is nothing.
func (a *address) takeHeard() (policy.Outcome, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	heard := a.heard
	a.heard = policy.Neutral
	return heard, a.cause
}

// judge takes the next check of an address. The last session of an address that
// goes down may be ended.
func (u *Upstream) judge(a *address, passed bool, cause string, now time.Time) {
	a.mu.Lock()
	was := a.health.Fold(u.cfg.Health.fold(), passed, cause, now)
	is := a.health.Verdict()
	if !passed {
		a.cause, a.failed = cause, now
	}
	a.down.Store(is == policy.Unhealthy)
	a.mu.Unlock()
	a.proved.Store(passed)
	u.turned(a, was, is, cause)
}

// forget makes the verdict Unknown.
func (u *Upstream) forget(a *address, cause string, now time.Time) {
	a.mu.Lock()
	was := a.health.Verdict()
	if was != policy.Unknown {
		a.health.Forget(now)
	}
	a.down.Store(false)
	a.mu.Unlock()
	u.turned(a, was, policy.Unknown, cause)
}

// retryAfterIdentityChange closes the breakers of addresses where TLS failed, if our
// identity or roots have changed since: with a fixed certificate nothing has to wait for
// a probe. It says whether it has closed any.
func (u *Upstream) retryAfterIdentityChange(members []member, now time.Time) (any bool) {
	const why = "our identity or roots have changed since TLS failed"
	for _, m := range members {
		old := m.refusedWith.Load()
		if old == nil {
			continue
		}
		cfg, err := u.cfg.TLS(m.endpoint.host, m.name)
		if err != nil || cfg == old || !m.refusedWith.CompareAndSwap(old, nil) {
			continue
		}
		any = true
		u.forget(m.address, why, now)
		m.turned(m.breaker.Probed(m.breaker.Watch(), policy.Success, now, 0), why)
	}
	return any
}

// turned logs a change of the verdict, and ends the sessions of an address that
// went down where that is wanted.
func (u *Upstream) turned(a *address, was, is policy.Health, cause string) {
	switch {
	case was == is:
	case is == policy.Unhealthy:
		a.log().Warn("health", "from", string(was), "to", string(is), "cause", cause)
		if u.cfg.Health.KillOnDown && u.kill != nil {
			u.kill(a)
		}
	default:
		a.log().Info("health", "from", string(was), "to", string(is), "cause", cause)
	}
}
