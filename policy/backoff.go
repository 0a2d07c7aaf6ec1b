package policy

import "time"

// Backoff is the pause before a failed operation is repeated. It doubles from
// Base to Max. Jitter removes up to half of it, so that callers that failed
// together do not repeat together.
type Backoff struct {
	// Base is the first pause. If zero, there is no pause.
	Base time.Duration
	// Max bounds the pause before jitter. If zero, 32 times Base.
	Max time.Duration
}

// Pause returns the wait before repetition n (0 is the first). Jitter is a number
// in [0, 1); the result is in (half the pause, the pause].
func (b Backoff) Pause(n int, jitter float64) time.Duration {
	limit := b.Max
	if limit == 0 {
		limit = 32 * b.Base
	}
	d := b.Base
	for range n {
		if d >= limit/2 {
			d = limit
			break
		}
		d *= 2
	}
	return d - time.Duration(jitter*float64(d)/2)
}
