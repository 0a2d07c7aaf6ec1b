package policy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// BreakerState is what a Breaker lets through.
type BreakerState uint32

// The states. Closed is the electrician's: traffic passes.
const (
	Closed   BreakerState = iota
	HalfOpen              // only trials pass
	Open                  // nothing passes until the next trial is due
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

// Outcome is how something that a Breaker permitted went.
type Outcome uint8

// The outcomes. Neutral is an end that says nothing about the destination: it
// was ours, or the client's.
const (
	Neutral Outcome = iota
	Success
	Failure
)

// BreakerConfig says when a breaker opens, and for how long.
type BreakerConfig struct {
	// Failures is how many in a row open it. If zero, it never opens.
	Failures int
	// Open is how long it stays open at first. Each time that no success came
	// between, that doubles, up to MaxOpen. If zero, MaxOpen is Open.
	Open, MaxOpen time.Duration
	// Probes is how many trials may be under way at a time while it is half-open.
	// If zero, one.
	Probes int
}

// openJitter is the share of an open time that jitter may take away: enough to
// part many ambassadors that lost the same destination at the same time, and
// little enough that "open: 5s" is about five seconds.
const openJitter = 0.2

// openFor is the length of the n-th open time in a row (0 is the first), in
// (80 %, 100 %] of what is configured.
func (c *BreakerConfig) openFor(n int, jitter float64) time.Duration {
	limit := max(c.Open, c.MaxOpen)
	return Backoff{Base: c.Open, Max: limit}.Pause(n, jitter*2*openJitter)
}

// Ticket is the permission for one attempt, which settles it once. The zero Ticket
// says nothing to any breaker.
type Ticket struct {
	generation uint64
	round      uint32 // of the breaker when the attempt began
	trial      bool
}

// Transition is a change of state. From == To is none.
type Transition struct{ From, To BreakerState }

// Changed says whether there was a change.
func (t Transition) Changed() bool { return t.From != t.To }

// Breaker keeps attempts from a destination that fails: closed until Failures in
// a row, then open, then half-open for trials, of which the first success closes
// it and the first failure opens it again, for longer.
//
// Failures are in a row only if each began after the one before it was settled:
// attempts that run at the same time meet the same event, and a burst of them is one
// failure. A failure that began before the last success says nothing either, and a
// success always counts, however long its attempt took.
//
// The zero Breaker never opens; make one that does with NewBreaker. It is safe for
// concurrent use and allocates nothing, except for Changed.
type Breaker struct {
	cfg   BreakerConfig // static after construction
	state atomic.Uint32 // a BreakerState; written with mu held

	mu         sync.Mutex
	changed    chan struct{} // guarded by mu; closed at the next change of state; nil: nobody waits
	generation uint64        // guarded by mu; of tickets, rises with every change of state
	round      uint32        // guarded by mu; rises with every success and counted failure
	failures   int           // guarded by mu; in a row, while closed
	opened     int           // guarded by mu; open times in a row without a success
	trials     int           // guarded by mu; under way, while half-open
	retryAt    time.Time     // guarded by mu; when the next trial is due, while open
}

// NewBreaker makes a closed breaker.
func NewBreaker(cfg BreakerConfig) *Breaker {
	b := &Breaker{}
	b.Init(cfg)
	return b
}

// Init is NewBreaker for a breaker that is part of something else. It comes
// before any other method.
func (b *Breaker) Init(cfg BreakerConfig) {
	cfg.Probes = max(cfg.Probes, 1)
	b.cfg, b.generation = cfg, 1
}

// BreakerMemory is what a breaker has learned, for one that takes its place.
type BreakerMemory struct {
	Failures int       // in a row, while closed
	Opened   int       // open times in a row without a success
	Open     bool      // it lets nothing through
	RetryAt  time.Time // until then; zero unless Open
}

// Memory is what the breaker has learned; ok is false if that is nothing. Trials
// under way are not part of it: a breaker that is half-open is open, and due now.
func (b *Breaker) Memory(now time.Time) (m BreakerMemory, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m = BreakerMemory{b.failures, b.opened, b.State() != Closed, b.retryAt}
	if b.State() == HalfOpen {
		m.RetryAt = now
	}
	return m, m != BreakerMemory{}
}

// Recall lets a breaker know what another has learned, which had the same
// configuration. It comes right after Init.
func (b *Breaker) Recall(m BreakerMemory) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.Open {
		b.enter(Open)
	}
	b.retryAt, b.failures, b.opened = m.RetryAt, m.Failures, m.Opened
}

// State is the state now: Open stays Open when its time is over, until somebody
// asks for the trial.
func (b *Breaker) State() BreakerState { return BreakerState(b.state.Load()) }

// Usable says whether Permit would say yes. While Closed it costs one atomic read.
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

// Permit gives the ticket for one attempt, if there may be one now. Where an open
// time is over, it is the first trial's, and the breaker half-open.
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

// Settle takes the outcome of a ticket's attempt. Counted says whether the outcome
// says something about the destination: a Neutral one does not, nor a failure that
// began before the last success, the last counted failure or the last change of
// state. A success always does: where the breaker has opened since the attempt
// began, it is as good as a probe that passed. Jitter is a number in [0, 1).
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

// succeeded is the success of an attempt that the present state permitted. Mu is held.
func (b *Breaker) succeeded() {
	if b.State() == HalfOpen {
		b.close()
		return
	}
	b.failures, b.opened = 0, 0
}

// failed is the failure of such an attempt. Mu is held.
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

// passed is a success that no trial of the present state had: a probe's, or that of
// an attempt from before the breaker opened. Mu is held.
func (b *Breaker) passed() {
	switch {
	case b.State() == Open:
		b.enter(HalfOpen)
	case b.State() == HalfOpen && b.trials == 0:
		b.close()
	}
}

// Watch gives a ticket for a health probe, which is always permitted; Probed
// settles it.
func (b *Breaker) Watch() Ticket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Ticket{generation: b.generation}
}

// Probed takes the outcome of a health probe. One that passed moves an open
// breaker to half-open at once, and closes one that is half-open and has no trial
// under way. One that failed is the trial that was due: the breaker is open
// again, for longer. While the breaker is closed probes say nothing to it.
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

// RetryAt is when the next trial is due: the zero time unless Open.
func (b *Breaker) RetryAt() time.Time {
	if b.State() != Open {
		return time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.retryAt
}

// Changed is closed at the next change of state.
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
