package l4

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ambassador/l4/task"
	"ambassador/policy"
)

// endpoint is one configured line: a name or an IP address with a port, a unix path,
// or "srv:NAME".
type endpoint struct {
	// Static after construction.
	address          string // as configured
	host             string // the host of address; empty on unix and for srv
	port             uint16
	weight, priority int
	literal          bool // no lookup is needed

	mu      sync.Mutex
	last    EndpointStatus // guarded by mu; its times are in succeeded and failed
	members []member       // guarded by mu; the addresses of the last good answer
	flight  *flight        // guarded by mu; the lookup in flight, or nil
	lookup  string         // guarded by mu; why the last lookup failed; empty if it did not

	succeeded, failed time.Time // guarded by mu; zero: never
}

// member is an address with its weight and priority in its upstream.
type member struct {
	*address
	weight, priority int
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
	if strings.HasPrefix(cfg.Address, "srv:") {
		return e, nil
	}
	var err error
	if e.host, e.port, err = hostOf(cfg.Address); err != nil {
		return nil, err
	}
	unix, addr, literal := parseLiteral(cfg.Address)
	if e.literal = literal; literal {
		e.members = []member{{address: u.newMember(e, unix, addr), weight: e.weight, priority: e.priority}}
	}
	return e, nil
}

// hostOf returns the host and port of "HOST:PORT". For "unix:/path" they are zero.
func hostOf(address string) (string, uint16, error) {
	if strings.HasPrefix(address, "unix:") {
		return "", 0, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, &net.AddrError{Err: "the port must be a number from 1 to 65535", Addr: address}
	}
	return host, uint16(n), nil
}

// lookupTimeout bounds one lookup of a name: by default, a session may take as long to
// connect.
const lookupTimeout = DefaultConnectTimeout

// resolve looks up the endpoint, or waits for the lookup in flight. It ends with ctx,
// but the lookup continues for others that wait. If the lookup fails, the endpoint
// keeps the addresses of the last answer.
func (u *Upstream) resolve(ctx context.Context, e *endpoint) error {
	e.mu.Lock()
	f := e.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		e.flight = f
		go u.fly(context.WithoutCancel(ctx), e, f) // ends by lookupTimeout
	}
	e.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return &net.DNSError{Err: ctx.Err().Error(), Name: e.address, IsTimeout: true, UnwrapErr: ctx.Err()}
	}
}

func (u *Upstream) fly(ctx context.Context, e *endpoint, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var err error
	if panicked := u.panics().catch(PartResolver, func() { err = u.renew(ctx, e) }); panicked != nil {
		err = panicked
	}
	e.mu.Lock()
	before := e.lookup
	e.lookup = ""
	if err != nil {
		e.lookup = err.Error()
	}
	e.flight, f.err = nil, err
	known, now := len(e.members), e.lookup
	e.mu.Unlock()
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
	found, err := u.find(ctx, e)
	if err == nil {
		u.timed(PhaseDNS, start)
		u.learned(e, found)
	}
	return err
}

// place is one address in the answer of a lookup.
type place struct {
	addr             netip.AddrPort
	weight, priority int
	other            bool
}

