package process

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4"
)

func TestAwaitReady(t *testing.T) {
	never := func() l4.Readiness {
		return l4.Readiness{Waiting: []string{"upstream a: refused", "upstream b: timeout"}}
	}
	synctest.Test(t, func(t *testing.T) {
		log, start := cmdtest.NewOutput(), time.Now()
		ask := func() l4.Readiness {
			if time.Since(start) > 12*time.Second {
				return l4.Readiness{Ready: true}
			}
			return never()
		}
		if err := awaitReady(t.Context(), ask, 0, slog.New(slog.NewTextHandler(log, nil))); err != nil {
			t.Errorf("it was ready, and the answer is %v", err)
		}
		if took := time.Since(start); took > 12*time.Second+2*readyInterval {
			t.Errorf("it took %v to notice", took)
		}
		if n := strings.Count(log.String(), "upstream a: refused; upstream b: timeout"); n != 2 || strings.Contains(log.String(), "gives_up_in") {
			t.Errorf("in 12 s the reasons were logged %d times, want twice, and no bound:\n%s", n, log)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := awaitReady(ctx, never, time.Minute, slog.New(slog.DiscardHandler)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the end of the context: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		log, start := cmdtest.NewOutput(), time.Now()
		err := awaitReady(t.Context(), never, 7*time.Second, slog.New(slog.NewTextHandler(log, nil)))
		var exit *program.ExitError
		if !errors.As(err, &exit) || exit.Code != 1 || !strings.Contains(err.Error(), "not ready within 7s:\n  upstream a: refused\n  upstream b: timeout\n") || !strings.Contains(err.Error(), "--wait-timeout") {
			t.Errorf("at the bound: %v", err)
		}
		if took := time.Since(start); took < 7*time.Second || took > 7*time.Second+2*readyInterval {
			t.Errorf("a bound of 7s took %v", took)
		}
		if !strings.Contains(log.String(), "gives_up_in=2s") {
			t.Errorf("the log does not say when it gives up:\n%s", log)
		}
	})
}

func TestListenerVariables(t *testing.T) {
	bound := []l4.Bound{{Name: "orders-db", Addr: "127.0.0.1:5432"}, {Name: "orders-db", Addr: "[::1]:5432"}, {Name: "cache", Addr: "unix:/run/c.sock"}, {Name: "orders_db", Addr: "127.0.0.1:1"}}
	variables, hidden := listenerVariables(bound)
	if want := []string{"AMBASSADOR_LISTENER_ORDERS_DB=127.0.0.1:5432", "AMBASSADOR_LISTENER_CACHE=unix:/run/c.sock"}; !slices.Equal(variables, want) {
		t.Errorf("variables %q, want %q", variables, want)
	}
	if want := []string{"orders_db"}; !slices.Equal(hidden, want) {
		t.Errorf("hidden %q, want %q", hidden, want)
	}
}
