package htpasswd

import (
	"container/list"
	"sync"
	"time"

	"ambassador/policy"
)

const (
	// freeFailures is the number of wrong passwords whose answer is not delayed.
	freeFailures = 3
	// firstDelay is the delay of the first failure after them; it doubles up to
	// maxDelay.
	firstDelay = 250 * time.Millisecond
	maxDelay   = 4 * time.Second
	// forgetAfter is how long a source without a failure is remembered.
	forgetAfter = 5 * time.Minute
	// maxFailing bounds the sources that are remembered, at about 200 bytes each. A
	// new one replaces the one whose last failure is the oldest.
	maxFailing = 4096
)

// failures are the sources that have sent wrong passwords in the last forgetAfter. The
// zero value is ready.
type failures struct {
	mu      sync.Mutex
	sources map[policy.Source]*list.Element // guarded by mu
	order   list.List                       // guarded by mu; of *failing, the oldest failure first
}

// failing is one source.
type failing struct {
	source policy.Source
	count  int
	last   time.Time
}

// add counts a failure and returns how long its answer has to wait. Only answers to
// wrong passwords wait: a program that shares its address with one that always fails,
// as programs of one host do, is not delayed by it.
func (f *failures) add(from policy.Source, now time.Time) (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.of(from, now)
	s.count++
	s.last = now
	return delayOf(s.count)
}

// of finds or adds a source and makes it the last in order. Mu is held.
func (f *failures) of(from policy.Source, now time.Time) *failing {
	for e := f.order.Front(); e != nil && now.Sub(e.Value.(*failing).last) >= forgetAfter; e = f.order.Front() {
		f.drop(e)
	}
	if e := f.sources[from]; e != nil {
		f.order.MoveToBack(e)
		return e.Value.(*failing)
	}
	if f.sources == nil {
		f.sources = map[policy.Source]*list.Element{}
	}
	if len(f.sources) >= maxFailing {
		f.drop(f.order.Front())
	}
	s := &failing{source: from}
	f.sources[from] = f.order.PushBack(s)
	return s
}

// drop forgets a source. Mu is held.
func (f *failures) drop(e *list.Element) {
	delete(f.sources, e.Value.(*failing).source)
	f.order.Remove(e)
}

// delayOf is how long the answer to the nth failure waits.
func delayOf(n int) time.Duration {
	if n <= freeFailures {
		return 0
	}
	d := firstDelay
	for range n - freeFailures - 1 {
		if d *= 2; d >= maxDelay {
			return maxDelay
		}
	}
	return d
}
