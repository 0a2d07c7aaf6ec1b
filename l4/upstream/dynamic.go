package upstream

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ambassador/l4/destination"
	"ambassador/l4/evicted"
	"ambassador/policy"
)

// maxCached bounds the destinations in the cache of a dynamic upstream. Each takes
// about 1 KiB. Many together take twice that, with the memory that they keep from being
// returned to the system.
const maxCached = 768

// maxKnownAddresses bounds the addresses that are cached for one destination.
const maxKnownAddresses = 8

// destinationCache is the destination cache of a dynamic upstream. It evicts the least recently
// used destination beyond a bound: clients can name any number of them. It is safe for
// concurrent use.
type destinationCache struct {
	mu     sync.Mutex
	byName map[string]*cached // guarded by mu; by "host:port", and scope
	// The ends of the list of destinations, in the order of their last use; nil without
	// destinations.
	newest, oldest *cached // guarded by mu

	evicted evicted.Breakers // guarded by mu; of destinations whose breaker is not in its initial state
}

// cached is one destination in the cache, with its state. All its addresses, which are
// the endpoint's members, share one breaker. A session may keep a destination that was evicted.
type cached struct {
	// Static after construction; the pointers are to parts of own.
	endpoint *endpoint
	breaker  *policy.Breaker
	key      string // of destinationCache.byName

	newer, older *cached // guarded by destinationCache.mu

	// own holds the parts of every destination in one allocation. In separate allocations,
	// thousands of cached destinations would each keep several pages from being returned.
	own struct {
		endpoint endpoint
		breaker  policy.Breaker
		address  Address // of the first member, if it is the only one
		member   [1]member
	}
}

// cached returns the entry of a destination in the cache, and makes it the most recently used.
func (u *Upstream) cached(d *destination.Destination) *cached {
	name, v := d.String(), u.destinationCache
	key := name
	if d.Scope != "" {
		key = name + " " + d.Scope
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.byName[key]
	if s == nil {
		s = u.newCached(name, d)
		s.key = key
		v.byName[key] = s
		if was, ok := v.evicted.Take(key); ok {
			u.recall(s, was)
		}
	}
	v.use(s)
	if len(v.byName) > maxCached {
		v.evict(v.oldest)
		delete(v.byName, v.oldest.key)
		v.unlink(v.oldest)
	}
	return s
}

// evict keeps the breaker of an evicted destination, with mu held.
func (v *destinationCache) evict(s *cached) {
	if memory, ok := s.breaker.Memory(time.Now()); ok {
		cause, failed := s.lastFailure()
		v.evicted.Keep(evicted.Destination{Key: s.key, Breaker: memory, Cause: cause, Failed: failed})
	}
}

// lastFailure returns the latest failure of the destination's addresses.
func (s *cached) lastFailure() (cause string, at time.Time) {
	s.endpoint.mu.Lock()
	defer s.endpoint.mu.Unlock()
	for _, m := range s.endpoint.members {
		if c, failed := m.lastFailure(); failed.After(at) {
			cause, at = c, failed
		}
	}
	return cause, at
}

func (u *Upstream) newCached(name string, d *destination.Destination) *cached {
	host := d.Name()
	from := strings.Index(name, host) // after the bracket of an IPv6 address
	s := &cached{}
	s.endpoint, s.breaker = &s.own.endpoint, &s.own.breaker
	s.endpoint.address, s.endpoint.host, s.endpoint.port = name, name[from:from+len(host)], d.Port
	s.endpoint.last.Endpoint = name
	s.breaker.Init(u.cfg.Breaker)
	return s
}

// recall restores an evicted breaker in a new destination, before any session has the
// destination. Until the destination has a real address, it has one with the
// destination's name, which is not dialled.
func (u *Upstream) recall(s *cached, was evicted.Destination) {
	s.breaker.Recall(was.Breaker)
	if !was.HasOpened() {
		return
	}
	a := &s.own.address
	u.initAddress(a, s.endpoint, "", netip.AddrPort{})
	a.name, a.breaker, a.cause, a.failed = s.endpoint.address, s.breaker, was.Cause, was.Failed
	s.own.member[0].Address = a
	s.endpoint.members = s.own.member[:]
}

// use makes a destination the most recently used, with mu held.
func (v *destinationCache) use(s *cached) {
	if v.newest == s {
		return
	}
	v.unlink(s)
	if s.older = v.newest; s.older == nil {
		v.oldest = s
	} else {
		s.older.newer = s
	}
	v.newest = s
}

// unlink removes a destination from the list, if it is there, with mu held.
func (v *destinationCache) unlink(s *cached) {
	switch {
	case s.newer != nil:
		s.newer.older = s.older
	case v.newest == s:
		v.newest = s.older
	}
	switch {
	case s.older != nil:
		s.older.newer = s.newer
	case v.oldest == s:
		v.oldest = s.newer
	}
	s.newer, s.older = nil, nil
}

// emptyCache empties the destination cache of an upstream that is out of use: its last
// sessions may live for days.
func (u *Upstream) emptyCache() {
	v := u.destinationCache
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.byName)
	v.evicted = evicted.Breakers{}
	for v.oldest != nil { // a session that keeps its destination keeps no others in memory
		v.unlink(v.oldest)
	}
}

