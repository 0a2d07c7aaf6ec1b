package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/lookup"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
	"ambassador/policy"
)

// plan chooses the addresses that one session tries: another address each time while
// there is one, and the address families in turn. It is not safe for concurrent use.
type plan struct {
	upstream      *Upstream
	only          *Address        // if not nil, the only address to try, whatever its state
	probe         bool            // with only: the plan is a prober's, not a session's
	want          Want            // of the session
	tried         []*Address      // in this round
	lasting       []*Address      // addresses that would fail in the same way again
	clientTimeout context.Context // ends with the client's own timeout; nil: the client has none
	rounds        int             // rounds that have ended
	repeats       bool            // addresses are tried again
	last          candidate       // the previous candidate
}

// begin begins a phase of attempt n, if the session is traced.
func (p *plan) begin(stage outcome.Stage, c candidate, n int) {
	if p.want.Trace != nil {
		p.want.Trace.Begin(string(stage), c.String(), n)
	}
}

// members returns the addresses to choose from.
func (p *plan) members() []member {
	if p.want.To != nil {
		return p.want.To.members
	}
	return p.upstream.members()
}

// known returns the addresses whose state is known: the members or, before a dynamic
// upstream has any, the addresses that earlier sessions found for the destination.
func (p *plan) known() []member {
	if p.want.To != nil {
		return p.want.To.known()
	}
	return p.upstream.members()
}

// unresolved lists the endpoints without an address to choose from.
func (p *plan) unresolved() []*endpoint {
	if p.want.To != nil {
		return nil
	}
	return p.upstream.unresolved()
}

// next takes an address, and the permission to try it. If no name resolves, the
// candidate has only its endpoint, and the error is the cause. Other errors are
// ending.ErrTriedAll and *outcome.Refusal.
func (p *plan) next(ctx context.Context) (candidate, error) {
	if p.only != nil {
		return p.single()
	}
	if p.want.To != nil {
		if err := p.want.To.find(ctx, p.upstream, p.want.Session); err != nil {
			return candidate{endpoint: p.want.To.cached.endpoint}, err
		}
	}
	for {
		unknown := p.unresolved() // before take, which finds addresses that are published meanwhile
		if c, ok := p.take(); ok {
			return c, nil
		}
		if len(unknown) == 0 {
			break
		}
		p.want.Trace.Begin(outcome.PhaseDNS, unknown[0].address, 0)
		e, err := p.upstream.discover(ctx, unknown)
		EndLookup(p.want.Trace, err)
		if err != nil {
			if refused, none := errors.AsType[*outcome.Refusal](err); none && len(p.members()) == 0 && len(p.tried) == 0 {
				return candidate{}, refused
			} else if !none && len(p.members()) == 0 {
				return candidate{endpoint: e}, err
			}
			break
		}
	}
	if len(p.tried) > 0 {
		if p.want.To != nil && p.want.To.findRest(ctx, p.upstream) {
			return p.next(ctx)
		}
		return candidate{}, ending.ErrTriedAll
	}
	if p.upstream.retryAfterIdentityChange(p.known(), time.Now()) {
		return p.next(ctx)
	}
	for _, e := range p.upstream.endpoints {
		e.unreached()
	}
	refused := p.refuse(time.Now())
	if refused.Reason == outcome.NoEndpoint {
		if c, ok := p.take(); ok { // a breaker closed after the first take
			return c, nil
		}
	}
	return candidate{}, refused
}

// take is pick, and records the address as tried.
func (p *plan) take() (candidate, bool) {
	c, ok := p.pick(time.Now())
	if !ok {
		return c, false
	}
	p.last, p.tried = c, append(p.tried, c.at)
	return c, true
}

// single takes the only address. After that it returns ending.ErrTriedAll.
func (p *plan) single() (candidate, error) {
	if len(p.tried) > 0 {
		return candidate{}, ending.ErrTriedAll
	}
	p.tried = append(p.tried, p.only)
	c := p.only.candidate(policy.Ticket{}, time.Now())
	if c.probe = p.probe; !c.probe {
		p.only.places.Add(1)
	}
	return c, nil
}

// maxOnStack is how many addresses pick compares without an allocation.
const maxOnStack = 16

