package upstream

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/lookup"
	"ambassador/l4/nameserver"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
)

// endpoint is one configured line: a name or an IP address with a port, a unix path,
// or "srv:NAME".
type endpoint struct {
	// Static after construction.
	address          string // as configured
	host             string // the host of address; empty on unix and for srv
	port             uint16
	weight, priority int
	literal          bool              // no lookup is needed
	discovery        *lookup.Discovery // pushes the addresses; nil: they are looked up, or literal

	followed chan struct{} // full while discovery is followed: by run, or by a trial before it

	mu      sync.Mutex
	last    EndpointStatus // guarded by mu; its times are in succeeded and failed
	members []member       // guarded by mu; the addresses of the last good answer
	flight  *flight        // guarded by mu; the lookup in flight, or nil; with discovery, its last answer
	lookup  string         // guarded by mu; why the last lookup failed; empty if it did not
	gone    time.Time      // guarded by mu; since when the name does not exist; zero: it did at the last answer

	succeeded, failed time.Time // guarded by mu; zero: never

	again chan struct{} // has room for one request for another lookup; nil: there is no name
}

// member is an address with its weight and priority in its upstream.
type member struct {
	*Address
	weight, priority int
	distance         int  // see lookup.Discovered
	other            bool // of the address family that the system does not prefer (RFC 6724)
}

// flight is a lookup in flight, which many goroutines may wait for.
type flight struct {
	done chan struct{}
	err  error // readable once done is closed
}

// newEndpoint checks a configured line, and returns its endpoint.
func (u *Upstream) newEndpoint(cfg EndpointConfig) (*endpoint, error) {
	e := &endpoint{address: cfg.Address, weight: cfg.Weight, priority: cfg.Priority, last: EndpointStatus{Endpoint: cfg.Address}}
	if cfg.Discovery != nil {
		return e.discovered(cfg.Discovery), nil
	}
	if strings.HasPrefix(cfg.Address, "srv:") {
		e.again = make(chan struct{}, 1)
		return e, nil
	}
	var err error
	if e.host, e.port, err = lookup.HostPort(cfg.Address); err != nil {
		return nil, err
	}
	unix, addr, literal := lookup.Literal(cfg.Address)
	if e.literal = literal; !literal {
		e.again = make(chan struct{}, 1)
	} else {
		e.members = []member{{Address: u.newMember(e, unix, addr), weight: e.weight, priority: e.priority}}
	}
	return e, nil
}

// LookupTimeout bounds one lookup of a name: by default, a session may take as long to
// connect.
const LookupTimeout = DefaultConnectTimeout

// resolve looks up the endpoint, or waits for the lookup in flight. It ends with ctx,
// but the lookup continues for others that wait. If the lookup fails, the endpoint
// keeps the addresses of the last answer.
func (u *Upstream) resolve(ctx context.Context, e *endpoint) error {
	e.mu.Lock()
	f := e.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		e.flight = f
		go u.runLookup(context.WithoutCancel(ctx), e, f) // ends by LookupTimeout
	}
	e.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return &net.DNSError{Err: ctx.Err().Error(), Name: e.address, IsTimeout: true, UnwrapErr: ctx.Err()}
	}
}

func (u *Upstream) runLookup(ctx context.Context, e *endpoint, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, LookupTimeout)
	defer cancel()
	var err error
	if panicked := u.guard.Catch(PartResolver, func() { err = u.renew(ctx, e) }); panicked != nil {
		err = panicked
	}
	e.mu.Lock()
	before := e.lookup
	e.lookup = ""
	if err != nil {
		e.lookup = err.Error()
	}
	dropped := e.expire(err, time.Now(), u.cfg.keepGone())
	e.flight, f.err = nil, err
	known, now := len(e.members), e.lookup
	e.mu.Unlock()
	if dropped != "" {
		u.publish()
		u.log.Warn("name does not exist any more: addresses dropped", "upstream", u.cfg.Name, "endpoint", e.address, "dropped", dropped, "cause", now)
	}
	close(f.done)
	switch {
	case before == "" && now != "":
		u.log.Warn("name does not resolve", "upstream", u.cfg.Name, "endpoint", e.address, "cause", now, "addresses_kept", known)
	case before != "" && now == "":
		u.log.Info("name resolves again", "upstream", u.cfg.Name, "endpoint", e.address)
	}
}

// renew looks up the endpoint, and publishes the addresses.
func (u *Upstream) renew(ctx context.Context, e *endpoint) error {
	start := time.Now()
	delay := e.delay()
	found, err := u.find(ctx, e, delay)
	if err == nil {
		u.timed("", PhaseDNS, start) // several sessions may wait for it
		u.learned(e, found)
		if found.Partial && delay == nameserver.Quick {
			e.lookAgain() // patiently, now that there are addresses
		}
	}
	return err
}

