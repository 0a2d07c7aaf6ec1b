package upstream

import (
	"net/netip"
	"slices"
	"time"

	"ambassador/l4/destination"
	"ambassador/l4/evicted"
	"ambassador/l4/lookup"
	"ambassador/policy"
)

// Memory is what an upstream knows of its addresses, for the next program: see
// l4.Server.Freeze.
type Memory struct {
	Name         string                `json:"name"`
	StateKey     string                `json:"state_key,omitempty"`
	Reached      *time.Time            `json:"reached,omitempty"`
	Endpoints    []endpointMemory      `json:"endpoints,omitempty"`
	Destinations []evicted.Destination `json:"destinations,omitempty"` // of a dynamic upstream
}

type endpointMemory struct {
	Address   string          `json:"address"`
	Last      EndpointStatus  `json:"last"`
	Lookup    string          `json:"lookup,omitempty"`
	Gone      time.Time       `json:"gone,omitzero"`
	Succeeded time.Time       `json:"succeeded,omitzero"`
	Failed    time.Time       `json:"failed,omitzero"`
	Members   []addressMemory `json:"members,omitempty"`
}

type addressMemory struct {
	Unix     string               `json:"unix,omitempty"`
	Addr     netip.AddrPort       `json:"addr,omitzero"`
	Weight   int                  `json:"weight,omitempty"`
	Priority int                  `json:"priority,omitempty"`
	Other    bool                 `json:"other,omitempty"`
	Breaker  policy.BreakerMemory `json:"breaker"`
	Health   policy.HealthMemory  `json:"health"`
	Last     policy.Outcome       `json:"last,omitempty"`
	Cause    string               `json:"cause,omitempty"`
	Failed   time.Time            `json:"failed,omitzero"`
	Proved   bool                 `json:"proved,omitempty"`
}

// Memory returns what the upstream knows.
func (u *Upstream) Memory(now time.Time) Memory {
	m := Memory{Name: u.cfg.Name, StateKey: u.cfg.StateKey, Reached: u.reached.Load()}
	for _, e := range u.endpoints {
		m.Endpoints = append(m.Endpoints, e.memory(now))
	}
	if u.destinationCache != nil {
		m.Destinations = u.destinationCache.memory()
	}
	return m
}

func (e *endpoint) memory(now time.Time) endpointMemory {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := endpointMemory{Address: e.address, Last: e.last, Lookup: e.lookup, Gone: e.gone, Succeeded: e.succeeded, Failed: e.failed}
	for _, at := range e.members {
		a := addressMemory{Unix: at.unix, Addr: at.addr, Weight: at.weight, Priority: at.priority, Other: at.other, Proved: at.proved.Load()}
		a.Breaker, _ = at.breaker.Memory(now)
		at.mu.Lock()
		a.Health, a.Last, a.Cause, a.Failed = at.health.Memory(), at.lastResult, at.cause, at.failed
		at.mu.Unlock()
		m.Members = append(m.Members, a)
	}
	return m
}

// memory returns the breakers of evicted destinations and of those in the cache, the
// least recently used first.
func (v *destinationCache) memory() (out []evicted.Destination) {
	v.mu.Lock()
	out = v.evicted.All()
	v.mu.Unlock()
	for _, s := range slices.Backward(v.list()) {
		if b, ok := s.breaker.Memory(time.Now()); ok {
			cause, failed := s.lastFailure()
			out = append(out, evicted.Destination{Key: s.key, Breaker: b, Cause: cause, Failed: failed})
		}
	}
	return out
}

// Recall is Inherit for what another program knew of the upstream.
func (u *Upstream) Recall(m *Memory) {
	u.reached.Store(m.Reached)
	if u.cfg.StateKey == "" || u.cfg.StateKey != m.StateKey {
		return
	}
	for _, e := range u.endpoints {
		if i := slices.IndexFunc(m.Endpoints, func(old endpointMemory) bool { return old.Address == e.address }); i >= 0 {
			e.recall(u, &m.Endpoints[i])
		}
	}
	if v := u.destinationCache; v != nil {
		v.mu.Lock()
		v.evicted.Recall(m.Destinations)
		v.mu.Unlock()
	}
	u.publish()
}

func (e *endpoint) recall(u *Upstream, m *endpointMemory) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last, e.lookup, e.gone, e.succeeded, e.failed, e.members = m.Last, m.Lookup, m.Gone, m.Succeeded, m.Failed, nil
	for _, was := range m.Members {
		a := u.newMember(e, was.Unix, was.Addr)
		a.breaker.Recall(was.Breaker)
		a.health.Recall(was.Health)
		a.lastResult, a.cause, a.failed = was.Last, was.Cause, was.Failed
		a.down.Store(a.health.Verdict() == policy.Unhealthy)
		a.proved.Store(was.Proved)
		e.members = append(e.members, member{Address: a, weight: was.Weight, priority: was.Priority, other: was.Other})
	}
}

// CarriedConn is the state of a Conn whose relay another program continues.
type CarriedConn struct {
	Settled bool `json:"settled,omitempty"`
	Spoken  bool `json:"spoken,omitempty"`
	Drops   bool `json:"drops,omitempty"`
}

// Carried returns the state of a connection that the relay has.
func (c *Conn) Carried() CarriedConn { return CarriedConn{c.settled.Load(), c.spoken, c.drops} }

// Adopt returns the connection of a session that this program continues. The relay has
// its socket. The attempt is settled, or its success has no effect on the breaker.
func (u *Upstream) Adopt(was CarriedConn, endpointName, address string) *Conn {
	c := &Conn{upstream: u, spoken: was.Spoken, drops: was.Drops}
	c.settled.Store(was.Settled)
	c.candidate = u.addressOf(endpointName, address).candidate(policy.Ticket{}, time.Now())
	c.candidate.at.places.Add(1)
	return c
}

// addressOf returns the address of that name, or a new one.
func (u *Upstream) addressOf(endpointName, address string) *Address {
	unix, addr, _ := lookup.Literal(address)
	for _, m := range u.members() {
		if m.unix == unix && m.addr == addr {
			return m.Address
		}
	}
	if s := u.destinationOf(endpointName); s != nil && addr.IsValid() {
		return s.members(u, []netip.Addr{addr.Addr()})[0].Address
	}
	return u.newMember(&endpoint{address: endpointName, last: EndpointStatus{Endpoint: endpointName}}, unix, addr)
}

// destinationOf returns the destination of that name; nil if the upstream is not dynamic.
func (u *Upstream) destinationOf(name string) *cached {
	host, port, err := lookup.HostPort(name)
	if u.destinationCache == nil || err != nil {
		return nil
	}
	return u.cached(&destination.Destination{Host: host, Port: port})
}
