package policy

import "time"

// Rate is a token bucket: it allows a number of events per second, and as many at
// once after a quiet second. The zero value allows everything. It is not safe for
// concurrent use.
type Rate struct {
	// PerSecond is the limit. If zero, there is none.
	PerSecond int

	tokens float64
	last   time.Time
}

// Allow reports whether an event may happen now, and counts it if so.
func (r *Rate) Allow(now time.Time) bool {
	if r.PerSecond <= 0 {
		return true
	}
	most := float64(r.PerSecond)
	if r.last.IsZero() {
		r.tokens = most
	} else if d := now.Sub(r.last); d > 0 {
		r.tokens = min(most, r.tokens+d.Seconds()*most)
	}
	r.last = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}
