package limits

import (
	"container/list"
	"sync"
	"time"
)

// Deadlines holds values in the order of their deadlines, with one timer for all. It is
// safe for concurrent use.
type Deadlines[T any] struct {
	// By is when a value is due. Of two values the one that was added later is not due
	// earlier. Static.
	By func(T) time.Time
	// Expired gets the values that are due, on a goroutine of its own. Static.
	Expired func([]T)

	mu    sync.Mutex
	all   list.List   // guarded by mu; of T, in the order of their deadlines
	timer *time.Timer // guarded by mu; nil before the first value
	armed bool        // guarded by mu; the timer is running
}

// Add adds a value, and returns its place.
func (d *Deadlines[T]) Add(v T) (place *list.Element) {
	d.mu.Lock()
	defer d.mu.Unlock()
	place = d.all.PushBack(v)
	d.arm(time.Now())
	return place
}

// Remove removes a value, unless it is gone.
func (d *Deadlines[T]) Remove(place *list.Element) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all.Remove(place)
}

// Len is how many values there are.
func (d *Deadlines[T]) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all.Len()
}

// arm sets the timer for the first value, which may leave before the timer fires: that is
// cheaper than a timer for each value. Mu is held.
func (d *Deadlines[T]) arm(now time.Time) {
	first := d.all.Front()
	if first == nil || d.armed {
		return
	}
	wait := d.By(first.Value.(T)).Sub(now)
	d.armed = true
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, func() { d.Expired(d.due(time.Now())) }) // holds nothing once all values have left
		return
	}
	d.timer.Reset(wait)
}

// due removes and returns the values that are due.
func (d *Deadlines[T]) due(now time.Time) (out []T) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = false
	for at := d.all.Front(); at != nil && !d.By(at.Value.(T)).After(now); at = d.all.Front() {
		out = append(out, d.all.Remove(at).(T))
	}
	d.arm(now)
	return out
}
