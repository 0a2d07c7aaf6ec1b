package report

import "time"

// Memory is a tally for the program that takes the place of this one.
type Memory struct {
	Since    time.Time `json:"since"`
	Allowed  int       `json:"allowed"`
	Overflow int       `json:"overflow,omitempty"`
	Entries  []Entry   `json:"entries,omitempty"` // each with one port
}

// Memory returns the tally.
func (t *Tally) Memory() Memory {
	c := t.copied()
	m := Memory{Since: c.since, Allowed: c.allowed, Overflow: c.overflow}
	for _, e := range c.asked {
		m.Entries = append(m.Entries, *e)
	}
	return m
}

// Recall returns a tally that goes on with another one.
func Recall(m Memory) *Tally {
	t := New(m.Since)
	t.allowed, t.overflow = m.Allowed, m.Overflow
	for i := range m.Entries {
		e := &m.Entries[i]
		if len(t.asked) < maxDestinations {
			t.asked[key{e.Listener, e.Rule, e.Host, e.First}] = e
		}
	}
	return t
}