// pick chooses a usable address by weight and load. If there is none, it takes the last
// resort: no address is locked out for good.
func (p *plan) pick(now time.Time) (candidate, bool) {
	var onStack [maxOnStack]policy.Candidate
	u, members := p.upstream, p.members()
	all := onStack[:0]
	for i := range members {
		m := &members[i]
		usable := m.usable(now) && !m.full(u.cfg.MaxConnections) && !p.skips(m.Address)
		all = append(all, policy.Candidate{Share: &m.share, Weight: m.weight, Rank: p.rank(m, now),
			Live: int(m.places.Load()), Usable: usable})
	}
	for {
		i := u.balancer.Pick(all, rand.Float64(), rand.Float64())
		if i < 0 {
			return p.lastResort(members, now)
		}
		if c, ok := members[i].permit(now, u.cfg.MaxConnections); ok {
			c.at.chosen(now)
			return c, true
		}
		all[i].Usable = false // another session was faster
	}
}

// rank orders addresses by priority, and then by distance. Within these, addresses that
// answered in time come before slow ones, and then the address family whose turn it is comes first.
func (p *plan) rank(m *member, now time.Time) int {
	second := m.other
	if p.last.at != nil && m.unix == "" && p.last.at.unix == "" {
		second = m.addr.Addr().Is4() == p.last.at.addr.Addr().Is4()
	}
	rank := (m.priority*(lookup.MaxDistance+1) + m.distance) * 4
	if m.isSlow(now) {
		rank += 2
	}
	if second {
		rank++
	}
	return rank
}

// lastResort takes the address whose breaker has a trial due: a half-open one first,
// then the one whose trial was due first. If no trial is due, it takes an unhealthy
// address whose last result was good.
func (p *plan) lastResort(members []member, now time.Time) (candidate, bool) {
	var nearest *Address
	for i := range members {
		a := members[i].Address
		if a.breaker.State() == policy.Closed || !a.breaker.Usable(now) || p.skips(a) {
			continue
		}
		if nearest == nil || a.breaker.RetryAt().Before(nearest.breaker.RetryAt()) {
			nearest = a
		}
	}
	if nearest == nil {
		nearest = p.proved(members)
	}
	if nearest == nil {
		return candidate{}, false
	}
	return nearest.permit(now, p.upstream.cfg.MaxConnections)
}

// proved returns an unhealthy address whose last result was good. It must pass more
// checks before it is preferred, but it is better than none.
func (p *plan) proved(members []member) *Address {
	var best *member
	for i := range members {
		m := &members[i]
		if m.breaker.State() == policy.Closed && m.proved.Load() && !p.skips(m.Address) && (best == nil || m.priority < best.priority) {
			best = m
		}
	}
	if best == nil {
		return nil
	}
	return best.Address
}

func (p *plan) skips(a *Address) bool {
	return slices.Contains(p.tried, a) || slices.Contains(p.lasting, a)
}

// maxRequested is how many addresses of a name that a client asks for are tried in any
// case. The owner of the name could otherwise let us try a thousand.
const maxRequested = 16

// hasUntried reports whether there is an address that may work and that the session has
// not tried: it deserves an attempt beyond connect.attempts.
func (p *plan) hasUntried() bool {
	if p.repeats || p.only != nil || p.want.Exact || p.want.To != nil && len(p.tried) >= maxRequested {
		return false
	}
	now := time.Now()
	return slices.ContainsFunc(p.members(), func(m member) bool {
		return !p.skips(m.Address) && m.usable(now) && !m.full(p.upstream.cfg.MaxConnections)
	})
}

// again begins a new round. It returns false if no address is worth trying again.
func (p *plan) again() bool {
	p.rounds++
	p.tried, p.repeats = nil, true
	now := time.Now()
	return slices.ContainsFunc(p.members(), func(m member) bool {
		return !p.skips(m.Address) && m.usable(now)
	})
}

// trialLook is how long a session waits at most before it checks again whether a trial
// is due: of several breakers it watches only one.
const trialLook = 500 * time.Millisecond

// awaitTrial waits until the next trial of an open breaker may be due, or has ended,
// and begins a new round. It returns false if nothing is worth trying again, if ctx has
// ended, or if the next trial is due after the deadline of ctx. Where a prober makes the
// trials, that deadline does not matter: the next trial may be sooner.
func (p *plan) awaitTrial(ctx context.Context) bool {
	now := time.Now()
	next := p.nextTrial(now)
	if next == nil { // the trial succeeded a moment ago, or no breaker was open
		return p.again()
	}
	changed, wait := next.breaker.Changed(), next.retryIn(now)
	if by, ok := ctx.Deadline(); ok && !next.asked.Load() && now.Add(wait).After(by) {
		return false
	}
	p.tried, p.repeats = nil, true
	if wait <= 0 { // another session or a prober makes the trial
		wait = trialLook
	}
	return task.Wait(ctx, min(wait, trialLook), changed) == nil
}

