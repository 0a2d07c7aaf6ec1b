package l4

import (
	"context"
	"errors"
	"net/netip"
	"slices"
)

// candidate is one address to dial: a unix path, or an IP address with port.
type candidate struct {
	endpoint *endpoint
	unix     string
	addr     netip.AddrPort
}

func (c candidate) String() string {
	switch {
	case c.unix != "":
		return "unix:" + c.unix
	case c.addr.IsValid():
		return c.addr.String()
	case c.endpoint != nil:
		return c.endpoint.address
	}
	return ""
}

// plan is the order in which one session tries the addresses of an upstream:
// the endpoints in turn, one address of each before the second of any, and
// within an endpoint the families in turn. Names are looked up when their turn
// comes. Not safe for concurrent use.
type plan struct {
	upstream *Upstream
	lines    []*planLine
	pos      int // the next line
	rounds   int // how often everything had been tried
}

// planLine is one endpoint in a plan.
type planLine struct {
	endpoint *endpoint
	resolved bool
	dead     bool        // its name did not resolve in this round
	left     []candidate // not tried in this round
	failed   []candidate // worth trying again
}

func (u *Upstream) newPlan() *plan {
	p := &plan{upstream: u}
	first := int(u.turn.Add(1)-1) % len(u.endpoints)
	for i := range u.endpoints {
		p.lines = append(p.lines, &planLine{endpoint: u.endpoints[(first+i)%len(u.endpoints)]})
	}
	return p
}

// exhausted says whether every address was tried in this round.
func (p *plan) exhausted() bool {
	return !slices.ContainsFunc(p.lines, (*planLine).open)
}

func (l *planLine) open() bool { return !l.dead && (!l.resolved || len(l.left) > 0) }

// again begins a new round with what is worth trying again; false if nothing is.
func (p *plan) again() bool {
	p.rounds++
	for _, l := range p.lines {
		l.left, l.failed = l.failed, nil
		if l.dead {
			l.dead, l.resolved = false, false
		}
	}
	return !p.exhausted()
}

// next takes the next address. Where its name does not resolve, the candidate
// has only its endpoint, and the error says why.
func (p *plan) next(ctx context.Context) (candidate, error) {
	for range p.lines {
		l := p.lines[p.pos]
		p.pos = (p.pos + 1) % len(p.lines)
		if !l.open() {
			continue
		}
		if !l.resolved {
			var err error
			if l.left, err = p.upstream.resolve(ctx, l.endpoint); err != nil {
				l.dead = true
				return candidate{endpoint: l.endpoint}, err
			}
			l.resolved = true
		}
		c := l.left[0]
		l.left = l.left[1:]
		return c, nil
	}
	return candidate{}, errNothingLeft
}

var errNothingLeft = errors.New("no address left to try")

// sibling takes an untried address of the same endpoint and the other family.
func (p *plan) sibling(c candidate) (candidate, bool) {
	l := p.line(c)
	if l == nil || c.unix != "" {
		return candidate{}, false
	}
	i := slices.IndexFunc(l.left, func(o candidate) bool { return o.addr.Addr().Is4() != c.addr.Addr().Is4() })
	if i < 0 {
		return candidate{}, false
	}
	o := l.left[i]
	l.left = slices.Delete(slices.Clone(l.left), i, i+1)
	return o, true
}

// failed notes that an attempt at c ended so. What would end the same way at
// the same address is not worth trying again.
func (p *plan) failed(c candidate, e *Error) {
	if l := p.line(c); l != nil && !e.lasting() && (c.unix != "" || c.addr.IsValid()) {
		l.failed = append(l.failed, c)
	}
}

func (p *plan) line(c candidate) *planLine {
	i := slices.IndexFunc(p.lines, func(l *planLine) bool { return l.endpoint == c.endpoint })
	if i < 0 {
		return nil
	}
	return p.lines[i]
}

// others are plans of one address each, for every address but the given one.
func (p *plan) others(ctx context.Context, but candidate) []*plan {
	var out []*plan
	for !p.exhausted() {
		c, err := p.next(ctx)
		if err != nil || c == but {
			continue
		}
		l := &planLine{endpoint: c.endpoint, resolved: true, left: []candidate{c}}
		out = append(out, &plan{upstream: p.upstream, lines: []*planLine{l}})
	}
	return out
}
