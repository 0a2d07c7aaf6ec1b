package upstream

import (
	"cmp"
	"context"
	"net/netip"
	"time"

	"ambassador/policy"
)

// HealthConfig says how the health of an upstream's addresses is checked. If Interval
// is zero, it is not checked: only breakers judge addresses.
type HealthConfig struct {
	// Interval is how often the verdict is updated: from the results of sessions since
	// the last update, else by a probe.
	Interval time.Duration
	// Timeout bounds a probe. If zero, a probe may take what an attempt of a session to its
	// address may take, but at least DefaultHealthTimeout; the questions after it, of LogIn,
	// Send, Expect and Check, then have DefaultHealthTimeout.
	Timeout time.Duration
	// Rise and Fall are how many successes or failures in a row change the verdict to
	// healthy or unhealthy. If zero, one.
	Rise, Fall int
	// IdleInterval is how often a healthy address without sessions is probed. If zero,
	// every Interval.
	IdleInterval time.Duration
	// Send is sent by a probe; the answer must contain Expect. Empty: nothing is sent or
	// expected. With Send, Expect or Check there is a probe every Interval, whatever the
	// results of sessions.
	Send, Expect string
	// LogIn returns the user and password with which a probe logs in before it quits.
	// Each probe calls it. Its error means that our side is not ready. Nil: probes do not
	// log in. It needs a protocol whose trials can log in (starttls.Protocol.LogsIn).
	LogIn func() (user, password string, err error)
	// Check is another check of the address's host, besides the connection. It ends with
	// ctx; its error is the cause of an unhealthy address. Nil: there is none.
	Check func(ctx context.Context, host netip.Addr) error
	// OnFailure leaves a working address alone: it is probed only once its breaker is not
	// closed or an attempt timed out, and only if the upstream has another address.
	// A sole address is never probed, and sessions make its trials. A server that takes
	// one connection in its life, like `nc -l`, then serves a session with it. Before the
	// first session the upstream is tried only on Try.
	OnFailure bool
	// KillOnDown ends the sessions of an address that becomes unhealthy.
	KillOnDown bool
}

// questionTimeout bounds the questions of a probe.
func (h *HealthConfig) questionTimeout() time.Duration {
	return cmp.Or(h.Timeout, DefaultHealthTimeout)
}

// talks reports whether a probe can see failures that sessions do not report. A session
// with a server that answers every command with an error is a success.
func (h *HealthConfig) talks() bool { return h.Send != "" || h.Expect != "" }

// asks reports whether there is a check that idle_interval does not delay.
func (h *HealthConfig) asks() bool { return h.Check != nil || h.talks() }

func (h *HealthConfig) fold() policy.HealthConfig {
	return policy.HealthConfig{Rise: h.Rise, Fall: h.Fall}
}

// verdict returns the health of the address.
func (a *Address) verdict() policy.Health {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.health.Verdict()
}

// attemptSucceeded is the cause of a change for the better.
const attemptSucceeded = "an attempt succeeded"

// takeResult returns the last result of sessions since the last call, and its cause. Neutral means that there was no result.
func (a *Address) takeResult() (policy.Outcome, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lastResult := a.lastResult
	a.lastResult = policy.Neutral
	if lastResult == policy.Success {
		return lastResult, attemptSucceeded
	}
	return lastResult, a.cause
}

// judge updates the verdict with the next check of an address. If the address becomes
// unhealthy, that may end its sessions.
func (u *Upstream) judge(a *Address, passed bool, cause string, now time.Time) {
	a.mu.Lock()
	was := a.health.Fold(u.cfg.Health.fold(), passed, cause, now)
	is := a.health.Verdict()
	if !passed {
		a.cause, a.failed = cause, now
	}
	a.down.Store(is == policy.Unhealthy)
	a.mu.Unlock()
	a.proved.Store(passed)
	if !passed {
		a.endpoint.unreached()
	}
	u.logChange(a, was, is, cause)
}

// forget makes the verdict Unknown.
func (u *Upstream) forget(a *Address, cause string, now time.Time) {
	a.mu.Lock()
	was := a.health.Verdict()
	if was != policy.Unknown {
		a.health.Forget(now)
	}
	a.down.Store(false)
	a.mu.Unlock()
	u.logChange(a, was, policy.Unknown, cause)
}

// retryAfterIdentityChange closes the breakers of addresses where TLS failed, if our
// identity or roots have changed since. After the certificate is fixed, no session has
// to wait for a probe. It reports whether there was such an address.
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
		u.forget(m.Address, why, now)
		m.logChange(m.breaker.Probed(m.breaker.Watch(), policy.Success, now, 0), why)
	}
	return any
}

// logChange logs a change of the verdict. If KillOnDown is set, it ends the sessions of an
// address that became unhealthy.
func (u *Upstream) logChange(a *Address, was, is policy.Health, cause string) {
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
