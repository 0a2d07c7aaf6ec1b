package load

import (
	"slices"
	"time"
)

const (
	// MaxSteps is how many steps may wait for a loop. Beyond that handshakes are done by
	// goroutines, where the clients take turns and all processors help.
	MaxSteps = 16
	// SlowStep is a step that takes too long for a loop, such as a signature with a large
	// RSA key. For pauseAfter times as long the loop does none.
	SlowStep   = 2 * time.Millisecond
	pauseAfter = 50
)

// Steps is work of sessions that computes for long, such as the steps of TLS handshakes.
// A loop does it after its events, and only for a bounded time: sessions that wait for
// their bytes must not wait for many handshakes. It is not safe for concurrent use.
type Steps struct {
	waiting []func() // the next one first
	pauses  int64    // none is taken before, on the caller's clock
}

// Take adds a step, unless the loop has too many or has just done a slow one. Now is in
// nanoseconds.
func (s *Steps) Take(step func(), now int64) bool {
	if len(s.waiting) >= MaxSteps || now < s.pauses {
		return false
	}
	s.waiting = append(s.waiting, step)
	return true
}

// Wait reports whether steps wait.
func (s *Steps) Wait() bool { return len(s.waiting) > 0 }

// Next removes the next step and returns it; nil if none waits.
func (s *Steps) Next() func() {
	if len(s.waiting) == 0 {
		return nil
	}
	step := s.waiting[0]
	s.waiting = slices.Delete(s.waiting, 0, 1)
	return step
}

// Took says how long a step took that ended at a time. It reports whether that was slow:
// those that wait should not do the same to the loop.
func (s *Steps) Took(end int64, d time.Duration) (slow bool) {
	if d <= SlowStep {
		return false
	}
	s.pauses = end + pauseAfter*int64(d)
	return true
}
