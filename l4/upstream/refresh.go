package upstream

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"ambassador/l4/lookup"
	"ambassador/l4/nameserver"
	"ambassador/l4/task"
	"ambassador/policy"
)

// refresh looks up the endpoint every cfg.Resolve. It does so sooner while lookups fail,
// and while no address of the endpoint can be reached: the service may have moved. It
// ends with ctx; the server waits for it.
func (u *Upstream) refresh(ctx context.Context, e *endpoint) {
	every := cmp.Or(u.cfg.Resolve, DefaultResolve)
	failing := policy.Backoff{Base: time.Second, Max: every}
	moved := policy.Backoff{Base: time.Second, Max: min(every, maxMoved)}
	for failures, requests := 0, 0; ctx.Err() == nil; {
		wait := policy.Backoff{Base: every}.Pause(0, rand.Float64()/5) // up to a tenth sooner
		if u.resolve(ctx, e) != nil {
			wait = min(wait, failing.Pause(failures, rand.Float64()), e.untilDropped(time.Now(), u.cfg.keepGone()))
			failures++
		} else {
			failures = 0
		}
		pause := min(wait, moved.Pause(requests, rand.Float64()))
		task.Wait(ctx, pause, nil)
		if requests++; !e.awaitRequest(ctx, wait-pause) {
			requests = 0
		}
	}
}

// maxMoved bounds the pause between the lookups of a name whose addresses cannot be
// reached. A client without an ambassador looks the name up for each connection.
const maxMoved = 5 * time.Second

// awaitRequest waits for d at most, and reports whether lookAgain was called since the
// last time.
func (e *endpoint) awaitRequest(ctx context.Context, d time.Duration) bool {
	task.Leave(ctx)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-e.again:
		return true
	default:
	}
	select {
	case <-e.again:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// lookAgain asks for a lookup soon. It does not wait.
func (e *endpoint) lookAgain() {
	select {
	case e.again <- struct{}{}:
	default: // it was asked for already, or there is no name
	}
}

// unreached asks for a lookup soon, unless the last result of an address was good.
func (e *endpoint) unreached() {
	if e.again == nil {
		return
	}
	e.mu.Lock()
	reached := slices.ContainsFunc(e.members, func(m member) bool { return m.proved.Load() })
	e.mu.Unlock()
	if !reached {
		e.lookAgain()
	}
}

// delay returns how long a lookup awaits the second address family. Sessions may wait
// for the first addresses; for the others nobody waits.
func (e *endpoint) delay() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.members) == 0 {
		return nameserver.Quick
	}
	return nameserver.Patient
}

// missing returns the known addresses of the family that found lacks, with mu held.
func (e *endpoint) missing(found []lookup.Place) (out []member) {
	for _, m := range e.members {
		same := func(p lookup.Place) bool { return p.Addr.Addr().Is4() == m.addr.Addr().Is4() }
		if !slices.ContainsFunc(found, same) {
			out = append(out, m)
		}
	}
	return out
}

// expire drops the addresses of a name that has not existed for as long as keep, by the
// result of a lookup, with mu held. It returns the dropped addresses. A lookup that
// fails in another way says nothing about the name.
func (e *endpoint) expire(err error, now time.Time, keep time.Duration) (dropped string) {
	dns, ok := errors.AsType[*net.DNSError](err)
	switch {
	case err == nil:
		e.gone = time.Time{}
		return ""
	case !ok || !dns.IsNotFound:
		return ""
	case e.gone.IsZero():
		e.gone = now
	}
	if now.Sub(e.gone) < keep {
		return ""
	}
	dropped, e.members = namesOf(e.members), nil
	return dropped
}

// untilDropped returns the time until the addresses of a name that does not exist are
// due to be dropped. There is no such time if the name exists, or has no addresses.
func (e *endpoint) untilDropped(now time.Time, keep time.Duration) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone.IsZero() || len(e.members) == 0 {
		return math.MaxInt64
	}
	return max(e.gone.Add(keep).Sub(now), time.Millisecond)
}

// keepGone returns how long the addresses of a name stay after it ceased to exist.
func (c *Config) keepGone() time.Duration {
	return max(cmp.Or(c.KeepGone, DefaultKeepGone), 0)
}
