package relay

import (
	"sync"
	"time"
)

// clock has the deadlines of a loop's sessions: a heap by time, and one timer for
// its first. Times are those of the engine's clock.
type clock struct {
	loop *loop

	mu    sync.Mutex
	heap  []*flow     // guarded by mu; ordered by due; a flow's place is its heapIndex
	timer *time.Timer // guarded by mu; nil before the first
	armed int64       // guarded by mu; when the timer will fire; 0: not armed
}

// set makes the clock call f.tick at due. Called with f.mu held.
func (c *clock) set(f *flow, due int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.due = due
	if f.heapIndex == 0 {
		c.heap = append(c.heap, f)
		f.heapIndex = int32(len(c.heap))
		c.up(len(c.heap))
	} else {
		c.up(int(f.heapIndex))
		c.down(int(f.heapIndex))
	}
	c.arm()
}

// remove removes f. Called with f.mu held.
func (c *clock) remove(f *flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.heapIndex > 0 {
		c.take(int(f.heapIndex))
	}
}

// arm sets the timer for the first deadline. A timer that fires too early,
// because its session has ended, is cheaper than a reset each time.
func (c *clock) arm() {
	if len(c.heap) == 0 {
		return
	}
	due := c.heap[0].due
	if c.armed != 0 && c.armed <= due {
		return
	}
	wait := time.Duration(due - c.loop.engine.now())
	c.armed = due
	if c.timer == nil {
		c.timer = time.AfterFunc(wait, c.fire) // stop stops it
		return
	}
	c.timer.Reset(wait)
}

// fire calls tick for all sessions whose deadline has passed.
func (c *clock) fire() {
	c.mu.Lock()
	c.armed = 0
	now := c.loop.engine.now()
	var due []*flow
	for len(c.heap) > 0 && c.heap[0].due <= now {
		due = append(due, c.take(1))
	}
	c.arm()
	c.mu.Unlock()
	for _, f := range due {
		f.tick()
	}
}

func (c *clock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}

// Places in the heap count from 1; 0 means "not in the heap".

func (c *clock) take(i int) *flow {
	f, n := c.heap[i-1], len(c.heap)
	c.swap(i, n)
	c.heap[n-1] = nil
	c.heap = c.heap[:n-1]
	f.heapIndex = 0
	if i < n {
		c.up(i)
		c.down(i)
	}
	return f
}

func (c *clock) up(i int) {
	for i > 1 && c.heap[i-1].due < c.heap[i/2-1].due {
		c.swap(i, i/2)
		i /= 2
	}
}

func (c *clock) down(i int) {
	for {
		least := i
		for _, child := range []int{2 * i, 2*i + 1} {
			if child <= len(c.heap) && c.heap[child-1].due < c.heap[least-1].due {
				least = child
			}
		}
		if least == i {
			return
		}
		c.swap(i, least)
		i = least
	}
}

func (c *clock) swap(i, j int) {
	c.heap[i-1], c.heap[j-1] = c.heap[j-1], c.heap[i-1]
	c.heap[i-1].heapIndex, c.heap[j-1].heapIndex = int32(i), int32(j)
}
