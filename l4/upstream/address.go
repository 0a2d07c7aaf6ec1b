package upstream

import (
	"cmp"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/tlscause"
	"ambassador/policy"
)

// Address is one resolved address of an endpoint, with its state. It lives as long as
// the name resolves to it, or longer: as long as a session uses it.
type Address struct {
	// Static after construction.
	endpoint *endpoint
	unix     string
	addr     netip.AddrPort
	name     string // "10.0.0.7:5432", "[::1]:5432", "unix:/path"
	upstream *Upstream
	breaker  *policy.Breaker // in a dynamic upstream, that of its destination

	share        policy.Share // for the Balancer
	places       atomic.Int64 // connections that are being made or are open
	preconnected atomic.Int64 // the preconnected ones among them
	down         atomic.Bool  // the verdict is Unhealthy; written with mu held
	asked        atomic.Bool  // a prober makes the trials of an open breaker
	proved       atomic.Bool  // the last result was good
	served       atomic.Bool  // a session succeeded since the prober's last step
	slow         atomic.Int64 // until when other addresses are preferred, in nanoseconds after upstream.born; 0: they are not

	tls tlsMemory

	// refusedWith is the TLS configuration of the last TLS failure; nil: there was none.
	refusedWith atomic.Pointer[tls.Config]

	// request is the last request of the server for our certificate; nil: there was none.
	request atomic.Pointer[tlscause.Request]

	mu         sync.Mutex
	health     policy.HealthFold // guarded by mu
	lastResult policy.Outcome    // guarded by mu; the last verdict of sessions since the prober's last step
	cause      string            // guarded by mu; of the last failure
	failed     time.Time         // guarded by mu; when the last failure was
}

func (u *Upstream) newAddress(e *endpoint, unix string, addr netip.AddrPort) *Address {
	a := &Address{}
	u.initAddress(a, e, unix, addr)
	return a
}

// initAddress is newAddress for an address that is embedded in another value.
func (u *Upstream) initAddress(a *Address, e *endpoint, unix string, addr netip.AddrPort) {
	a.endpoint, a.upstream, a.unix, a.addr, a.name = e, u, unix, addr, "unix:"+unix
	if unix == "" {
		a.name = addr.String()
	}
}

// newMember is newAddress with a breaker for this address alone.
func (u *Upstream) newMember(e *endpoint, unix string, addr netip.AddrPort) *Address {
	a := u.newAddress(e, unix, addr)
	a.breaker = new(policy.Breaker)
	a.breaker.Init(u.cfg.Breaker)
	return a
}

// log returns the logger for changes of the address's state.
func (a *Address) log() *slog.Logger {
	return a.upstream.log.With("upstream", a.upstream.cfg.Name, "endpoint", a.endpoint.address, "address", a.name)
}

