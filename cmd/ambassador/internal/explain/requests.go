package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/l4/destination"
	"ambassador/policy"
)

// Requests returns, for each listener of f whose clients may ask for the destination
// "HOST:PORT", the question of such a client. As is what else is known of the client, in
// the words of `check --explain`: 'user=batch listener=egress'. The error says how to ask.
func Requests(f *config.File, dest, as string) (all []*Question, err error) {
	q, err := parseQuestion(as)
	if err != nil {
		return nil, fmt.Errorf("--as: %w", err)
	}
	for _, key := range []string{"dest", "addr", "expect"} {
		if q.has[key] {
			return nil, fmt.Errorf("--as: %s does not describe a client; remove it", key)
		}
	}
	if err := q.setDestination(dest); err != nil {
		return nil, fmt.Errorf("--dest %s: %w", dest, err)
	}
	q.has["dest"] = true
	q.text = strings.TrimSpace("dest=" + dest + " " + as)
	var names []string
	var unfit error
	for _, l := range f.Listeners {
		if !l.HasDestination() {
			continue
		}
		names = append(names, l.Name)
		if q.listener != "" && q.listener != l.Name {
			continue
		}
		one := q
		one.file, one.of = f, l
		if err := one.fits(l); err != nil {
			unfit = cmp.Or(unfit, fmt.Errorf("--dest %s: %w", dest, err))
			continue
		}
		all = append(all, &one)
	}
	switch {
	case len(all) > 0:
		return all, nil
	case unfit != nil:
		return nil, unfit
	case len(names) > 0:
		return nil, fmt.Errorf("--as: listener=%s: there is no such listener whose clients say where they want to go; there is %s", q.listener, strings.Join(names, ", "))
	}
	return nil, errors.New("--dest: the clients of no listener say where they want to go; listeners with socks5, http_connect or original_destination have such clients")
}

// Listener is the name of the listener that the question is about.
func (q *Question) Listener() string { return q.of.Name }

// Request decides as a session would. To is what the session would connect to in a
// dynamic upstream. The error is that of a lookup, which a rule needed.
func (q *Question) Request(ctx context.Context) (d policy.Decision, to *destination.Destination, err error) {
	to = &destination.Destination{Host: q.query.Host, Absolute: q.absolute, Addr: q.query.Addr, Port: q.query.Port,
		Ours: func(at netip.AddrPort) bool { return listensAt(q.file, at) }}
	rules, err := q.of.PolicyRules()
	if err != nil {
		return d, to, err
	}
	if rules == nil { // special addresses stay closed, as in a session
		rules = policy.NewRules([]policy.Rule{{Upstream: q.of.Upstream}})
	}
	d, found := q.decide(ctx, rules)
	to.IPs, to.May = d.Addrs, d.May
	return d, to, found.err
}

// HasRules reports whether the listener has rules. Without them its upstream is that of
// all sessions.
func (q *Question) HasRules() bool { return len(q.of.Rules) > 0 }
