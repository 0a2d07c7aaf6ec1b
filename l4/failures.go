package l4

import (
	"container/list"
	"sync"
	"time"
)

const (
	// freeFailures may be mistyped before anybody is slowed down.
	freeFailures = 3
	// firstDelay is that of the first failure that is not free; it doubles up to
	// maxDelay.
	firstDelay = 250 * time.Millisecond
	maxDelay   = 4 * time.Second
	// forgetAfter is how long a client without a failure is remembered.
	forgetAfter = 5 * time.Minute
	// maxFailing bounds the clients that are remembered, at some 200 bytes each. A
	// newer one takes the place of that which failed the longest ago.
	maxFailing = 4096
)

// failures are the clients that have sent wrong passwords of late. The zero value
// is ready.
type failures struct {
	mu      sync.Mutex
	clients map[Source]*list.Element // guarded by mu
	order   list.List                // guarded by mu; of *failing, who failed the longest ago first
}

// failing is one client.
type failing struct {
	client Source
	count  int
	last   time.Time
}

// add counts a failure, and says how long its answer has to wait. Only the answer
// to a wrong password does: who shares an address with somebody that fails all the
// time, as programs of one host do, comes in without delay.
func (f *failures) add(client Source, now time.Time) (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.of(client, now)
	c.count++
	c.last = now
	return delayOf(c.count)
}

// of finds a client, or makes it. It becomes the last in order. Mu is held.
func (f *failures) of(client Source, now time.Time) *failing {
	for e := f.order.Front(); e != nil && now.Sub(e.Value.(*failing).last) >= forgetAfter; e = f.order.Front() {
		f.drop(e)
	}
	if e := f.clients[client]; e != nil {
		f.order.MoveToBack(e)
		return e.Value.(*failing)
	}
	if f.clients == nil {
		f.clients = map[Source]*list.Element{}
	}
	if len(f.clients) >= maxFailing {
		f.drop(f.order.Front())
	}
	c := &failing{client: client}
	f.clients[client] = f.order.PushBack(c)
	return c
}

// drop forgets a client. Mu is held.
func (f *failures) drop(e *list.Element) {
	delete(f.clients, e.Value.(*failing).client)
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