// nextTrial returns the address whose next trial is due first, among those that are
// worth trying again. It returns nil if no breaker is open.
func (p *plan) nextTrial(now time.Time) (next *Address) {
	for _, m := range p.known() {
		if m.breaker.State() == policy.Closed || slices.Contains(p.lasting, m.Address) {
			continue
		}
		if next == nil || m.retryIn(now) < next.retryIn(now) {
			next = m.Address
		}
	}
	return next
}

// isLast reports whether no address is left to try after c in this round. One sibling
// of c does not count: the dial to c tries both.
func (p *plan) isLast(c candidate) bool {
	if p.only != nil {
		return true
	}
	now, siblings := time.Now(), 0
	for _, m := range p.members() {
		switch {
		case m.Address == c.at || p.skips(m.Address) || !m.usable(now) || m.full(p.upstream.cfg.MaxConnections):
		case c.at.unix == "" && m.beside(c) && siblings == 0:
			siblings++
		default:
			return false
		}
	}
	return true
}

// hasSibling reports whether sibling could find an address. If not, a dial needs no
// race.
func (p *plan) hasSibling(c candidate) bool {
	return p.only == nil && c.at.unix == "" && slices.ContainsFunc(p.members(), func(m member) bool {
		return m.beside(c)
	})
}

// beside reports whether m has the endpoint of c and the other address family.
func (m *member) beside(c candidate) bool {
	return m.endpoint == c.endpoint && m.addr.Addr().Is4() != c.at.addr.Addr().Is4()
}

// sibling takes an untried address of the same endpoint and the other address family.
func (p *plan) sibling(c candidate) (candidate, bool) {
	if p.only != nil || c.at.unix != "" {
		return candidate{}, false
	}
	now := time.Now()
	for _, m := range p.members() {
		if !m.beside(c) || p.skips(m.Address) || !m.usable(now) {
			continue
		}
		if o, ok := m.permit(now, p.upstream.cfg.MaxConnections); ok {
			p.tried = append(p.tried, m.Address)
			return o, true
		}
	}
	return candidate{}, false
}

// clientGaveUp reports whether a client with a timeout shorter than connect.timeout does
// not wait any more. An attempt that ends then says nothing about the upstream.
func (p *plan) clientGaveUp() bool { return p.clientTimeout != nil && p.clientTimeout.Err() != nil }

// failed records that an attempt at c ended with e. An address that would fail in the
// same way again is not worth trying again.
func (p *plan) failed(c candidate, e *outcome.Error) {
	if c.at != nil && e.Lasting() {
		p.lasting = append(p.lasting, c.at)
	}
}

// refuse returns why no address can be tried: a limit, else an open breaker, else
// health. A client of a dynamic upstream gets only the public text, without addresses
// and their failures. Those come from sessions of other listeners, whose rules may
// allow more.
func (p *plan) refuse(now time.Time) *outcome.Refusal {
	r := p.refusal(now)
	if p.want.To == nil {
		r.Public = ""
	}
	return r
}

func (p *plan) refusal(now time.Time) *outcome.Refusal {
	u := p.upstream
	var open, full, down *Address
	for _, m := range p.known() {
		switch {
		case m.breaker.State() != policy.Closed && (open == nil || m.retryIn(now) < open.retryIn(now)):
			open = m.Address
		case m.breaker.State() == policy.Closed && m.full(u.cfg.MaxConnections):
			full = m.Address
		case down == nil:
			down = m.Address
		}
	}
	switch {
	case full != nil:
		key := "upstreams." + u.cfg.Name + ".limits.connections"
		return &outcome.Refusal{Stage: outcome.StagePermit, Reason: outcome.Limit, Limit: key, Public: key + " is reached",
			Text: fmt.Sprintf("%s is open as often as %s (%d) allows", full.name, key, u.cfg.MaxConnections)}
	case open != nil:
		cause, _ := open.lastFailure()
		wait := open.retryIn(now)
		return &outcome.Refusal{Stage: outcome.StagePermit, Reason: outcome.BreakerOpen, RetryIn: wait, Public: fmt.Sprintf("the circuit breaker is open; next attempt in %v", wait.Round(time.Millisecond)),
			Text: fmt.Sprintf("the circuit breaker of %s is open, the next attempt is in %v; the last failure: %s", open.name, wait, cause)}
	case down != nil:
		cause, _ := down.lastFailure()
		return &outcome.Refusal{Stage: outcome.StagePermit, Reason: outcome.NoEndpoint, Public: "no address can be used",
			Text: fmt.Sprintf("%s is %s; the last failure: %s", down.name, down.verdict(), cause)}
	}
	return &outcome.Refusal{Stage: outcome.StagePermit, Reason: outcome.NoEndpoint, Text: "no address is known", Public: "no address can be used"}
}
