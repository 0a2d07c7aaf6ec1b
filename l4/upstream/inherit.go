package upstream

import "slices"

// Inherit copies from the old upstream of the same name whether it was reached, so that
// a reload during an outage does not make the process unready. With the same StateKey,
// the endpoints of both keep their addresses with health and breakers. Call it before Start.
func (u *Upstream) Inherit(from []*Upstream) {
	i := slices.IndexFunc(from, func(old *Upstream) bool { return old.cfg.Name == u.cfg.Name })
	if i < 0 {
		return
	}
	u.reached.Store(from[i].reached.Load())
	if u.cfg.StateKey == "" || u.cfg.StateKey != from[i].cfg.StateKey {
		return
	}
	for _, e := range u.endpoints {
		if j := slices.IndexFunc(from[i].endpoints, func(old *endpoint) bool { return old.address == e.address }); j >= 0 {
			e.inherit(u, from[i].endpoints[j])
		}
	}
	u.publish()
}

// inherit copies the results of an old endpoint, and its addresses with their state.
func (e *endpoint) inherit(u *Upstream, old *endpoint) {
	old.mu.Lock()
	defer old.mu.Unlock()
	e.last, e.lookup, e.gone, e.succeeded, e.failed, e.members = old.last, old.lookup, old.gone, old.succeeded, old.failed, nil
	for _, m := range old.members {
		was := m.Address
		m.Address = u.newMember(e, was.unix, was.addr)
		m.inherit(was)
		if e.host != "" || e.literal { // with srv, the records say both
			m.weight, m.priority = e.weight, e.priority
		}
		e.members = append(e.members, m)
	}
}

// inherit copies the state of an address: its health, and its breaker without trials.
func (a *Address) inherit(was *Address) {
	if memory, ok := was.breaker.Memory(a.upstream.born); ok {
		a.breaker.Recall(memory)
	}
	was.mu.Lock()
	defer was.mu.Unlock()
	a.health, a.lastResult, a.cause, a.failed = was.health, was.lastResult, was.cause, was.failed
	a.down.Store(was.down.Load())
	a.proved.Store(was.proved.Load())
}
