package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Issue asks an issuer once for a certificate and roots that come with it. Now is
// the certificate in use; nil if there is none, and it may have expired. The
// certificate's Leaf is set, and roots may be nil. It keeps to ctx.
type Issue func(ctx context.Context, now *tls.Certificate) (*tls.Certificate, *Roots, error)

// TryTimeout bounds one try of a Renewer: several round trips to a CA that is
// alive.
const TryTimeout = 10 * time.Second

// Renewer keeps a source current by asking an issuer in time: at two thirds of a
// certificate's life, after failures sooner and sooner, and every second while
// there is no valid one. There is one try at a time, however many wait for it.
// Make it with NewRenewer; Run does the work.
type Renewer struct {
	// Static after construction.
	source *Source
	issue  Issue
	log    *slog.Logger
	wake   chan struct{} // a try may be due: look at the clock

	mu       sync.Mutex
	flight   chan struct{} // guarded by mu; closed when the try under way, or wanted, has ended; nil: none
	began    time.Time     // guarded by mu; of flight
	next     time.Time     // guarded by mu; when the next try is due, by the wall clock
	pause    time.Duration // guarded by mu; the longest wait for the next try while there is no valid certificate
	ended    bool          // guarded by mu; Run has returned
	failures int           // owned by Run; in a row
	span     span          // owned by Run; of the current certificate, zero without one
	said     string        // owned by Run; the last failure that was logged
}

// NewRenewer makes the renewer of a source, which has no other. A certificate that
// the source has already is renewed in its time; without one a try is due at
// once, and who needs the identity waits for it.
func NewRenewer(s *Source, issue Issue, log *slog.Logger) *Renewer {
	r := &Renewer{source: s, issue: issue, log: log, wake: make(chan struct{}, 1), next: time.Now().Round(0), pause: firstPause}
	if snap := s.current.Load(); snap != nil && snap.Certificate != nil {
		r.span = newSpan(snap.Certificate.Leaf, time.Time{})
		r.next = r.span.renewal(rand.Float64())
	}
	s.serveBy(r)
	s.schedule(r.next)
	return r
}

// Run renews until ctx ends. It leaves no goroutine behind, and is called once.
func (r *Renewer) Run(ctx context.Context) {
	defer r.end()
	for r.waitUntilDue(ctx) {
		r.try(ctx)
	}
}

// waitUntilDue waits in slices, so that neither a machine that slept nor a clock
// that was set goes unnoticed. It is false if ctx ended.
func (r *Renewer) waitUntilDue(ctx context.Context) bool {
	for ctx.Err() == nil {
		wait := r.untilDue(time.Now())
		if wait == 0 {
			return true
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-r.wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return false
}

// untilDue is 0 if a try is due, else how long to wait before asking again. What
// is not valid now, because it expired or because the clock was set, is not left
// for later than the pause.
func (r *Renewer) untilDue(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if soon := now.Round(0).Add(r.pause); r.next.After(soon) && r.source.valid(now) != nil {
		r.next = soon
	}
	if r.flight != nil {
		return 0
	}
	return slice(now, r.next)
}

// join gives the try under way, or begins the one that is due: it is closed at
// its end. Nil: none is due yet.
func (r *Renewer) join(now time.Time) (end <-chan struct{}, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flight == nil {
		if r.ended || slice(now, r.next) > 0 {
			return nil, time.Time{}
		}
		r.flight, r.began = make(chan struct{}), now
		r.nudge()
	}
	return r.flight, r.began
}

// nudge lets Run look at the clock.
func (r *Renewer) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// try asks the issuer, and lets go of those who wait before it writes to the log,
// whose reader may be slow.
func (r *Renewer) try(ctx context.Context) {
	now := time.Now()
	r.mu.Lock()
	if r.flight == nil {
		r.flight, r.began = make(chan struct{}), now
	}
	r.mu.Unlock()
	before := r.source.Status()
	var renewed bool
	err := r.source.Guard(PartIssuer, func() (err error) {
		renewed, err = r.ask(ctx)
		return err
	})
	if ctx.Err() != nil {
		return // it says nothing of the issuer; end lets go of those who wait
	}
	r.landed(r.outcome(err), err)
	if err != nil {
		r.logFailure(err)
		return
	}
	r.said = ""
	if renewed {
		r.logRenewal(before)
	}
}

// landed is the end of a flight.
func (r *Renewer) landed(next time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next, r.pause = next, firstPause
	if isValidity(err) {
		r.pause = longestPause
	}
	r.source.schedule(next)
	close(r.flight)
	r.flight = nil
}

// ask bounds the issuer. A certificate that is not valid now is none.
func (r *Renewer) ask(ctx context.Context) (renewed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, TryTimeout)
	defer cancel()
	var old *tls.Certificate
	if snap := r.source.current.Load(); snap != nil {
		old = snap.Certificate
	}
	cert, roots, err := r.issue(ctx, old)
	if err != nil {
		return false, err
	}
	now := time.Now()
	if err := Validity(cert.Leaf, now); err != nil {
		return false, fmt.Errorf("the issuer gave a certificate that is not valid now: %w", err)
	}
	if old == nil || !sameCertificate(old, cert) {
		r.span = newSpan(cert.Leaf, now)
	}
	return r.source.Publish(cert, roots), nil
}

// outcome counts, and says when to try again.
func (r *Renewer) outcome(err error) (next time.Time) {
	now := time.Now().Round(0)
	if err == nil {
		r.failures = 0
		next = r.span.renewal(rand.Float64())
		if soonest := now.Add(firstPause); next.Before(soonest) { // the issuer had nothing newer
			next = soonest
		}
		return next
	}
	r.failures++
	r.source.Fail(err)
	switch {
	case r.source.valid(now) == nil:
		return now.Add(r.span.retry(r.failures, now, rand.Float64()))
	case isValidity(err): // our clock and the issuer's differ: to ask for more does not mend that
		return now.Add(min(firstPause<<min(r.failures, 10), longestPause))
	}
	return now.Add(firstPause)
}

// logFailure writes each failure once in a row.
func (r *Renewer) logFailure(err error) {
	if text := err.Error(); text != r.said {
		r.said = text
		r.log.Warn("identity not renewed", append([]any{"identity", r.source.name, "failures", r.failures}, Cause(err)...)...)
	}
}

func (r *Renewer) logRenewal(old Status) {
	st := r.source.Status()
	r.log.Info("identity renewed", "identity", st.Name, "generation", st.Generation, "names", st.Names,
		"old_serial", old.Serial, "serial", st.Serial, "old_not_after", old.NotAfter, "not_after", st.NotAfter)
}

func isValidity(err error) bool {
	var invalid *ValidityError
	return errors.As(err, &invalid)
}

// end lets go of those who wait.
func (r *Renewer) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	if r.flight != nil {
		close(r.flight)
		r.flight = nil
	}
}
