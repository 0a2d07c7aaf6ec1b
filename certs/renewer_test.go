package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// issuer is a CA that can be down, slow and wrong.
type issuer struct {
	t    *testing.T
	ca   *authority
	life time.Duration

	mu    sync.Mutex
	down  error              // guarded by mu
	hang  bool               // guarded by mu; answers never
	broke bool               // guarded by mu; panics
	off   time.Duration      // guarded by mu; its clock is fast by that
	tries []time.Time        // guarded by mu
	given []*tls.Certificate // guarded by mu; the certificates in use when it was asked
}

func (i *issuer) issue(ctx context.Context, now *tls.Certificate) (*tls.Certificate, *Roots, error) {
	i.mu.Lock()
	i.tries, i.given = append(i.tries, time.Now()), append(i.given, now)
	down, hang, off, broke := i.down, i.hang, i.off, i.broke
	i.mu.Unlock()
	if broke {
		panic("a library")
	}
	if hang {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	if down != nil {
		return nil, nil, down
	}
	time.Sleep(20 * time.Millisecond) // of the bubble: an answer takes time
	return i.ca.pair(i.t, "dns:me", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(off-time.Minute), time.Now().Add(off+i.life)
	}), NewRoots(i.ca.pool()), nil
}

func (i *issuer) set(down error, hang bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down, i.hang = down, hang
}

func (i *issuer) breaks(yes bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.broke = yes
}

// asked returns the times of the attempts since the last call.
func (i *issuer) asked() []time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := i.tries
	i.tries = nil
	return out
}

// renewing runs a test with a renewer in a bubble.
func renewing(t *testing.T, life time.Duration, test func(t *testing.T, i *issuer, s *Source)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		i := &issuer{t: t, ca: newAuthority(t), life: life}
		s := NewSource("me")
		r := NewRenewer(s, i.issue, slog.New(slog.DiscardHandler))
		var run sync.WaitGroup
		run.Go(func() {
			time.Sleep(time.Nanosecond) // of the bubble: what the test does first comes before
			r.Run(ctx)
		})
		test(t, i, s)
		cancel()
		run.Wait()
	})
}

func TestRenewsInTime(t *testing.T) {
	renewing(t, 24*time.Hour, func(t *testing.T, i *issuer, s *Source) {
		start := time.Now()
		time.Sleep(100 * time.Hour)
		tries := i.asked()
		if len(tries) < 7 || len(tries) > 8 { // every 14:48 to 16:00 hours
			t.Fatalf("%d renewals in 100 h", len(tries))
		}
		if first := tries[0].Sub(start); first > time.Nanosecond {
			t.Errorf("the first certificate is asked for after %v", first)
		}
		for n := range tries[1:] {
			if d := tries[n+1].Sub(tries[n]); d < 14*time.Hour || d > 16*time.Hour+wallSlice {
				t.Errorf("renewal %d after %v", n+1, d)
			}
		}
		if st := s.Status(); !st.Ready || int(st.Loads) != len(tries) || st.Failures != 0 || !st.NextRenewal.After(time.Now()) {
			t.Errorf("status %+v", st)
		}
	})
}

// During an outage of the CA the old certificate is used as long as it is valid. Then
// there is an attempt every second, and the status has the reason.
func TestOutageOfTheIssuer(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, i *issuer, s *Source) {
		time.Sleep(time.Minute)
		first := s.Status()
		i.set(errors.New("connection refused"), false)
		i.asked()
		time.Sleep(time.Until(first.NotAfter) - time.Second)
		if err := s.Ready(); err != nil {
			t.Errorf("with a valid certificate: %v", err)
		}
		tries := i.asked()
		if len(tries) < 8 || len(tries) > 40 {
			t.Errorf("%d tries in 20 minutes of outage", len(tries))
		}
		for n := range tries[1:] {
			if d := tries[n+1].Sub(tries[n]); d > 3*time.Minute {
				t.Errorf("a pause of %v, though the life is an hour", d)
			}
		}
		time.Sleep(3 * time.Second)
		err := s.Ready()
		for _, want := range []string{"expired at", "connection refused", "identity me"} {
			if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), want) {
				t.Errorf("after the end: %v; want ErrNotReady with %q", err, want)
			}
		}
		i.asked()
		time.Sleep(60 * time.Second)
		if tries := i.asked(); len(tries) < 58 || len(tries) > 61 {
			t.Errorf("%d tries a minute without a certificate", len(tries))
		}
		i.set(nil, false)
		time.Sleep(1100 * time.Millisecond)
		if err := s.Ready(); err != nil {
			t.Errorf("a second after the CA's return: %v", err)
		}
	})
}

