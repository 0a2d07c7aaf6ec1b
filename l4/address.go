package l4

import (
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// address is one resolved address of an endpoint, with all that is known of it.
// It lives as long as the name resolves to it; a session that outlives it keeps it.
type address struct {
	// Static after construction.
	endpoint *endpoint
	unix     string
	addr     netip.AddrPort
	name     string // "10.0.0.7:5432", "[::1]:5432", "unix:/path"
	upstream *Upstream
	breaker  *policy.Breaker // of a dynamic upstream it is its site's

	share  policy.Share // the Balancer's
	places atomic.Int64 // connections that are being made or are open
	spares atomic.Int64 // those of them that wait for a session
	down   atomic.Bool  // health says Unhealthy; written with mu held
	asked  atomic.Bool  // a prober makes the trials of an open breaker
	proved atomic.Bool  // what was seen last was good
	served atomic.Bool  // a session went well since the prober looked
	slow   atomic.Int64 // until when others are preferred, in nanoseconds after upstream.born; 0: they are not

	// refusedWith is the configuration with which TLS failed last; nil: it did not.
	refusedWith atomic.Pointer[tls.Config]

	mu     sync.Mutex
	health policy.HealthFold // guarded by mu
	heard  policy.Outcome    // guarded by mu; what sessions saw last, since the prober looked
	cause  string            // guarded by mu; of the last failure
	failed time.Time         // guarded by mu; when that was
}

func (u *Upstream) newAddress(e *endpoint, unix string, addr netip.AddrPort) *address {
	a := &address{}
	u.initAddress(a, e, unix, addr)
	return a
}

// initAddress is newAddress for one that is part of something else.
func (u *Upstream) initAddress(a *address, e *endpoint, unix string, addr netip.AddrPort) {
	a.endpoint, a.upstream, a.unix, a.addr, a.name = e, u, unix, addr, "unix:"+unix
	if unix == "" {
		a.name = addr.String()
	}
}

// newMember is newAddress with a breaker of its own.
func (u *Upstream) newMember(e *endpoint, unix string, addr netip.AddrPort) *address {
	a := u.newAddress(e, unix, addr)
	a.breaker = new(policy.Breaker)
	a.breaker.Init(u.cfg.Breaker)
	return a
}

// log is for the changes of its state.
func (a *address) log() *slog.Logger {
	return a.upstream.log.With("upstream", a.upstream.cfg.Name, "endpoint", a.endpoint.address, "address", a.name)
}

// candidate is one address to dial: a unix path, or an IP address with port, and
// the permission to. Without an address it is an endpoint whose name did not
// resolve.
type candidate struct {
	endpoint *endpoint
	at       *address
	ticket   policy.Ticket
	began    int64 // when it was permitted, in nanoseconds after upstream.born
	probe    bool  // it is no session's: it holds no place, and its outcome is the prober's to judge
}

func (c candidate) String() string {
	switch {
	case c.at != nil:
		return c.at.name
	case c.endpoint != nil:
		return c.endpoint.address
	}
	return ""
}

// permit asks for an attempt at the address. The candidate holds a place until
// release, and its ticket until it is settled. False: the breaker or the limit
// says no, and blame says which.
func (a *address) permit(now time.Time, limit int) (candidate, bool) {
	if n := a.places.Add(1); limit > 0 && n > int64(limit) {
		a.places.Add(-1)
		return candidate{}, false
	}
	ticket, change, ok := a.breaker.Permit(now)
	if !ok {
		a.places.Add(-1)
		return candidate{}, false
	}
	a.turned(change, "the next trial was due")
	return a.candidate(ticket, now), true
}

// candidate is the address with a ticket, or with the zero one, whose outcome
// means nothing to the breaker. The caller has taken the place.
func (a *address) candidate(t policy.Ticket, now time.Time) candidate {
	return candidate{endpoint: a.endpoint, at: a, ticket: t, began: a.upstream.age(now)}
}

// full says whether the address has as many connections as it may.
func (a *address) full(limit int) bool { return limit > 0 && a.places.Load() >= int64(limit) }

// release gives the place back. It is called once for each candidate.
func (c candidate) release() {
	if c.at != nil && !c.probe {
		c.at.places.Add(-1)
	}
}

// settle tells the address how an attempt went, and why in words. Counted: this
// says something about the address; see policy.Breaker.
func (a *address) settle(t policy.Ticket, verdict policy.Outcome, why string) (counted bool) {
	now, jitter := time.Now(), 0.0
	if verdict == policy.Failure {
		jitter = rand.Float64()
		a.failedWith(why, now)
	}
	change, counted := a.breaker.Settle(t, verdict, now, jitter)
	if counted {
		a.mu.Lock()
		a.heard = verdict
		a.mu.Unlock()
	}
	a.turned(change, why)
	return counted
}

// slowFor is how long an address that was too slow for an attempt has others preferred,
// where the breaker has no open time.
const slowFor = 5 * time.Second

// timedOut prefers others for as long as a breaker would be open at first: a session
// that waits for a slow address loses the time in which another would serve it. The
// breaker, which lets nobody wait, opens later: a burst is one failure.
func (a *address) timedOut(now time.Time) {
	a.slow.Store(a.upstream.age(now) + a.slowFor())
}

// slowFor is that time in nanoseconds.
func (a *address) slowFor() int64 { return int64(orDefault(a.upstream.cfg.Breaker.Open, slowFor)) }

// answered takes that back, if what went well began after it.
func (a *address) answered(began int64) {
	if until := a.slow.Load(); until != 0 && began >= until-a.slowFor() {
		a.slow.CompareAndSwap(until, 0)
	}
}

// isSlow says whether others are preferred. A prober, where there is one, finds out
// when the address answers again; else a session does, once the time is over.
func (a *address) isSlow(now time.Time) bool {
	until := a.slow.Load()
	return until != 0 && (a.asked.Load() || a.upstream.age(now) < until)
}

// chosen is called for the session that goes to the address. Where the time of a slow
// one is over, others stay away until it is known how this session fares.
func (a *address) chosen(now time.Time) {
	if a.slow.Load() != 0 {
		a.timedOut(now)
	}
}

// failedWith keeps the cause of the last failure.
func (a *address) failedWith(why string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cause, a.failed = why, now
}

// lastFailure is what the last attempt that failed saw.
func (a *address) lastFailure() (cause string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause, a.failed
}

// outcomeOf is what the end of an attempt says about its address. A server that says
// that it is full has answered. Spoken: a byte of
// the client, or one that depends on it, was sent before, so that the end may be the
// client's doing. What a client says must never harm others.
func outcomeOf(r outcome.Reason, err error, spoken bool) policy.Outcome {
	switch {
	case r == outcome.OK, isFailure(r) && isBusy(err):
		return policy.Success
	case !isFailure(r) || spoken && !blamesCertificate(r, err):
		return policy.Neutral
	}
	return policy.Failure
}

// isFailure says whether a reason may speak against an address.
func isFailure(r outcome.Reason) bool {
	switch r {
	case outcome.Refused, outcome.Timeout, outcome.Unreachable, outcome.StartTLSRefused,
		outcome.UpstreamTLS, outcome.UpstreamTLSRejected, outcome.UpstreamEarlyClose:
		return true
	}
	return false
}

// turned logs a change of the breaker's state.
func (a *address) turned(t policy.Transition, why string) {
	if !t.Changed() {
		return
	}
	attrs := []any{"from", t.From.String(), "to", t.To.String(), "cause", why}
	if t.To == policy.Open {
		a.log().Warn("breaker", append(attrs, "retry_in", a.retryIn(time.Now()))...)
		return
	}
	a.log().Info("breaker", attrs...)
}

// retryIn is how long it takes until the next trial is due, to the next
// millisecond: who waits for so long does not come too early. Zero if it is due.
func (a *address) retryIn(now time.Time) time.Duration {
	at := a.breaker.RetryAt()
	if at.IsZero() {
		return 0
	}
	return (max(at.Sub(now), 0) + time.Millisecond - 1).Truncate(time.Millisecond)
}

// AddressStatus is what is known of one address.
type AddressStatus struct {
	Address string `json:"address"`
	// Health is healthy, unhealthy or unknown, HealthSince when that began.
	Health      policy.Health `json:"health"`
	HealthSince *time.Time    `json:"health_since,omitempty"`
	// Breaker is closed, half_open or open; NextTrial is when an open one lets the
	// next attempt through.
	Breaker   string     `json:"breaker"`
	NextTrial *time.Time `json:"next_trial,omitempty"`
	// Sessions are open, or being made. Spares are ready connections.
	Sessions int `json:"sessions"`
	Spares   int `json:"spares"`
	// LastError is the last failure, in words; a success does not clear it.
	LastError   string     `json:"last_error,omitempty"`
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

func (a *address) status() AddressStatus {
	spares := int(a.spares.Load())
	s := AddressStatus{Address: a.name, Breaker: a.breaker.State().String(), Spares: spares, Sessions: max(int(a.places.Load())-spares, 0)}
	if at := a.breaker.RetryAt(); !at.IsZero() {
		s.NextTrial = &at
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Health = a.health.Verdict()
	if since := a.health.Since(); !since.IsZero() {
		s.HealthSince = &since
	}
	if failed := a.failed; a.cause != "" {
		s.LastError, s.LastErrorAt = a.cause, &failed
	}
	return s
}

// parseLiteral gives the address of an endpoint that needs no look-up.
func parseLiteral(endpoint string) (unix string, addr netip.AddrPort, ok bool) {
	if path, is := strings.CutPrefix(endpoint, "unix:"); is {
		return path, netip.AddrPort{}, true
	}
	addr, err := netip.ParseAddrPort(endpoint)
	return "", netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), err == nil
}

// usable says whether a session may choose the address now. Where a prober makes
// the trials, none is sacrificed for one.
func (a *address) usable(now time.Time) bool {
	if a.down.Load() || a.asked.Load() && a.breaker.State() == policy.Open {
		return false
	}
	return a.breaker.Usable(now)
}
