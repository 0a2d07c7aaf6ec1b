package nameserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ambassador/l4/task"
)

// How long the answer for one address family is awaited once there is an address of the
// other.
const (
	// Quick is for a client that waits: the Resolution Delay of RFC 8305, section 3.
	Quick = 50 * time.Millisecond
	// Patient is for a lookup that nobody waits for. Go's resolver repeats a lost query
	// after 5 s.
	Patient = 7 * time.Second
)

// nextServerAfter is how long a server may be silent before the next is asked as well.
const nextServerAfter = time.Second

// Answer is the addresses of a name, in the order that the system prefers (RFC 6724).
type Answer struct {
	Addrs []netip.Addr
	// Partial: the answer for one address family was not awaited.
	Partial bool
}

// Resolver looks up names. It is safe for concurrent use.
type Resolver struct {
	// Static after construction.
	servers []string // "10.0.0.2:53"; none: the system's
	catch   func(body func()) error

	mu     sync.Mutex
	shared map[question]*shared // guarded by mu; the lookups in flight
}

type question struct {
	host  string
	delay time.Duration
}

// shared is a lookup that several callers may wait for.
type shared struct {
	cancel  context.CancelFunc
	waiting int           // guarded by Resolver.mu
	done    chan struct{} // closed at the end
	answer  Answer        // readable once done is closed
	err     error         // readable once done is closed
}

// New returns a resolver that asks the given servers ("10.0.0.2:53"), or the system's if
// there are none. Catch runs a body, and returns an error if it panics; nil: panics are
// not caught. A panic counts as a failure of the server, but a panic in a goroutine of
// net's own resolver ends the process.
func New(servers []string, catch func(body func()) error) *Resolver {
	if catch == nil {
		catch = func(body func()) error { body(); return nil }
	}
	return &Resolver{servers: servers, catch: catch, shared: map[question]*shared{}}
}

// LookUp looks up the addresses of a name in the way of sessions. It reads /etc/hosts,
// and asks the given servers ("10.0.0.2:53"), or the system's if there are none.
func LookUp(ctx context.Context, servers []string, host string) ([]netip.Addr, error) {
	found, err := New(servers, nil).Addresses(ctx, host, Quick)
	return found.Addrs, err
}

// Addresses looks up the addresses of a host. Delay is Quick or Patient. The error is, or
// wraps, a *net.DNSError.
func (r *Resolver) Addresses(ctx context.Context, host string, delay time.Duration) (Answer, error) {
	task.Leave(ctx)
	q := question{host, delay}
	s := r.join(ctx, q)
	defer r.leave(q, s)
	select {
	case <-s.done:
		return Answer{slices.Clone(s.answer.Addrs), s.answer.Partial}, s.err
	case <-ctx.Done():
		return Answer{}, timedOut(ctx, host)
	}
}

// join returns the lookup in flight for q, or starts one.
func (r *Resolver) join(ctx context.Context, q question) *shared {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.shared[q]
	if s == nil {
		s = &shared{done: make(chan struct{})}
		ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
		r.shared[q] = s
		go r.run(ctx, q, s) // ends when the last caller leaves
	}
	s.waiting++
	return s
}

func (r *Resolver) leave(q question, s *shared) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.waiting--; s.waiting > 0 {
		return
	}
	s.cancel()
	if r.shared[q] == s {
		delete(r.shared, q)
	}
}

func (r *Resolver) run(ctx context.Context, q question, s *shared) {
	s.answer, s.err = ask(ctx, r, q.host, func(ctx context.Context, server string) (Answer, error) {
		return addresses(ctx, server, q)
	})
	r.mu.Lock()
	if r.shared[q] == s {
		delete(r.shared, q)
	}
	r.mu.Unlock()
	close(s.done)
}

// Services lists the targets of an SRV name ("_postgresql._tcp.db.internal").
func (r *Resolver) Services(ctx context.Context, name string) ([]*net.SRV, error) {
	task.Leave(ctx)
	return ask(ctx, r, name, func(ctx context.Context, server string) ([]*net.SRV, error) {
		x := newExchange(ctx, server, 0)
		defer x.close()
		_, targets, err := x.resolver().LookupSRV(ctx, "", "", name)
		if len(targets) > 0 {
			err = nil // some targets had invalid names
		}
		return targets, x.truth(err, name)
	})
}

// addresses asks one server; the system's own resolver if server is empty.
func addresses(ctx context.Context, server string, q question) (Answer, error) {
	x := newExchange(ctx, server, q.delay)
	defer x.close()
	addrs, err := x.resolver().LookupNetIP(ctx, "ip", q.host)
	if isNotFound(err) && server != "" && x.setAlias(q.host) {
		addrs, err = x.resolver().LookupNetIP(ctx, "ip", x.aliasHost)
	}
	return Answer{addrs, x.cut.Load()}, x.truth(err, q.host)
}

func isNotFound(err error) bool {
	d, ok := errors.AsType[*net.DNSError](err)
	return ok && d.IsNotFound
}

func timedOut(ctx context.Context, name string) error {
	return &net.DNSError{Err: ctx.Err().Error(), Name: name, IsTimeout: true, UnwrapErr: ctx.Err()}
}

type result[T any] struct {
	found T
	err   error
}

// ask asks the servers in order. It asks the next one when a server fails, or is silent
// for nextServerAfter. That a name does not exist is an answer.
func ask[T any](ctx context.Context, r *Resolver, name string, one func(ctx context.Context, server string) (T, error)) (none T, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the lookups that lost
	servers := r.servers
	if len(servers) == 0 {
		servers = systemServers()
	}
	results := make(chan result[T], len(servers))
	asked, open := 0, 0
	next := func() {
		server := servers[asked]
		asked, open = asked+1, open+1
		go func() { // results has room for all
			var a result[T]
			if err := r.catch(func() { a.found, a.err = one(ctx, server) }); err != nil {
				a.err = err
			}
			results <- a
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
		case a := <-results:
			open--
			if a.err == nil || isNotFound(a.err) || asked == len(servers) && open == 0 {
				return a.found, a.err
			}
			if asked < len(servers) {
				next()
			}
		case <-ctx.Done():
			return none, timedOut(ctx, name)
		}
	}
}
