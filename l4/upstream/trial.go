package upstream

import (
	"context"
	"errors"
	"time"

	"ambassador/l4/destination"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// Trial is an address that a person tries; with Err, an endpoint whose lookup failed.
type Trial struct {
	Endpoint, Host, Address string // Host: that of Endpoint, to which the TLS configuration belongs
	Err                     *outcome.Error
	address                 *Address
}

// Trials looks up the endpoints, and returns a trial for each of their addresses. Those of
// a dynamic upstream are for the addresses of the destinations in its status.
func (u *Upstream) Trials(ctx context.Context) (out []Trial) {
	if u.destinationCache != nil {
		return u.destinationCache.trials()
	}
	u.followForTrials(ctx)
	for _, e := range u.unresolved() {
		if err := u.resolve(ctx, e); err != nil {
			out = append(out, Trial{Endpoint: e.address, Err: u.failed(ctx, outcome.StageDial, candidate{endpoint: e}, err)})
		}
	}
	return append(out, trialsOf(u.members())...)
}

func trialsOf(members []member) (out []Trial) {
	for _, m := range members {
		out = append(out, Trial{Endpoint: m.endpoint.address, Host: m.endpoint.host, Address: m.name, address: m.Address})
	}
	return out
}

// trials returns a trial for each address of the destinations whose breaker is not closed,
// at most those of maxListed. Sessions have dialled these addresses, so that rules allowed
// them.
func (v *destinationCache) trials() (out []Trial) {
	n := 0
	for _, s := range v.list() {
		if s.breaker.State() == policy.Closed || n == maxListed {
			continue
		}
		n++
		s.endpoint.mu.Lock()
		members := s.endpoint.members
		s.endpoint.mu.Unlock()
		for _, m := range members {
			if m.addr.IsValid() { // else the destination was recalled, and not looked up since
				out = append(out, trialsOf([]member{m})...)
			}
		}
	}
	return out
}

// TrialsOf looks up what a client asks of a dynamic upstream, and returns a trial for each
// address that a session might dial.
func (u *Upstream) TrialsOf(ctx context.Context, d *destination.Destination) ([]Trial, *outcome.Error) {
	t := u.Target(d)
	if err := t.find(ctx, u, ""); err != nil {
		stage := outcome.StageDial
		if refused, ok := errors.AsType[*outcome.Refusal](err); ok {
			stage = refused.Stage
		}
		return nil, u.failed(ctx, stage, candidate{endpoint: t.cached.endpoint}, err)
	}
	t.findRest(ctx, u)
	return trialsOf(t.members), nil
}

// Run does what a probe does, and waits so long for the server's first bytes. Report is
// called when a stage begins.
func (t Trial) Run(ctx context.Context, wait time.Duration, report func(stage outcome.Stage, endpoint, address string, n int)) (first string, err *outcome.Error) {
	p := &prober{upstream: t.address.upstream, address: t.address, report: report, patience: wait}
	err = p.walk(ctx)
	return p.first, err
}

// Now makes the trial at once, whatever is due. If the address passes, sessions use it
// again: its breaker closes, and it is not unhealthy. A failure changes nothing.
func (t Trial) Now(ctx context.Context) error {
	if t.Err != nil {
		return t.Err
	}
	const why = "a trial on demand passed"
	u, a := t.address.upstream, t.address
	p := &prober{upstream: u, address: a, report: noProgress, patience: hearTimeout}
	ctx, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	if err := p.walk(ctx); err != nil {
		return err
	} else if err := p.check(ctx); err != nil {
		return err
	}
	if a.down.Load() {
		u.forget(a, why, time.Now())
	}
	for range 2 { // the first half-opens the breaker, the second closes it
		a.logChange(a.breaker.Probed(a.breaker.Watch(), policy.Success, time.Now(), 0), why)
	}
	return nil
}
