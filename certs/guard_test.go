package certs

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestGuard(t *testing.T) {
	s := NewSource("me")
	var told []string
	s.OnPanic = func(part string) { told = append(told, part) }
	var p *PanicError
	err := s.Guard("files", func() error { _ = told[len(told)]; return nil })
	if !errors.As(err, &p) || !strings.Contains(err.Error(), "index out of range") || !strings.Contains(string(p.Stack), "TestGuard") {
		t.Errorf("%v, %+v", err, p)
	}
	if cause := Cause(err); len(cause) != 4 || cause[0] != "cause" || cause[2] != "stack" {
		t.Errorf("logged as %q", cause)
	}
	down := errors.New("down")
	if err := s.Guard("files", func() error { return down }); err != down || len(Cause(err)) != 2 {
		t.Errorf("an error becomes %v", err)
	}
	if len(told) != 1 || told[0] != "files" {
		t.Errorf("told of %q", told)
	}
	if err := NewSource("me").Guard("files", func() error { panic("x") }); err == nil {
		t.Error("without OnPanic there is no error")
	}
}

// A panic of an issuer is a failure: the old certificate stays in use, attempts go on
// with their pauses, and the next answer is used.
func TestIssuerThatPanics(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, i *issuer, s *Source) {
		panics := 0
		s.OnPanic = func(part string) {
			if part == "issuer" {
				panics++
			}
		}
		time.Sleep(time.Minute)
		first := s.Status()
		i.breaks(true)
		time.Sleep(45 * time.Minute)
		st := s.Status()
		if !st.Ready || st.Serial != first.Serial || !strings.Contains(st.LastError, "internal error: panic: a library") {
			t.Errorf("while it panics: %+v", st)
		}
		if n := len(i.asked()); panics == 0 || panics > 12 || panics != int(st.Failures) || n-1 != panics {
			t.Errorf("%d panics, %d failures, %d tries", panics, st.Failures, n)
		}
		i.breaks(false)
		time.Sleep(10 * time.Minute)
		if st := s.Status(); st.Serial == first.Serial || st.LastError != "" {
			t.Errorf("afterwards: %+v", st)
		}
	})
}

// A panic also ends the wait for the attempt.
func TestAwaitOfAPanic(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, i *issuer, s *Source) {
		i.breaks(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := s.Await(ctx); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "panic: a library") || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// A log that panics ends neither the process nor LogExpiry.
func TestLogExpiryWithALogThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSource("me")
		panics := make(chan string, 99)
		s.OnPanic = func(part string) { panics <- part }
		ca := newAuthority(t)
		s.Publish(ca.pair(t, "dns:me"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		handler := &panicking{at: "identity expires soon"}
		go func() { s.LogExpiry(ctx, slog.New(handler)); close(done) }() // awaited below
		time.Sleep(55 * time.Minute)
		cancel()
		<-done
		if len(panics) != 1 || <-panics != "source" || handler.others != 1 {
			t.Errorf("%d panics, %d other lines; want one of each", len(panics), handler.others)
		}
	})
}

// panicking is a log handler that panics at a message.
type panicking struct {
	at     string
	others int
}

func (h *panicking) Enabled(context.Context, slog.Level) bool { return true }
func (h *panicking) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *panicking) WithGroup(string) slog.Handler            { return h }
func (h *panicking) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.at {
		panic("a log")
	}
	h.others++
	return nil
}
