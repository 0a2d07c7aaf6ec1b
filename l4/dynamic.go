package l4

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ambassador/policy"
)

// maxVisited bounds the destinations in the cache of a dynamic upstream. Each takes
// about 1 KiB. Many together take twice that, with the memory that they keep from being
// returned to the system. Of up to maxFaded evicted destinations the cache keeps the
// breaker, in about 100 bytes.
const (
	maxVisited = 768
	maxFaded   = 4096 - maxVisited
)

// maxKnownAddresses bounds the addresses that are cached for one destination.
const maxKnownAddresses = 8

// visited is the destination cache of a dynamic upstream. It evicts the least recently
// used destination beyond a bound: clients can name any number of them. It is safe for
// concurrent use.
type visited struct {
	mu     sync.Mutex
	byName map[string]*site // guarded by mu; by "host:port", and scope
	// The ends of the list of sites, in the order of their last use; nil without sites.
	newest, oldest *site // guarded by mu

	faded map[string]faded // guarded by mu; the evicted breakers; nil before the first
	ring  []string         // guarded by mu; faded's keys, and some former ones, in the order of eviction
	at    int              // guarded by mu; the index in ring of the next
}

// faded is the evicted breaker of a site, kept unless the breaker is in its initial
// state.
type faded struct {
	failures int32 // of the breaker, if it is closed and opened is nil
	place    int32 // index in the ring
	opened   *opened
}

// opened is the memory of an evicted breaker that is open, or was open and has not
// succeeded since.
type opened struct {
	breaker policy.BreakerMemory
	cause   string // of the last failure
	failed  time.Time
}

func (f faded) breaker() policy.BreakerMemory {
	if f.opened != nil {
		return f.opened.breaker
	}
	return policy.BreakerMemory{Failures: int(f.failures)}
}

// maxFadedCause bounds opened.cause, in bytes.
const maxFadedCause = 120

// site is one destination in the cache, with its state. All its addresses, which are
// the endpoint's members, share one breaker. A session may keep a site that was evicted.
type site struct {
	// Static after construction; the pointers are to parts of own.
	endpoint *endpoint
	breaker  *policy.Breaker
	key      string // of visited.byName

	newer, older *site // guarded by visited.mu

	// own holds the parts of every site in one allocation. In separate allocations,
	// thousands of cached sites would each keep several pages from being returned.
	own struct {
		endpoint endpoint
		breaker  policy.Breaker
		address  address // of the first member, if it is the only one
		member   [1]member
	}
}

