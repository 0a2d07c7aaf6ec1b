package policy

import "time"

// Health is the verdict on an address.
type Health string

// The verdicts, as in logs, metrics and the API.
const (
	Unknown   Health = "unknown" // no check yet; the address is used
	Healthy   Health = "healthy"
	Unhealthy Health = "unhealthy"
)

// HealthConfig says how many checks in a row change a verdict. A field of zero
// means one.
type HealthConfig struct{ Rise, Fall int }

// HealthFold computes the verdict of a series of checks. Before the first it is
// Unknown. Then one check that passes makes it Healthy, and Fall that fail make
// it Unhealthy; from there, Rise that pass are needed. The zero value has seen no
// check. It is not safe for concurrent use.
type HealthFold struct {
	verdict Health // empty: Unknown
	streak  int    // checks in a row that contradict the verdict
	since   time.Time
	cause   string
	causeAt time.Time
}

// Verdict returns the current verdict.
func (h *HealthFold) Verdict() Health {
	if h.verdict == "" {
		return Unknown
	}
	return h.verdict
}

// Since returns when the verdict last changed; zero before the first check.
func (h *HealthFold) Since() time.Time { return h.since }

// LastFailure returns the cause and the time of the last failed check; empty if
// none failed.
func (h *HealthFold) LastFailure() (cause string, at time.Time) { return h.cause, h.causeAt }

// Fold adds the next check and returns the verdict before it. Cause describes the
// failure of a check that did not pass.
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

// Forget makes the verdict Unknown, because checks have stopped.
func (h *HealthFold) Forget(now time.Time) {
	h.verdict, h.streak, h.since = "", 0, now
}

// HealthMemory is the state of a HealthFold, for one that replaces it.
type HealthMemory struct {
	Verdict Health    `json:"verdict,omitempty"` // empty: Unknown
	Streak  int       `json:"streak,omitempty"`  // checks in a row that contradict the verdict
	Since   time.Time `json:"since,omitzero"`
	Cause   string    `json:"cause,omitempty"` // of the last failure
	CauseAt time.Time `json:"cause_at,omitzero"`
}

// Memory returns the state.
func (h *HealthFold) Memory() HealthMemory {
	return HealthMemory{h.verdict, h.streak, h.since, h.cause, h.causeAt}
}

// Recall restores the state of another fold. An unknown verdict is Unknown.
func (h *HealthFold) Recall(m HealthMemory) {
	if m.Verdict != Healthy && m.Verdict != Unhealthy {
		m.Verdict, m.Streak = "", 0
	}
	*h = HealthFold{m.Verdict, m.Streak, m.Since, m.Cause, m.CauseAt}
}
