package policy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// BreakerState says what a Breaker lets through.
type BreakerState uint32

// The states.
const (
	Closed   BreakerState = iota // traffic passes
	HalfOpen                     // only trials pass
	Open                         // nothing passes until the next trial is due
)

// String is the state's name in logs, metrics and the API.
func (s BreakerState) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half_open"
	case Open:
		return "open"
	}
	return fmt.Sprintf("breaker state %d", uint32(s))
}

// Outcome is the result of an attempt that a Breaker permitted.
type Outcome uint8

// The outcomes. Neutral says nothing about the destination: we or the client ended
// the attempt.
const (
	Neutral Outcome = iota
	Success
	Failure
)

// BreakerConfig says when a breaker opens, and for how long.
type BreakerConfig struct {
	// Failures is how many failures in a row open it. If zero, it never opens.
	Failures int
	// Open is how long it stays open at first. That doubles, up to MaxOpen, each time
	// it opens again without a success in between. If MaxOpen is zero, it is Open.
	Open, MaxOpen time.Duration
	// Probes is how many trials may run at a time while it is half-open.
	// If zero, one.
	Probes int
}

// openJitter is the fraction of an open time that jitter may remove: enough to
// spread many ambassadors that lost the same destination at once, and little
// enough that "open: 5s" means about five seconds.
const openJitter = 0.2

// openFor returns the length of the n-th open time in a row (0 is the first), in
// (80 %, 100 %] of the configured one.
func (c *BreakerConfig) openFor(n int, jitter float64) time.Duration {
	limit := max(c.Open, c.MaxOpen)
	return Backoff{Base: c.Open, Max: limit}.Pause(n, jitter*2*openJitter)
}

// Ticket is the permission for one attempt, which settles it once. Settling the
// zero Ticket has no effect.
type Ticket struct {
	generation uint64
	round      uint32 // of the breaker when the attempt began
	trial      bool
}

// Transition is a change of state. If From == To, nothing changed.
type Transition struct{ From, To BreakerState }

// Changed reports whether there was a change.
func (t Transition) Changed() bool { return t.From != t.To }

// Breaker is a circuit breaker: it keeps attempts away from a destination that
// fails. It is closed until Failures in a row, then open, then half-open for
// trials. The first trial that succeeds closes it; the first that fails opens it
// again, for longer.
//
// Failures are in a row only if each attempt began after the previous failure was
// settled: concurrent attempts meet the same event, so a burst of failures counts
// as one. A failure of an attempt that began before the last success does not
// count either. A success always counts, however long its attempt took.
//
// The zero Breaker never opens; make one that does with NewBreaker. It is safe
// for concurrent use and allocates nothing, except for Changed.
type Breaker struct {
	cfg   BreakerConfig // static after construction
	state atomic.Uint32 // a BreakerState; written with mu held

	mu         sync.Mutex
	changed    chan struct{} // guarded by mu; closed at the next change of state; nil: no waiter
	generation uint64        // guarded by mu; of tickets; incremented by every change of state
	round      uint32        // guarded by mu; incremented by every success and counted failure
	failures   int           // guarded by mu; in a row, while closed
	opened     int           // guarded by mu; open times in a row without a success
	trials     int           // guarded by mu; running, while half-open
	retryAt    time.Time     // guarded by mu; when the next trial is due, while open
}

// NewBreaker makes a closed breaker.
func NewBreaker(cfg BreakerConfig) *Breaker {
	b := &Breaker{}
	b.Init(cfg)
	return b
}

// Init is NewBreaker for a breaker that is embedded in another value. Call it
// before any other method.
func (b *Breaker) Init(cfg BreakerConfig) {
	cfg.Probes = max(cfg.Probes, 1)
	b.cfg, b.generation = cfg, 1
}

// BreakerMemory is the state of a breaker, for one that replaces it.
type BreakerMemory struct {
	Failures int       `json:"failures,omitempty"` // in a row, while closed
	Opened   int       `json:"opened,omitempty"`   // open times in a row without a success
	Open     bool      `json:"open,omitempty"`     // nothing passes
	RetryAt  time.Time `json:"retry_at,omitzero"`  // when the next trial is due; zero unless Open
}

// Memory returns the breaker's state; ok is false if that is the initial one.
// Running trials are not part of it: a half-open breaker counts as open with a
// trial due now.
func (b *Breaker) Memory(now time.Time) (m BreakerMemory, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m = BreakerMemory{b.failures, b.opened, b.State() != Closed, b.retryAt}
	if b.State() == HalfOpen {
		m.RetryAt = now
	}
	return m, m != BreakerMemory{}
}

// Recall restores the state of another breaker with the same configuration. Call
// it right after Init.
func (b *Breaker) Recall(m BreakerMemory) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.Open {
		b.enter(Open)
	}
	b.retryAt, b.failures, b.opened = m.RetryAt, m.Failures, m.Opened
}

