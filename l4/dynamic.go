package l4

import (
	"container/list"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ambassador/policy"
)

// maxVisited bounds what a dynamic upstream remembers: about 1 KiB each.
const maxVisited = 4096

// maxKnownAddresses bounds the addresses that are remembered of one destination.
const maxKnownAddresses = 8

// visited are the destinations that a dynamic upstream has been asked for, the
// least recently used of which are forgotten beyond a bound: what clients name is
// without end. The zero value is not usable; it is made with the upstream. It is
// safe for concurrent use.
type visited struct {
	mu     sync.Mutex
	byName map[string]*list.Element // guarded by mu; of *site, by "host:port"
	recent list.List                // guarded by mu; the most recently used in front
}

// site is one destination with what is known of it: all its addresses, which are
// the endpoint's members, share a breaker. Sessions may keep one that was forgotten.
type site struct {
	// Static after construction.
	endpoint *endpoint
	breaker  *policy.Breaker
}

// site is that of a destination.
func (u *Upstream) site(d *destination) *site {
	key, v := d.String(), u.visited
	v.mu.Lock()
	defer v.mu.Unlock()
	if el := v.byName[key]; el != nil {
		v.recent.MoveToFront(el)
		return el.Value.(*site)
	}
	s := &site{breaker: new(policy.Breaker), endpoint: &endpoint{address: key, host: d.name(), port: d.port, last: EndpointStatus{Endpoint: key}}}
	s.breaker.Init(u.cfg.Breaker)
	v.byName[key] = v.recent.PushFront(s)
	if v.recent.Len() > maxVisited {
		delete(v.byName, v.recent.Remove(v.recent.Back()).(*site).endpoint.address)
	}
	return s
}

// list are the sites, the most recently used first.
func (v *visited) list() (out []*site) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for el := v.recent.Front(); el != nil; el = el.Next() {
		out = append(out, el.Value.(*site))
	}
	return out
}

// members gives each of the addresses what is known of it.
func (s *site) members(u *Upstream, ips []netip.Addr) []member {
	e := s.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]member, 0, len(ips))
	for _, ip := range ips {
		m := member{other: ip.Is4() != ips[0].Is4()}
		addr := netip.AddrPortFrom(ip, e.port)
		if i := slices.IndexFunc(e.members, func(old member) bool { return old.addr == addr }); i >= 0 {
			m.address = e.members[i].address
		} else {
			m.address = u.newAddress(e, "", addr)
			m.breaker = s.breaker
		}
		out = append(out, m)
	}
	e.members = slices.Clone(out[:min(len(out), maxKnownAddresses)]) // the rest is not kept alive by it
	return out
}

// target is where one session goes through a dynamic upstream. Not safe for
// concurrent use.
type target struct {
	site        *site
	destination *destination
	members     []member // nil before they are known
}

// find makes the target's members known. Of a destination whose breaker is open
// the name is not looked up. Errors are *closedError, and those of a look-up.
func (t *target) find(ctx context.Context, u *Upstream) error {
	looksUp := t.destination.mustLookUp()
	if t.members != nil || looksUp && !t.site.breaker.Usable(time.Now()) {
		return nil
	}
	start := time.Now()
	ips, err := t.destination.addresses(ctx, u.resolver.lookup)
	if err != nil {
		return err
	}
	if looksUp {
		u.timed(PhaseDNS, start)
	}
	t.members = t.site.members(u, ips)
	return nil
}

// known are the members, or, before they are known, those that others have met.
// Those were judged by other rules perhaps, and are not dialled.
func (t *target) known() []member {
	if t.members != nil {
		return t.members
	}
	e := t.site.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.members
}