// list returns the destinations, the most recently used first.
func (v *destinationCache) list() (out []*cached) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := v.newest; s != nil; s = s.older {
		out = append(out, s)
	}
	return out
}

// members returns the members for ips. An address that is in the cache keeps its state.
func (s *cached) members(u *Upstream, ips []netip.Addr) []member {
	e := s.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(ips) == 1 {
		return s.only(u, netip.AddrPortFrom(ips[0], e.port))
	}
	out := make([]member, 0, len(ips))
	for _, ip := range ips {
		m := member{other: ip.Is4() != ips[0].Is4()}
		addr := netip.AddrPortFrom(ip, e.port)
		if i := slices.IndexFunc(e.members, func(old member) bool { return old.addr == addr }); i >= 0 {
			m.Address = e.members[i].Address
		} else {
			m.Address = s.newAddress(u, addr)
		}
		out = append(out, m)
	}
	e.members = slices.Clone(out[:min(len(out), maxKnownAddresses)]) // a clone does not keep the rest in memory
	return out
}

// only is members for a destination with one address, with endpoint.mu held.
func (s *cached) only(u *Upstream, addr netip.AddrPort) []member {
	e := s.endpoint
	switch i := slices.IndexFunc(e.members, func(old member) bool { return old.addr == addr }); {
	case i >= 0 && len(e.members) == 1:
	case i >= 0:
		e.members = []member{{Address: e.members[i].Address}}
	case s.own.member[0].Address == nil:
		a := &s.own.address
		u.initAddress(a, e, "", addr)
		if a.name == e.address {
			a.name = e.address // keep one copy of the text
		}
		a.breaker, s.own.member[0].Address = s.breaker, a
		e.members = s.own.member[:]
	default:
		e.members = []member{{Address: s.newAddress(u, addr)}}
	}
	return e.members
}

// newAddress returns an address with the destination's breaker and, if the breaker was
// recalled, with the cause of its last failure. Endpoint.mu is held.
func (s *cached) newAddress(u *Upstream, addr netip.AddrPort) *Address {
	a := u.newAddress(s.endpoint, "", addr)
	a.breaker = s.breaker
	if known := s.endpoint.members; len(known) == 1 && !known[0].addr.IsValid() {
		a.cause, a.failed = known[0].lastFailure()
	}
	return a
}

// target is the destination of one session in a dynamic upstream. It is not safe for
// concurrent use.
type target struct {
	cached      *cached
	destination *destination.Destination
	members     []member // nil before they are known
}

// Target returns what a session connects to, for the destination that its client asks for.
func (u *Upstream) Target(d *destination.Destination) *target {
	return &target{cached: u.cached(d), destination: d}
}

// Name returns the destination as "host:port". All sessions share one copy of the text.
func (t *target) Name() string { return t.cached.endpoint.address }

// find sets the target's members. If the breaker of the destination is open, it does
// not look up the name. Errors are *outcome.Refusal, and those of a lookup.
func (t *target) find(ctx context.Context, u *Upstream, session string) error {
	looksUp := t.destination.MustLookUp()
	if t.members != nil || looksUp && !t.cached.breaker.Usable(time.Now()) {
		return nil
	}
	start := time.Now()
	ips, err := t.destination.Addresses(ctx, u.resolver)
	if err != nil {
		return err
	}
	if looksUp {
		u.timed(session, PhaseDNS, start)
	}
	t.members = t.cached.members(u, ips)
	return nil
}

// RestTimeout bounds the second lookup of a name whose first did not await the addresses
// of one family.
const RestTimeout = 2 * time.Second

// findRest adds the addresses of the family that the lookup did not await. It reports
// whether there are any.
func (t *target) findRest(ctx context.Context, u *Upstream) bool {
	ctx, cancel := context.WithTimeout(ctx, RestTimeout)
	defer cancel()
	ips, err := t.destination.BothFamilies(ctx, u.resolver)
	if err != nil || len(ips) == 0 {
		return false
	}
	before := len(t.members)
	for _, m := range t.members {
		if ip := m.addr.Addr(); !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	t.members = t.cached.members(u, ips)
	return len(t.members) > before
}

// known returns the members or, before they are known, those of earlier sessions. Other
// rules may have judged those, so they are not dialled.
func (t *target) known() []member {
	if t.members != nil {
		return t.members
	}
	e := t.cached.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.members
}