// State returns the current state. When the open time is over, it stays Open
// until Permit is called.
func (b *Breaker) State() BreakerState { return BreakerState(b.state.Load()) }

// Usable reports whether Permit would give a ticket. While Closed it costs one
// atomic read.
func (b *Breaker) Usable(now time.Time) bool {
	if b.State() == Closed {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.usable(now)
}

func (b *Breaker) usable(now time.Time) bool {
	switch b.State() {
	case Open:
		return !now.Before(b.retryAt)
	case HalfOpen:
		return b.trials < b.cfg.Probes
	}
	return true
}

// Permit returns the ticket for one attempt, if one is permitted now. If the open
// time is over, the ticket is that of the first trial, and the breaker becomes
// half-open.
func (b *Breaker) Permit(now time.Time) (Ticket, Transition, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	from := b.State()
	if !b.usable(now) {
		return Ticket{}, Transition{from, from}, false
	}
	if from == Closed {
		return Ticket{generation: b.generation, round: b.round}, Transition{}, true
	}
	if from == Open {
		b.enter(HalfOpen)
	}
	b.trials++
	return Ticket{b.generation, b.round, true}, Transition{from, HalfOpen}, true
}

// Settle records the outcome of a ticket's attempt. Counted reports whether the
// outcome says something about the destination. A Neutral one does not, nor does
// a failure of an attempt that began before the last success, the last counted
// failure or the last change of state. A success always does: if the breaker has
// opened since the attempt began, it counts like a probe that passed. Jitter is a
// number in [0, 1).
func (b *Breaker) Settle(t Ticket, o Outcome, now time.Time, jitter float64) (change Transition, counted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	from := b.State()
	current := t.generation == b.generation
	if current && t.trial {
		b.trials--
	}
	switch {
	case o == Neutral || t == Ticket{}:
		return Transition{from, from}, o != Neutral
	case o == Success && current:
		b.succeeded()
	case o == Success:
		b.passed()
	case !current || t.round != b.round && !t.trial:
		return Transition{from, from}, false
	default:
		b.failed(now, jitter)
	}
	b.round++
	return Transition{from, b.State()}, true
}

// succeeded handles the success of an attempt that the current state permitted.
// Mu is held.
func (b *Breaker) succeeded() {
	if b.State() == HalfOpen {
		b.close()
		return
	}
	b.failures, b.opened = 0, 0
}

// failed handles the failure of such an attempt. Mu is held.
func (b *Breaker) failed(now time.Time, jitter float64) {
	if b.State() == HalfOpen {
		b.open(now, jitter)
		return
	}
	b.failures++
	if b.cfg.Failures > 0 && b.failures >= b.cfg.Failures {
		b.open(now, jitter)
	}
}

// passed handles a success other than that of a current trial: of a probe, or of
// an attempt from before the breaker opened. Mu is held.
func (b *Breaker) passed() {
	switch {
	case b.State() == Open:
		b.enter(HalfOpen)
	case b.State() == HalfOpen && b.trials == 0:
		b.close()
	}
}

// Watch returns a ticket for a health probe, which is always permitted; Probed
// settles it.
func (b *Breaker) Watch() Ticket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Ticket{generation: b.generation}
}

// Probed records the outcome of a health probe. A probe that passed makes an open
// breaker half-open at once, and closes a half-open one without running trials. A
// probe that failed when a trial is due counts as that trial: the breaker opens
// again, for longer. While the breaker is closed, probes have no effect.
func (b *Breaker) Probed(t Ticket, o Outcome, now time.Time, jitter float64) Transition {
	b.mu.Lock()
	defer b.mu.Unlock()
	from := b.State()
	switch {
	case t.generation != b.generation || o == Neutral:
	case o == Success:
		b.passed()
	case o == Failure && from == Open && !now.Before(b.retryAt), o == Failure && from == HalfOpen:
		b.open(now, jitter)
	}
	return Transition{from, b.State()}
}

// RetryAt returns when the next trial is due; the zero time unless Open.
func (b *Breaker) RetryAt() time.Time {
	if b.State() != Open {
		return time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.retryAt
}

// Changed returns a channel that is closed at the next change of state.
func (b *Breaker) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

func (b *Breaker) open(now time.Time, jitter float64) {
	b.enter(Open)
	b.retryAt = now.Add(b.cfg.openFor(b.opened, jitter))
	b.opened++
}

func (b *Breaker) close() {
	b.enter(Closed)
	b.opened = 0
}

func (b *Breaker) enter(s BreakerState) {
	b.state.Store(uint32(s))
	b.generation++
	b.failures, b.trials, b.retryAt = 0, 0, time.Time{}
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}