// find looks up the endpoint's addresses.
func (u *Upstream) find(ctx context.Context, e *endpoint, delay time.Duration) (lookup.Places, error) {
	if name, ok := strings.CutPrefix(e.address, "srv:"); ok {
		return lookup.Services(ctx, u.resolver, name, delay)
	}
	return lookup.Host(ctx, u.resolver, e.host, e.port, lookup.Place{Weight: e.weight, Priority: e.priority}, delay)
}

// learned replaces the endpoint's addresses by those found. An address that was there
// before keeps its state. An address that is gone takes no new sessions. If
// found is partial, the addresses of the family that it lacks stay.
func (u *Upstream) learned(e *endpoint, found lookup.Places) {
	old, members := u.merge(e, found)
	if added, removed := without(members, old), without(old, members); len(old) > 0 && len(added)+len(removed) > 0 {
		u.log.Info("addresses changed", "upstream", u.cfg.Name, "endpoint", e.address, "added", namesOf(added), "removed", namesOf(removed), "addresses", len(members))
	}
	u.publish()
}

// merge is the part of learned that needs endpoint.mu.
func (u *Upstream) merge(e *endpoint, found lookup.Places) (old, members []member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old, members = e.members, make([]member, 0, len(found.All))
	known, seen := map[netip.AddrPort]*Address{}, map[netip.AddrPort]bool{}
	for _, m := range old {
		known[m.addr] = m.Address
	}
	for _, p := range found.All {
		if seen[p.Addr] {
			continue // a duplicate
		}
		seen[p.Addr] = true
		m := member{Address: known[p.Addr], weight: p.Weight, priority: p.Priority, distance: p.Distance, other: p.Other}
		if m.Address == nil {
			m.Address = u.newMember(e, "", p.Addr)
		}
		members = append(members, m)
	}
	if found.Partial {
		members = append(members, e.missing(found.All)...)
	}
	e.members = members
	return old, members
}

// without returns the members whose address is not one of others.
func without(members, others []member) []member {
	here := map[*Address]bool{}
	for _, m := range others {
		here[m.Address] = true
	}
	return slices.DeleteFunc(slices.Clone(members), func(m member) bool { return here[m.Address] })
}

// namesOf returns the sorted addresses as one text, which names 10 at most.
func namesOf(members []member) string {
	var names []string
	for _, m := range members {
		names = append(names, m.name)
	}
	slices.Sort(names)
	if more := len(names) - 10; more > 0 {
		names = append(names[:10], "and "+strconv.Itoa(more)+" more")
	}
	return strings.Join(names, " ")
}

// publish publishes the addresses of all endpoints: sessions choose from these.
func (u *Upstream) publish() {
	u.publishing.Lock()
	defer u.publishing.Unlock()
	var all []member
	for _, e := range u.endpoints {
		e.mu.Lock()
		all = append(all, e.members...)
		e.mu.Unlock()
	}
	u.published.Store(&all)
	if u.probers != nil {
		u.probers.follow(u, all)
	}
}

// members returns the published addresses. The caller must not change the slice.
func (u *Upstream) members() []member {
	if all := u.published.Load(); all != nil {
		return *all
	}
	return nil
}

// unresolved lists the endpoints without a published address.
func (u *Upstream) unresolved() (out []*endpoint) {
	members := u.members()
	for _, e := range u.endpoints {
		if !slices.ContainsFunc(members, func(m member) bool { return m.endpoint == e }) {
			out = append(out, e)
		}
	}
	return out
}

// discover looks up the given endpoints, all at once, and returns when one of them has
// an address. If none has, it returns the last endpoint that failed, with its error.
func (u *Upstream) discover(ctx context.Context, unknown []*endpoint) (*endpoint, error) {
	type result struct {
		endpoint *endpoint
		err      error
	}
	results := make(chan result, len(unknown))
	for _, e := range unknown {
		task.Go(ctx, func() { results <- result{e, u.resolve(ctx, e)} }) // ends with ctx; results has room
	}
	var last result
	for range unknown {
		if last = <-results; last.err == nil {
			break
		}
	}
	return last.endpoint, last.err
}

// EndLookup ends the phase of a lookup that a session has waited for.
func EndLookup(t *outcome.Trace, err error) {
	if err != nil {
		t.End(ending.Classify(outcome.StageDial, err), err)
		return
	}
	t.End("", nil)
}

// NewResolver returns a resolver that asks the given servers ("10.0.0.2:53"), or the
// system's if there are none.
func NewResolver(servers []string, g task.Guard) *nameserver.Resolver {
	return nameserver.New(servers, func(body func()) error { return g.Catch(PartResolver, body) })
}