// A thousand waiting sessions share one request and its result.
func TestManyWaitForOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		i := &issuer{t: t, ca: newAuthority(t), life: time.Hour}
		s := NewSource("me")
		r := NewRenewer(s, i.issue, slog.New(slog.DiscardHandler))
		var waiting, run sync.WaitGroup
		for range 1000 {
			waiting.Go(func() {
				if err := s.Await(ctx); err != nil {
					t.Errorf("await: %v", err)
				}
			})
		}
		synctest.Wait() // all wait, and nobody renews yet
		run.Go(func() { r.Run(ctx) })
		waiting.Wait()
		if n := len(i.asked()); n != 1 {
			t.Errorf("%d requests", n)
		}
		cancel()
		run.Wait()
	})
}

// An Await that is called while an attempt ends gets its result, like the waiters.
func TestAwaitAsAnAttemptEnds(t *testing.T) {
	ca := newAuthority(t)
	cert, roots := ca.pair(t, "dns:me", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }), NewRoots(ca.pool())
	for range 2000 {
		s := NewSource("me")
		r := NewRenewer(s, func(context.Context, *tls.Certificate) (*tls.Certificate, *Roots, error) { return cert, roots, nil },
			slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.Run(ctx) })
		for range 4 {
			running.Go(func() {
				if err := s.Await(t.Context()); err != nil {
					t.Errorf("the issuer has never failed: %v", err)
				}
			})
		}
		for s.Ready() != nil { // in a bounded time, or the test's
			runtime.Gosched()
		}
		cancel()
		running.Wait()
		if t.Failed() {
			return
		}
	}
}

// Await waits for an attempt that is running or due, not for the next one, and not
// longer than its context.
func TestAwaitIsBounded(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, i *issuer, s *Source) {
		i.set(errors.New("connection refused"), false)
		synctest.Wait()
		time.Sleep(2*time.Second + 500*time.Millisecond) // half a second before the next try
		start := time.Now()
		if err := s.Await(t.Context()); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("between two tries: %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %v for a try that is not due", d)
		}
		i.set(nil, true)
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := s.Await(ctx); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "has not answered for 3.5s") {
			t.Errorf("of an issuer that hangs: %v", err)
		}
		i.set(nil, false)
		time.Sleep(TryTimeout + time.Second) // the try that hangs ends by its own bound
		if err := s.Ready(); err != nil {
			t.Errorf("after an issuer that hung: %v", err)
		}
	})
}

// If the timer has stopped, a certificate that is due is renewed at its next use.
func TestUseRenewsWhatIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{t: t, ca: newAuthority(t), life: time.Hour}
		s := NewSource("me")
		s.Publish(i.ca.pair(t, "dns:me", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Minute)
		}), nil)
		r := NewRenewer(s, i.issue, slog.New(slog.DiscardHandler))
		if len(r.wake) != 0 {
			t.Fatal("woken before use")
		}
		if err := s.Ready(); err != nil || len(r.wake) != 1 {
			t.Errorf("ready: %v, woken %d times; want once", err, len(r.wake))
		}
		if err := s.Await(t.Context()); err != nil {
			t.Errorf("a valid certificate is waited for: %v", err)
		}
	})
}