// find looks up the endpoint's addresses, and returns them in the answer's order.
func (u *Upstream) find(ctx context.Context, e *endpoint) ([]place, error) {
	name, ok := strings.CutPrefix(e.address, "srv:")
	if !ok {
		return u.findHost(ctx, e.host, place{weight: e.weight, priority: e.priority}, e.port)
	}
	targets, err := u.resolver.services(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []place
	for _, t := range targets {
		found, hostErr := u.findHost(ctx, t.Target, place{weight: int(t.Weight), priority: int(t.Priority)}, t.Port)
		if hostErr != nil {
			err = hostErr // one target without an address does not exclude the others
		}
		out = append(out, found...)
	}
	if len(out) == 0 {
		return nil, cmp.Or(err, error(&net.DNSError{Err: "no service there", Name: name, IsNotFound: true}))
	}
	return out, nil
}

func (u *Upstream) findHost(ctx context.Context, host string, like place, port uint16) ([]place, error) {
	ips, err := u.resolver.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var out []place
	for _, ip := range ips {
		p := like
		p.addr = netip.AddrPortFrom(ip.Unmap(), port)
		p.other = ip.Unmap().Is4() != ips[0].Unmap().Is4()
		out = append(out, p)
	}
	return out, nil
}

// learned replaces the endpoint's addresses by those found. An address that was there
// before keeps its state. An address that is gone takes no new sessions.
func (u *Upstream) learned(e *endpoint, found []place) {
	old, members := u.merge(e, found)
	if before, now := namesOf(old), namesOf(members); before != now && before != "" {
		u.log.Info("addresses changed", "upstream", u.cfg.Name, "endpoint", e.address, "from", before, "to", now)
	}
	u.gather()
}

// merge is the part of learned that needs endpoint.mu.
func (u *Upstream) merge(e *endpoint, found []place) (old, members []member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old, members = e.members, make([]member, 0, len(found))
	for _, p := range found {
		same := func(m member) bool { return m.addr == p.addr }
		if slices.ContainsFunc(members, same) {
			continue // a duplicate
		}
		m := member{weight: p.weight, priority: p.priority, other: p.other}
		if i := slices.IndexFunc(old, same); i >= 0 {
			m.address = old[i].address
		} else {
			m.address = u.newMember(e, "", p.addr)
		}
		members = append(members, m)
	}
	e.members = members
	return old, members
}

// namesOf returns the sorted addresses as one text.
func namesOf(members []member) string {
	var names []string
	for _, m := range members {
		names = append(names, m.name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// gather publishes the addresses of all endpoints: sessions choose from these.
func (u *Upstream) gather() {
	u.gathering.Lock()
	defer u.gathering.Unlock()
	var all []member
	for _, e := range u.endpoints {
		e.mu.Lock()
		all = append(all, e.members...)
		e.mu.Unlock()
	}
	u.roster.Store(&all)
	if u.probers != nil {
		u.probers.follow(u, all)
	}
}

// members returns the published addresses. The caller must not change the slice.
func (u *Upstream) members() []member {
	if all := u.roster.Load(); all != nil {
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

// refresh looks up the endpoint every cfg.Resolve, and sooner while lookups fail. It
// ends with ctx; the server waits for it.
func (u *Upstream) refresh(ctx context.Context, e *endpoint) {
	every := orDefault(u.cfg.Resolve, DefaultResolve)
	hurry, failures := policy.Backoff{Base: time.Second, Max: every}, 0
	for ctx.Err() == nil {
		wait := policy.Backoff{Base: every}.Pause(0, rand.Float64()/5) // up to a tenth sooner
		if u.resolve(ctx, e) != nil {
			wait = min(wait, hurry.Pause(failures, rand.Float64()))
			failures++
		} else {
			failures = 0
		}
		task.Wait(ctx, wait, nil)
	}
}

// resolver looks up names, with /etc/hosts and search domains.
type resolver struct {
	servers []*net.Resolver // each asks one server; or only the system's resolver
	panics  panics
}

// newResolver returns a resolver that asks the given servers ("10.0.0.2:53"), or the
// system's if there are none.
func newResolver(servers []string, p panics) *resolver {
	r := &resolver{panics: p}
	for _, server := range servers {
		d := net.Dialer{}
		d.SetMultipathTCP(false)
		r.servers = append(r.servers, &net.Resolver{PreferGo: true,
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, server)
			}})
	}
	if len(servers) == 0 {
		r.servers = []*net.Resolver{net.DefaultResolver}
	}
	return r
}

// nextServerAfter is how long a server may be silent before the next is asked as well.
const nextServerAfter = time.Second

// lookup lists the addresses of a host, in the order that the system prefers. The error
// is, or wraps, a *net.DNSError.
func (r *resolver) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return ask(ctx, r, host, func(ctx context.Context, server *net.Resolver) ([]netip.Addr, error) {
		return server.LookupNetIP(ctx, "ip", host)
	})
}

// LookUp looks up the addresses of a name in the way of sessions. It reads /etc/hosts,
// and asks the given servers ("10.0.0.2:53"), or the system's if there are none.
func LookUp(ctx context.Context, servers []string, host string) ([]netip.Addr, error) {
	return newResolver(servers, panics{}).lookup(ctx, host)
}

// services lists the targets of an SRV name ("_postgresql._tcp.db.internal").
func (r *resolver) services(ctx context.Context, name string) ([]*net.SRV, error) {
	return ask(ctx, r, name, func(ctx context.Context, server *net.Resolver) ([]*net.SRV, error) {
		_, targets, err := server.LookupSRV(ctx, "", "", name)
		if len(targets) > 0 {
			err = nil // some targets had invalid names
		}
		return targets, err
	})
}

type answer[T any] struct {
	found []T
	err   error
}

// ask asks the servers in order. It asks the next one when a server fails, or is silent
// for nextServerAfter. That a name does not exist is an answer. A panic counts as a
// failure of the server, but a panic in a goroutine of net's own resolver ends the
// process.
func ask[T any](ctx context.Context, r *resolver, name string, one func(context.Context, *net.Resolver) ([]T, error)) ([]T, error) {
	task.Leave(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the lookups that lost
	servers, answers := r.servers, make(chan answer[T], len(r.servers))
	asked, open := 0, 0
	next := func() {
		server := servers[asked]
		asked, open = asked+1, open+1
		go func() { // answers has room for all
			var a answer[T]
			if err := r.panics.catch(PartResolver, func() { a.found, a.err = one(ctx, server) }); err != nil {
				a.err = err
			}
			answers <- a
		}()
	}
	next()
	for {
		var late <-chan time.Time
		if asked < len(servers) {
			late = time.After(nextServerAfter)
		}
		select {
		case <-late:
			next()
		case a := <-answers:
			open--
			var d *net.DNSError
			if a.err == nil || errors.As(a.err, &d) && d.IsNotFound || asked == len(servers) && open == 0 {
				return a.found, a.err
			}
			if asked < len(servers) {
				next()
			}
		case <-ctx.Done():
			return nil, &net.DNSError{Err: ctx.Err().Error(), Name: name, IsTimeout: true, UnwrapErr: ctx.Err()}
		}
	}
}
