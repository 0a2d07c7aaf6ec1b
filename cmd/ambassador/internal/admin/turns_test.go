package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/cmdtest"
)

// takes is an answer that takes so long to make.
func takes(d time.Duration) func(http.ResponseWriter) error {
	return func(w http.ResponseWriter) error {
		time.Sleep(d) // in a bubble
		io.WriteString(w, "done")
		return nil
	}
}

func turnFor(ctx context.Context, turns *turns, w http.ResponseWriter, answer func(http.ResponseWriter) error) error {
	return turns.serve(w, httptest.NewRequestWithContext(ctx, "GET", "/metrics", nil), answer)
}

// One answer at a time is made, in half of the time at most.
func TestAnswersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, start, running, most := newTurns(0), time.Now(), atomic.Int32{}, atomic.Int32{}
		errs := make(chan error, 10)
		for range cap(errs) {
			go func() { // received below
				errs <- turnFor(t.Context(), turns, httptest.NewRecorder(), func(w http.ResponseWriter) error {
					most.Store(max(most.Load(), running.Add(1)))
					defer running.Add(-1)
					return takes(10 * time.Millisecond)(w)
				})
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(start); most.Load() != 1 || took != 190*time.Millisecond {
			t.Errorf("%d at a time, %v in all; want one and 190ms: ten, with nine pauses between", most.Load(), took)
		}
		time.Sleep(time.Second)
		start = time.Now()
		if err := turnFor(t.Context(), turns, httptest.NewRecorder(), takes(0)); err != nil || time.Since(start) > 0 {
			t.Errorf("%v after %v, where nobody asks", err, time.Since(start))
		}
	})
}

// Requests that cost nothing are bounded in number, and one that nobody waits for
// any more takes no turn.
func TestRequestsKeepAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, start := newTurns(requestGap), time.Now()
		gone, cancel := context.WithCancel(t.Context())
		done := make(chan error, 200)
		for i := range cap(done) {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = gone
			}
			go func() { done <- turns.pass(ctx) }() // received below
		}
		cancel()
		passed := 0
		for range cap(done) {
			if <-done == nil {
				passed++
			}
		}
		if took := time.Since(start); passed < 100 || took < 99*requestGap || took > time.Duration(passed)*requestGap {
			t.Errorf("%d requests passed in %v, want 100 in 99 ms", passed, took)
		}
	})
}

// wantBusy checks that the request was refused for the time being.
func wantBusy(t *testing.T, err error) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable {
		t.Errorf("the request ended with %v, want a 503", err)
	}
}

func TestATurnIsWaitedForWithABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, start, end := newTurns(0), time.Now(), make(chan struct{})
		defer close(end)
		go turnFor(t.Context(), turns, httptest.NewRecorder(), func(http.ResponseWriter) error { <-end; return nil }) //nolint:errcheck // the bubble waits for it
		synctest.Wait()
		wantBusy(t, turnFor(t.Context(), turns, httptest.NewRecorder(), takes(0)))
		if took := time.Since(start); took != turnTimeout {
			t.Errorf("refused after %v, want %v", took, turnTimeout)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // the client has gone
		wantBusy(t, turnFor(ctx, turns, httptest.NewRecorder(), takes(0)))
	})
}

func TestAPanicEndsItsTurn(t *testing.T) {
	turns := newTurns(0)
	func() {
		defer func() { recover() }()
		turnFor(t.Context(), turns, httptest.NewRecorder(), func(http.ResponseWriter) error { panic("a bug") }) //nolint:errcheck // it panics
	}()
	if err := turnFor(t.Context(), turns, httptest.NewRecorder(), takes(0)); err != nil {
		t.Error(err)
	}
}

func TestAFailedAnswerHasItsOwnStatus(t *testing.T) {
	want := &api.Error{Status: http.StatusNotFound}
	if err := turnFor(t.Context(), newTurns(0), httptest.NewRecorder(), func(http.ResponseWriter) error { return want }); err != want {
		t.Errorf("got %v", err)
	}
	w := httptest.NewRecorder()
	err := turnFor(t.Context(), newTurns(0), w, func(w http.ResponseWriter) error {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, "not ready\n")
		return nil
	})
	if err != nil || w.Code != http.StatusServiceUnavailable || w.Body.String() != "not ready\n" || w.Header().Get("Retry-After") != "1" || w.Header().Get("Content-Length") != "10" {
		t.Errorf("%v, %d %q %v", err, w.Code, w.Body, w.Header())
	}
}

// slowWriter is a client that does not read before it is let.
type slowWriter struct {
	*httptest.ResponseRecorder
	let <-chan struct{}
}

func (w *slowWriter) Write(b []byte) (int, error) { <-w.let; return w.ResponseRecorder.Write(b) }

// A client that does not read holds up nobody, and what is kept for such clients is
// bounded.
func TestAnswersThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, let := newTurns(0), make(chan struct{})
		large := func(w http.ResponseWriter) error {
			_, err := io.WriteString(w, strings.Repeat("x", maxSending/2+1))
			return err
		}
		slow := &slowWriter{httptest.NewRecorder(), let}
		go turnFor(t.Context(), turns, slow, large) //nolint:errcheck // looked at below
		synctest.Wait()
		if err := turnFor(t.Context(), turns, httptest.NewRecorder(), takes(0)); err != nil {
			t.Errorf("behind a client that does not read: %v", err)
		}
		wantBusy(t, turnFor(t.Context(), turns, httptest.NewRecorder(), large))
		close(let)
		synctest.Wait()
		if n := slow.Body.Len(); n != maxSending/2+1 {
			t.Errorf("the slow client got %d bytes", n)
		}
		huge := func(w http.ResponseWriter) error { return errors.Join(large(w), large(w)) }
		if err := turnFor(t.Context(), turns, httptest.NewRecorder(), huge); err != nil {
			t.Errorf("an answer beyond the bound, alone: %v", err)
		}
	})
}

// What probes ask waits for no turn.
func TestProbesWaitForNoTurn(t *testing.T) {
	f := cmdtest.NewFakeServer()
	d, began, end := depsOf(f), make(chan struct{}), make(chan struct{})
	d.Metrics = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(began); <-end })
	h, done := newProbeHandler(d), make(chan struct{})
	go func() { defer close(done); cmdtest.AskHandler(h, "GET", "/metrics") }() // awaited below
	<-began
	for _, path := range []string{"/livez", "/readyz"} {
		if status, body := cmdtest.AskHandler(h, "GET", path); status != 200 {
			t.Errorf("%s during a scrape: %d %s", path, status, body)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, path := range []string{"/readyz?verbose", "/readyz?upstream=mail", "/metrics"} {
		if status, _ := cmdtest.AskHandler(h, "GET", path, func(r *http.Request) { *r = *r.WithContext(ctx) }); status != 503 {
			t.Errorf("%s during a scrape: %d; it waits for its turn, and the client has gone", path, status)
		}
	}
	close(end)
	<-done
}