// candidate is an address to dial, which is a unix path or an IP address with a port,
// and the permission to dial it. If at is nil, it is an endpoint whose name did not
// resolve.
type candidate struct {
	endpoint *endpoint
	at       *Address
	ticket   policy.Ticket
	began    int64 // when the attempt was permitted, in nanoseconds after upstream.born
	probe    bool  // for a prober: it holds no place, and the prober judges its outcome
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

// port returns the port of the address; 0 if it has none, or is not known.
func (c candidate) port() uint16 {
	if c.at == nil {
		return 0
	}
	return c.at.addr.Port()
}

// permit asks for an attempt at the address. The candidate holds a place until
// release, and a ticket until the attempt is settled. It returns false if the breaker
// or the limit does not permit the attempt.
func (a *Address) permit(now time.Time, limit int) (candidate, bool) {
	if n := a.places.Add(1); limit > 0 && n > int64(limit) {
		a.places.Add(-1)
		return candidate{}, false
	}
	ticket, change, ok := a.breaker.Permit(now)
	if !ok {
		a.places.Add(-1)
		return candidate{}, false
	}
	a.logChange(change, "the next trial was due")
	return a.candidate(ticket, now), true
}

// candidate returns the address with a ticket. The outcome of the zero ticket has no
// effect on the breaker. The caller has taken the place.
func (a *Address) candidate(t policy.Ticket, now time.Time) candidate {
	return candidate{endpoint: a.endpoint, at: a, ticket: t, began: a.upstream.age(now)}
}

// full reports whether the address has as many connections as limit allows; 0 is no
// limit.
func (a *Address) full(limit int) bool { return limit > 0 && a.places.Load() >= int64(limit) }

// release gives the place back. The caller calls it once for each candidate.
func (c candidate) release() {
	if c.at != nil && !c.probe {
		c.at.places.Add(-1)
	}
}

// settle records the verdict on an attempt, and the reason in words. Counted reports
// whether the verdict says something about the address; see policy.Breaker.
func (a *Address) settle(t policy.Ticket, verdict policy.Outcome, why string) (counted bool) {
	now, jitter := time.Now(), 0.0
	if verdict == policy.Failure {
		jitter = rand.Float64()
		a.failedWith(why, now)
	}
	change, counted := a.breaker.Settle(t, verdict, now, jitter)
	if counted {
		a.mu.Lock()
		a.lastResult = verdict
		a.mu.Unlock()
	}
	a.logChange(change, why)
	return counted
}

// slowFor is how long other addresses are preferred to an address that was too slow for
// an attempt, if the breaker has no open time.
const slowFor = 5 * time.Second

// timedOut makes other addresses preferred for the first open time of a breaker. A
// session that waits for a slow address loses the time in which another would serve it.
// The breaker, which lets no session wait, opens later: a burst counts as one failure.
func (a *Address) timedOut(now time.Time) {
	a.slow.Store(a.upstream.age(now) + a.slowFor())
}

// slowFor returns how long other addresses are preferred, in nanoseconds.
func (a *Address) slowFor() int64 { return int64(cmp.Or(a.upstream.cfg.Breaker.Open, slowFor)) }

// answered ends the effect of timedOut, if the successful attempt began after timedOut.
func (a *Address) answered(began int64) {
	if until := a.slow.Load(); until != 0 && began >= until-a.slowFor() {
		a.slow.CompareAndSwap(until, 0)
	}
}

// isSlow reports whether other addresses are preferred. If there is a prober, it finds
// out when the address answers again. Else a session does, once the time is over.
func (a *Address) isSlow(now time.Time) bool {
	until := a.slow.Load()
	return until != 0 && (a.asked.Load() || a.upstream.age(now) < until)
}

// chosen is called when a session takes the address. If the address was slow and the
// time is over, other sessions avoid it until the result of this one is known.
func (a *Address) chosen(now time.Time) {
	if a.slow.Load() != 0 {
		a.timedOut(now)
	}
}

// failedWith records the cause of the last failure.
func (a *Address) failedWith(why string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cause, a.failed = why, now
}

// lastFailure returns the cause and the time of the last failure.
func (a *Address) lastFailure() (cause string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause, a.failed
}

// logChange logs a change of the breaker's state.
func (a *Address) logChange(t policy.Transition, why string) {
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

// retryIn returns the time until the next trial is due, rounded up to a millisecond: a
// session that waits for it is not too early. It is zero if the trial is due.
func (a *Address) retryIn(now time.Time) time.Duration {
	at := a.breaker.RetryAt()
	if at.IsZero() {
		return 0
	}
	return (max(at.Sub(now), 0) + time.Millisecond - 1).Truncate(time.Millisecond)
}

// AddressStatus is the state of one address.
type AddressStatus struct {
	Address string `json:"address"`
	// Health is healthy, unhealthy or unknown. HealthSince is when that began.
	Health      policy.Health `json:"health"`
	HealthSince *time.Time    `json:"health_since,omitempty"`
	// Breaker is closed, half_open or open. NextTrial is when an open breaker permits
	// the next attempt.
	Breaker   string     `json:"breaker"`
	NextTrial *time.Time `json:"next_trial,omitempty"`
	// Sessions is the number of connections that are open or being made. Preconnected is
	// the number of preconnected connections, which are not among them.
	Sessions     int `json:"sessions"`
	Preconnected int `json:"spares"`
	// LastError is the cause of the last failure; a success does not clear it.
	LastError   string     `json:"last_error,omitempty"`
	LastErrorAt *time.Time `json:"last_error_at,omitempty"`
}

func (a *Address) status() AddressStatus {
	preconnected := int(a.preconnected.Load())
	s := AddressStatus{Address: a.name, Breaker: a.breaker.State().String(), Preconnected: preconnected, Sessions: max(int(a.places.Load())-preconnected, 0)}
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

// usable reports whether a session may choose the address now. If a prober makes the
// trials of an open breaker, no session is risked for a trial.
func (a *Address) usable(now time.Time) bool {
	if a.down.Load() || a.asked.Load() && a.breaker.State() == policy.Open {
		return false
	}
	return a.breaker.Usable(now)
}