// A clock that is wrong does not make us request unusable certificates again and again.
func TestClocksThatDiffer(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, i *issuer, s *Source) {
		i.mu.Lock()
		i.off = -2 * time.Hour
		i.mu.Unlock()
		time.Sleep(time.Hour)
		if n := len(i.asked()); n > 25 {
			t.Errorf("%d certificates in an hour", n)
		}
		if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "not valid now") {
			t.Errorf("ready: %v", err)
		}
	})
}

// Await does not wait for a slow log.
func TestSlowLogDelaysNoWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan struct{})
		i, s := &issuer{t: t, ca: newAuthority(t), life: time.Hour}, NewSource("me")
		r := NewRenewer(s, i.issue, slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) { <-read; return len(b), nil }), nil)))
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { r.Run(ctx) })
		if err := s.Await(t.Context()); err != nil {
			t.Error(err)
		}
		close(read)
		cancel()
		run.Wait()
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// The end of Run ends an attempt, releases the waiters, and is not counted as a
// failure.
func TestEndDuringAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{t: t, ca: newAuthority(t), hang: true}
		s, out := NewSource("me"), &syncBuffer{}
		r := NewRenewer(s, i.issue, slog.New(slog.NewTextHandler(out, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { r.Run(ctx) })
		synctest.Wait()
		run.Go(func() {
			if err := s.Await(t.Context()); !errors.Is(err, ErrNotReady) {
				t.Errorf("await: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		run.Wait()
		if st := s.Status(); st.Failures != 0 || out.String() != "" {
			t.Errorf("%+v, log %q", st, out)
		}
		if err := s.Await(t.Context()); !errors.Is(err, ErrNotReady) {
			t.Errorf("await after the end: %v", err)
		}
	})
}

// A renewal receives the certificate in use; new roots alone do not change it.
func TestRootsChangeAlone(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, i *issuer, s *Source) {
		time.Sleep(time.Minute)
		before, other := s.Status(), newAuthority(t)
		if s.PublishRoots(NewRoots(i.ca.pool())) {
			t.Error("the same roots are new")
		}
		s.Fail(errors.New("out of paper"))
		if !s.PublishRoots(NewRoots(other.pool())) {
			t.Error("other roots are not new")
		}
		if st := s.Status(); st.Serial != before.Serial || st.Generation != before.Generation+1 || st.LastError != "out of paper" || st.Loads != before.Loads {
			t.Errorf("after new roots: %+v", st)
		}
		time.Sleep(time.Hour)
		i.mu.Lock()
		defer i.mu.Unlock()
		if len(i.given) < 2 || i.given[0] != nil || i.given[1].Leaf.SerialNumber.Text(16) != before.Serial {
			t.Errorf("the issuer was given %v", i.given)
		}
	})
}

func TestLogExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		ctx, cancel := context.WithCancel(t.Context())
		ca, s := newAuthority(t), NewSource("me")
		var run sync.WaitGroup
		run.Go(func() { s.LogExpiry(ctx, slog.New(slog.NewTextHandler(&out, nil))) })
		publish := func() {
			s.Publish(ca.pair(t, "dns:me", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now(), time.Now().Add(time.Hour) }), nil)
		}
		publish()
		time.Sleep(49 * time.Minute)
		if got := out.String(); got != "" {
			t.Errorf("said %q with 11 minutes left of an hour", got)
		}
		s.Fail(errors.New("disk on fire"))
		time.Sleep(2 * time.Minute)
		if got := out.String(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got, "identity expires soon") || !strings.Contains(got, "disk on fire") {
			t.Errorf("said %q with 9 minutes left", got)
		}
		time.Sleep(time.Hour)
		if got := out.String(); strings.Count(got, "\n") != 2 || strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, "identity expired") {
			t.Errorf("said %q after the end", got)
		}
		publish()
		time.Sleep(51 * time.Minute)
		if got := out.String(); strings.Count(got, "level=WARN") != 2 {
			t.Errorf("said %q of the next certificate", got)
		}
		cancel()
		run.Wait()
	})
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