// site returns the site of a destination, and makes it the most recently used.
func (u *Upstream) site(d *destination) *site {
	name, v := d.String(), u.visited
	key := name
	if d.scope != "" {
		key = name + " " + d.scope
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.byName[key]
	if s == nil {
		s = u.newSite(name, d)
		s.key = key
		v.byName[key] = s
		if f, ok := v.faded[key]; ok {
			u.recall(s, f)
			delete(v.faded, key)
		}
	}
	v.use(s)
	if len(v.byName) > maxVisited {
		v.fade(v.oldest)
		delete(v.byName, v.oldest.key)
		v.unlink(v.oldest)
	}
	return s
}

// fade keeps the breaker of an evicted site, with mu held. It replaces the breaker that
// was evicted first.
func (v *visited) fade(s *site) {
	memory, ok := s.breaker.Memory(time.Now())
	if !ok {
		return
	}
	f := faded{failures: int32(min(memory.Failures, math.MaxInt32)), place: int32(v.at)}
	if memory.Opened > 0 || memory.Open {
		cause, failed := s.lastFailure()
		f.opened = &opened{memory, strings.Clone(cause[:min(len(cause), maxFadedCause)]), failed}
	}
	if v.faded == nil {
		v.faded = map[string]faded{}
	}
	if v.at == len(v.ring) {
		v.ring = append(v.ring, "")
	}
	if oldest := v.ring[v.at]; v.faded[oldest].place == int32(v.at) { // else it was recalled before
		delete(v.faded, oldest)
	}
	v.faded[s.key], v.ring[v.at] = f, s.key
	v.at = (v.at + 1) % maxFaded
}

// lastFailure returns the latest failure of the site's addresses.
func (s *site) lastFailure() (cause string, at time.Time) {
	s.endpoint.mu.Lock()
	defer s.endpoint.mu.Unlock()
	for _, m := range s.endpoint.members {
		if c, failed := m.lastFailure(); failed.After(at) {
			cause, at = c, failed
		}
	}
	return cause, at
}

func (u *Upstream) newSite(name string, d *destination) *site {
	host := d.name()
	from := strings.Index(name, host) // after the bracket of an IPv6 address
	s := &site{}
	s.endpoint, s.breaker = &s.own.endpoint, &s.own.breaker
	s.endpoint.address, s.endpoint.host, s.endpoint.port = name, name[from:from+len(host)], d.port
	s.endpoint.last.Endpoint = name
	s.breaker.Init(u.cfg.Breaker)
	return s
}

// recall restores an evicted breaker in a new site, before any session has the site.
// Until the site has a real address, it has one with the site's name, which is not
// dialled.
func (u *Upstream) recall(s *site, f faded) {
	s.breaker.Recall(f.breaker())
	if f.opened == nil {
		return
	}
	a := &s.own.address
	u.initAddress(a, s.endpoint, "", netip.AddrPort{})
	a.name, a.breaker, a.cause, a.failed = s.endpoint.address, s.breaker, f.opened.cause, f.opened.failed
	s.own.member[0].address = a
	s.endpoint.members = s.own.member[:]
}

// use makes a site the most recently used, with mu held.
func (v *visited) use(s *site) {
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

// unlink removes a site from the list, if it is there, with mu held.
func (v *visited) unlink(s *site) {
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

// forgetSites empties the destination cache of an upstream that is out of use: its last
// sessions may live for days.
func (u *Upstream) forgetSites() {
	v := u.visited
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.byName)
	v.faded, v.ring, v.at = nil, nil, 0
	for v.oldest != nil { // a session that keeps its site keeps no others in memory
		v.unlink(v.oldest)
	}
}

// list returns the sites, the most recently used first.
func (v *visited) list() (out []*site) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := v.newest; s != nil; s = s.older {
		out = append(out, s)
	}
	return out
}

// members returns the members for ips. An address that is in the cache keeps its state.
func (s *site) members(u *Upstream, ips []netip.Addr) []member {
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
			m.address = e.members[i].address
		} else {
			m.address = s.newAddress(u, addr)
		}
		out = append(out, m)
	}
	e.members = slices.Clone(out[:min(len(out), maxKnownAddresses)]) // a clone does not keep the rest in memory
	return out
}

// only is members for a destination with one address, with endpoint.mu held.
func (s *site) only(u *Upstream, addr netip.AddrPort) []member {
	e := s.endpoint
	switch i := slices.IndexFunc(e.members, func(old member) bool { return old.addr == addr }); {
	case i >= 0 && len(e.members) == 1:
	case i >= 0:
		e.members = []member{{address: e.members[i].address}}
	case s.own.member[0].address == nil:
		a := &s.own.address
		u.initAddress(a, e, "", addr)
		if a.name == e.address {
			a.name = e.address // keep one copy of the text
		}
		a.breaker, s.own.member[0].address = s.breaker, a
		e.members = s.own.member[:]
	default:
		e.members = []member{{address: s.newAddress(u, addr)}}
	}
	return e.members
}

// newAddress returns an address with the site's breaker and, if the breaker was
// recalled, with the cause of its last failure. Endpoint.mu is held.
func (s *site) newAddress(u *Upstream, addr netip.AddrPort) *address {
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
	site        *site
	destination *destination
	members     []member // nil before they are known
}

// find sets the target's members. If the breaker of the destination is open, it does
// not look up the name. Errors are *outcome.Refusal, and those of a lookup.
func (t *target) find(ctx context.Context, u *Upstream) error {
	looksUp := t.destination.mustLookUp()
	if t.members != nil || looksUp && !t.site.breaker.Usable(time.Now()) {
		return nil
	}
	start := time.Now()
	ips, err := t.destination.addresses(ctx, u.resolver)
	if err != nil {
		return err
	}
	if looksUp {
		u.timed(PhaseDNS, start)
	}
	t.members = t.site.members(u, ips)
	return nil
}

// known returns the members or, before they are known, those of earlier sessions. Other
// rules may have judged those, so they are not dialled.
func (t *target) known() []member {
	if t.members != nil {
		return t.members
	}
	e := t.site.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.members
}
