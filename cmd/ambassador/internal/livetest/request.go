package livetest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"ambassador/cmd/ambassador/internal/explain"
	"ambassador/l4/destination"
	"ambassador/l4/ending"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// request opens a destination as a client of a listener would, without sending a byte of
// it. TesterOf makes a tester of the named upstream.
func request(ctx context.Context, q *explain.Question, testerOf func(name string) *tester) Destination {
	d, to, err := q.Request(ctx)
	r := Destination{Destination: to.String(), Listener: q.Listener(), Addresses: []Address{}}
	r.Stages = []Stage{ruled(q, &d, err)}
	if !r.Stages[0].OK {
		return r
	}
	r.Upstream = d.Upstream
	t := testerOf(d.Upstream)
	if !t.cfg.Dynamic {
		r.Addresses = t.run(ctx).Addresses
	} else if trials, failure := t.trialsOf(ctx, to); failure != nil {
		name := Resolve
		if failure.Stage == outcome.StageRoute {
			name = Special
		}
		r.Stages = append(r.Stages, failedWith(name, failure))
	} else {
		r.Addresses = t.tryAll(ctx, trials)
	}
	r.OK = slices.ContainsFunc(r.Addresses, func(a Address) bool { return a.OK })
	return r
}

// trialsOf looks up what a client asks for.
func (t *tester) trialsOf(ctx context.Context, to *destination.Destination) ([]upstream.Trial, *outcome.Error) {
	u, err := t.upstream()
	if err != nil {
		return nil, &outcome.Error{Stage: outcome.StageDial, Reason: outcome.Internal, Err: err}
	}
	lookup, cancel := context.WithTimeout(ctx, upstream.LookupTimeout)
	defer cancel()
	return u.TrialsOf(lookup, to)
}

// ruled tells what the rules of the listener decided. Err is that of a lookup, which a
// rule needed.
func ruled(q *explain.Question, d *policy.Decision, err error) Stage {
	if err != nil {
		return failed(Resolve, ending.Classify(outcome.StageRoute, err), err)
	}
	detail := fmt.Sprintf("rule %s allows it, to upstream %s", d.Rules(), d.Upstream)
	switch {
	case d.Verdict == policy.Deny:
		return failed(Rule, outcome.Denied, fmt.Errorf("rule %s: %s", d.Rule, d.Why))
	case d.Verdict == policy.NoRule:
		return failed(Rule, outcome.NoRoute, errors.New("no rule of the listener matches"))
	case d.Verdict == policy.WouldDeny:
		detail = fmt.Sprintf("rule %s allows it, to upstream %s, and reports it: %s", d.Rules(), d.Upstream, d.Why)
	case !q.HasRules():
		detail = "the listener has no rules: all goes to upstream " + d.Upstream
	}
	return Stage{Name: Rule, OK: true, Detail: detail}
}
