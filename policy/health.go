package policy

import "time"

// Health is the verdict on an address.
type Health string

// The verdicts: the words of logs, metrics and the API.
const (
	Unknown   Health = "unknown" // nothing has been seen yet; it is used
	Healthy   Health = "healthy"
	Unhealthy Health = "unhealthy"
)

// HealthConfig says how many checks in a row change a verdict. If zero, a field
// is one.
type HealthConfig struct{ Rise, Fall int }

// HealthFold is the verdict that follows from a series of checks. Nothing is known
// before the first; then one that passed is enough to be healthy, and Fall that
// failed are needed to be unhealthy; from there, Rise that pass. The zero value
// has seen nothing. It is not safe for concurrent use.
type HealthFold struct {
	verdict Health // empty: Unknown
	streak  int    // checks in a row that speak against the verdict
	since   time.Time
	cause   string
	causeAt time.Time
}

// Verdict is the verdict now.
func (h *HealthFold) Verdict() Health {
	if h.verdict == "" {
		return Unknown
	}
	return h.verdict
}

// Since is when the verdict became what it is; zero while nothing was seen.
func (h *HealthFold) Since() time.Time { return h.since }

// LastFailure is what the last check that failed saw, and when; empty if none did.
func (h *HealthFold) LastFailure() (cause string, at time.Time) { return h.cause, h.causeAt }

// Fold takes the next check and says what the verdict was before it. Cause is what
// a check that failed saw, in words.
func (h *HealthFold) Fold(cfg HealthConfig, passed bool, cause string, now time.Time) (was Health) {
	was = h.Verdict()
	if !passed {
		h.cause, h.causeAt = cause, now
	}
	against, needed := Unhealthy, max(cfg.Fall, 1)
	if passed {
		against, needed = Healthy, max(cfg.Rise, 1)
		if was == Unknown {
			needed = 1
		}
	}
	if was == against {
		h.streak = 0
		return was
	}
	h.streak++
	if h.streak >= needed {
		h.verdict, h.streak, h.since = against, 0, now
	}
	return was
}

// Forget makes the verdict Unknown: nothing is asked any more.
func (h *HealthFold) Forget(now time.Time) {
	h.verdict, h.streak, h.since = "", 0, now
}
