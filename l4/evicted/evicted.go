package evicted

import (
	"math"
	"strings"
	"time"

	"ambassador/policy"
)

// Max is how many breakers are kept, in about 100 bytes each.
const Max = 4096 - 768

// maxCause bounds the cause that is kept of a failure, in bytes.
const maxCause = 120

// Destination is a destination with what is known of its breaker.
type Destination struct {
	Key     string               `json:"key"`
	Breaker policy.BreakerMemory `json:"breaker"`
	// Cause and Failed are the cause and the time of the last failure.
	Cause  string    `json:"cause,omitempty"`
	Failed time.Time `json:"failed,omitzero"`
}

// HasOpened reports whether the breaker is open, or was open and has not succeeded since.
// Of other breakers no cause is kept.
func (d *Destination) HasOpened() bool { return d.Breaker.Opened > 0 || d.Breaker.Open }

// Breakers are evicted breakers. The zero value has none. It is not safe for concurrent
// use.
type Breakers struct {
	byKey map[string]entry // nil before the first
	ring  []string         // the keys of byKey, and some former ones, in the order of eviction
	at    int              // the index in ring of the next
}

// entry is the evicted breaker of a destination.
type entry struct {
	failures int32 // of the breaker, if it is closed and opened is nil
	place    int32 // index in the ring
	opened   *opened
}

// opened is the memory of a breaker that has opened.
type opened struct {
	breaker policy.BreakerMemory
	cause   string // of the last failure
	failed  time.Time
}

func (e entry) breaker() policy.BreakerMemory {
	if e.opened != nil {
		return e.opened.breaker
	}
	return policy.BreakerMemory{Failures: int(e.failures)}
}

func (e entry) destination(key string) Destination {
	d := Destination{Key: key, Breaker: e.breaker()}
	if e.opened != nil {
		d.Cause, d.Failed = e.opened.cause, e.opened.failed
	}
	return d
}

// Keep keeps a breaker. Beyond Max, it replaces the breaker that was evicted first.
func (b *Breakers) Keep(d Destination) {
	e := entry{failures: int32(min(d.Breaker.Failures, math.MaxInt32)), place: int32(b.at)}
	if d.HasOpened() {
		e.opened = &opened{d.Breaker, strings.Clone(d.Cause[:min(len(d.Cause), maxCause)]), d.Failed}
	}
	if b.byKey == nil {
		b.byKey = map[string]entry{}
	}
	if b.at == len(b.ring) {
		b.ring = append(b.ring, "")
	}
	if oldest := b.ring[b.at]; b.byKey[oldest].place == int32(b.at) { // else it was taken before
		delete(b.byKey, oldest)
	}
	b.byKey[d.Key], b.ring[b.at] = e, d.Key
	b.at = (b.at + 1) % Max
}

// Take removes and returns a breaker; false if it is not kept.
func (b *Breakers) Take(key string) (Destination, bool) {
	e, ok := b.byKey[key]
	delete(b.byKey, key)
	return e.destination(key), ok
}

// Count returns how many of the breakers are closed, and how many are open.
func (b *Breakers) Count() (closed, open int) {
	for _, e := range b.byKey {
		if e.breaker().Open {
			open++
		}
	}
	return len(b.byKey) - open, open
}

// All returns the breakers, the one that was evicted first before the others.
func (b *Breakers) All() (out []Destination) {
	for i := range b.ring {
		key := b.ring[(b.at+i)%len(b.ring)]
		if e, ok := b.byKey[key]; ok {
			out = append(out, e.destination(key))
		}
	}
	return out
}

// Recall sets the breakers to the last Max of all, which another program has kept.
func (b *Breakers) Recall(all []Destination) {
	b.byKey = map[string]entry{}
	for _, d := range all[max(0, len(all)-Max):] {
		e := entry{failures: int32(min(d.Breaker.Failures, 1<<30)), place: int32(len(b.ring))}
		if d.HasOpened() {
			e.opened = &opened{d.Breaker, d.Cause, d.Failed}
		}
		b.byKey[d.Key], b.ring = e, append(b.ring, d.Key)
	}
	b.at = len(b.ring) % Max
}
