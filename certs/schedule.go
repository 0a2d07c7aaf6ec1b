package certs

import (
	"crypto/x509"
	"time"
)

const (
	// renewAfter is the part of a certificate's life after which it is renewed, and
	// renewJitter the part by which that may be earlier, so that those who began
	// together do not all come at once. A third of the life is left for a CA that
	// is down.
	renewAfter  = 2.0 / 3
	renewJitter = 1.0 / 20

	firstPause   = time.Second            // after a failure; and always, while there is no valid certificate
	longestPause = 5 * time.Minute        // between two tries
	leastPause   = 100 * time.Millisecond // for certificates of seconds
)

// span is the time that a certificate serves us: its validity, but not from
// before we had it, because CAs date certificates back.
type span struct{ from, to time.Time }

// newSpan begins at obtained, or with the validity if that is zero or earlier.
// Wall clock alone counts: the monotonic one stands still while a machine sleeps.
func newSpan(leaf *x509.Certificate, obtained time.Time) span {
	s := span{leaf.NotBefore, leaf.NotAfter}
	if obtained = obtained.Round(0); obtained.After(s.from) {
		s.from = obtained
	}
	return s
}

func (s span) life() time.Duration { return s.to.Sub(s.from) }

// renewal is when a certificate is to be renewed. Jitter is in [0, 1).
func (s span) renewal(jitter float64) time.Time {
	part := renewAfter - jitter*renewJitter
	return s.from.Add(time.Duration(part * float64(s.life())))
}

// retry is the pause after failures in a row (1 or more) while the certificate is
// valid: it doubles from a second to the least of 5 minutes, a twentieth of the
// life and a third of what is left, and jitter, in [0, 1), takes up to half of it
// away.
func (s span) retry(failures int, now time.Time, jitter float64) time.Duration {
	most := max(min(longestPause, s.life()/20, s.to.Sub(now.Round(0))/3), leastPause)
	pause := firstPause
	for range failures - 1 {
		if pause >= most {
			break
		}
		pause *= 2
	}
	pause = min(pause, most)
	return pause - time.Duration(jitter*float64(pause)/2)
}

// wallSlice bounds a wait for a moment: the timer of a machine that sleeps stands
// still, and this long after waking at the latest the clock is looked at.
const wallSlice = 2 * time.Second

// slice is how long to wait before the clock is looked at again, until at.
func slice(now, at time.Time) time.Duration {
	return max(min(at.Round(0).Sub(now.Round(0)), wallSlice), 0)
}
