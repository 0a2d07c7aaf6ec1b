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

// Issue makes one request to an issuer for a certificate and its roots. Now is
// the certificate in use, which may have expired; nil if there is none. The
// certificate's Leaf is set; roots may be nil. It returns when ctx ends.
type Issue func(ctx context.Context, now *tls.Certificate) (*tls.Certificate, *Roots, error)

// TryTimeout bounds one attempt of a Renewer: a few round trips to a CA that
// works.
const TryTimeout = 10 * time.Second

// Renewer keeps a source current by asking an issuer in time: at two thirds of a
// certificate's life, after failures with growing pauses, and every second while
// there is no valid certificate. There is one attempt at a time, shared by all
// waiters. Make it with NewRenewer; Run does the work.
type Renewer struct {
	// Static after construction.
	source *Source
	issue  Issue
	log    *slog.Logger
	wake   chan struct{} // an attempt may be due: check the clock

	mu       sync.Mutex
	attempt  chan struct{} // guarded by mu; closed when the running or requested attempt ends; nil: none
	began    time.Time     // guarded by mu; when attempt began
	next     time.Time     // guarded by mu; when the next attempt is due, by the wall clock
	pause    time.Duration // guarded by mu; the longest wait for the next attempt while there is no valid certificate
	ended    bool          // guarded by mu; Run has returned
	failures int           // owned by Run; in a row
	span     span          // owned by Run; of the current certificate; zero without one
	logged   string        // owned by Run; the last failure that was logged
}

// NewRenewer makes the only renewer of a source. A certificate that the source
// already has is renewed when it is due. Without one an attempt is due at once,
// and Await waits for it.
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

// waitUntilDue waits in slices, so that it notices that the machine slept or the
// clock was set. It returns false if ctx ended.
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

// untilDue returns 0 if an attempt is due, else how long to wait before asking
// again. A certificate that is not valid now, because it expired or the clock was
// set, is renewed within the pause.
func (r *Renewer) untilDue(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if soon := now.Round(0).Add(r.pause); r.next.After(soon) && r.source.valid(now) != nil {
		r.next = soon
	}
	if r.attempt != nil {
		return 0
	}
	return slice(now, r.next)
}

// join returns the running attempt, or starts the one that is due. The channel is
// closed at its end; it is nil if no attempt is due.
func (r *Renewer) join(now time.Time) (end <-chan struct{}, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempt == nil {
		if r.ended || slice(now, r.next) > 0 {
			return nil, time.Time{}
		}
		r.attempt, r.began = make(chan struct{}), now
		r.nudge()
	}
	return r.attempt, r.began
}

// nudge makes Run check the clock.
func (r *Renewer) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// try asks the issuer. It releases the waiters before it writes to the log, which
// may be slow.
func (r *Renewer) try(ctx context.Context) {
	now := time.Now()
	r.mu.Lock()
	if r.attempt == nil {
		r.attempt, r.began = make(chan struct{}), now
	}
	r.mu.Unlock()
	before := r.source.Status()
	var renewed bool
	err := r.source.Guard(PartIssuer, func() (err error) {
		renewed, err = r.ask(ctx)
		return err
	})
	if ctx.Err() != nil {
		return // not the issuer's failure; end releases the waiters
	}
	r.finish(r.outcome(err), err)
	if err != nil {
		r.logFailure(err)
		return
	}
	r.logged = ""
	if renewed {
		r.source.LogRenewal(r.log, before)
	}
}

// finish ends the running attempt.
func (r *Renewer) finish(next time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next, r.pause = next, firstPause
	if isValidity(err) {
		r.pause = longestPause
	}
	r.source.schedule(next)
	close(r.attempt)
	r.attempt = nil
}

// ask calls the issuer with a timeout, and refuses a certificate that is not
// valid now.
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

// outcome counts a success or a failure, and returns when to try again.
func (r *Renewer) outcome(err error) (next time.Time) {
	now := time.Now().Round(0)
	if err == nil {
		r.failures = 0
		next = r.span.renewal(rand.Float64())
		if soonest := now.Add(firstPause); next.Before(soonest) { // the issuer returned nothing newer
			next = soonest
		}
		return next
	}
	r.failures++
	r.source.Fail(err)
	switch {
	case r.source.valid(now) == nil:
		return now.Add(r.span.retry(r.failures, now, rand.Float64()))
	case isValidity(err): // our clock and the issuer's differ, and asking more often does not fix that
		return now.Add(min(firstPause<<min(r.failures, 10), longestPause))
	}
	return now.Add(firstPause)
}

// logFailure logs a failure, but not the same one twice in a row.
func (r *Renewer) logFailure(err error) {
	if text := err.Error(); text != r.logged {
		r.logged = text
		r.log.Warn("identity not renewed", append([]any{"identity", r.source.name, "failures", r.failures}, Cause(err)...)...)
	}
}

func isValidity(err error) bool {
	var invalid *ValidityError
	return errors.As(err, &invalid)
}

// end releases the waiters.
func (r *Renewer) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	if r.attempt != nil {
		close(r.attempt)
		r.attempt = nil
	}
}
