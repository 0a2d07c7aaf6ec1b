package certs

import (
	"crypto/x509"
	"time"
)

const (
	// renewAfter is the fraction of a certificate's life after which it is renewed.
	// renewJitter is the fraction by which that may be earlier, so that processes
	// started together do not renew at once. A third of the life is left for an
	// outage of the CA.
	renewAfter  = 2.0 / 3
	renewJitter = 1.0 / 20

	firstPause   = time.Second            // after the first failure, and always while there is no valid certificate
	longestPause = 5 * time.Minute        // between two attempts
	leastPause   = 100 * time.Millisecond // for certificates of seconds
)

// span is the time in which we use a certificate: its validity, but not before we
// obtained it, because CAs date certificates back.
type span struct{ from, to time.Time }

// newSpan begins at obtained, or with the validity if obtained is zero or
// earlier. Only the wall clock counts: the monotonic clock stops while a machine
// sleeps.
func newSpan(leaf *x509.Certificate, obtained time.Time) span {
	s := span{leaf.NotBefore, leaf.NotAfter}
	if obtained = obtained.Round(0); obtained.After(s.from) {
		s.from = obtained
	}
	return s
}

func (s span) life() time.Duration { return s.to.Sub(s.from) }

// renewal is when a certificate is due for renewal. Jitter is in [0, 1).
func (s span) renewal(jitter float64) time.Time {
	part := renewAfter - jitter*renewJitter
	return s.from.Add(time.Duration(part * float64(s.life())))
}

// retry returns the pause after that many failures in a row (1 or more) while the
// certificate is valid. It doubles from a second up to the least of 5 minutes, a
// twentieth of the life and a third of the time left. Jitter, in [0, 1), removes
// up to half of it.
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

// wallSlice bounds one wait. A timer stops while the machine sleeps, so the clock
// is checked at the latest this long after the machine wakes.
const wallSlice = 2 * time.Second

// slice returns how long to wait before the clock is checked again, until at.
func slice(now, at time.Time) time.Duration {
	return max(min(at.Round(0).Sub(now.Round(0)), wallSlice), 0)
}
