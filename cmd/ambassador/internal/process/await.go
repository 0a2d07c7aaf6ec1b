package process

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4"
)

// The time before COMMAND: it is started once every required upstream was reached.

const (
	// readyInterval is how often readiness is checked.
	readyInterval = 50 * time.Millisecond
	// readyReminder is how often the log says why COMMAND has not started.
	readyReminder = 5 * time.Second
)

// whenReady returns a channel that receives nil when COMMAND may start, or the error
// that it will not. It is nil if there is no COMMAND, and silent if the process ends.
func (p *Process) whenReady() <-chan error {
	if len(p.opts.Command) == 0 {
		return nil
	}
	ask := func() l4.Readiness {
		p.server.TryUpstreams("") // those that nothing else tries before their first session
		return p.server.Ready()
	}
	ready := make(chan error, 1)
	p.work.Go(func() {
		if err := awaitReady(p.ctx, ask, p.opts.WaitTimeout, p.log.Logger); p.ctx.Err() == nil {
			ready <- err
		}
	})
	return ready
}

// awaitReady calls ask until the process is ready, for at most limit; 0 is no limit.
// Every readyReminder it logs why the process is not ready. The error says that too, or
// is that of ctx.
func awaitReady(ctx context.Context, ask func() l4.Readiness, limit time.Duration, log *slog.Logger) error {
	start := time.Now()
	said := start
	for {
		r, waited := ask(), time.Since(start)
		switch {
		case r.Ready:
			return nil
		case limit > 0 && waited >= limit:
			return &program.ExitError{Code: 1, Err: fmt.Errorf("COMMAND was not started: not ready within %v:\n  %s\nStart what is missing; set required: false for an upstream that COMMAND can do without; or give a longer --wait-timeout", limit, strings.Join(r.Waiting, "\n  "))}
		case time.Since(said) >= readyReminder:
			said = time.Now()
			attrs := []any{"since", waited.Round(time.Second), "for", strings.Join(r.Waiting, "; ")}
			if limit > 0 {
				attrs = append(attrs, "gives_up_in", (limit - waited).Round(time.Second))
			}
			log.Warn("COMMAND waits until we are ready", attrs...)
		}
		if certs.Pause(ctx, readyInterval) != nil {
			return ctx.Err()
		}
	}
}

// stoppedBy is the error for a signal that ends the process before COMMAND was started:
// the exit code is that of a COMMAND that the signal ended. Without COMMAND it is nil.
func (p *Process) stoppedBy(s os.Signal) error {
	number, ok := s.(syscall.Signal)
	if len(p.opts.Command) == 0 || !ok {
		return nil
	}
	err := fmt.Errorf("COMMAND was not started: %s came first", s)
	if r := p.server.Ready(); !r.Ready {
		err = fmt.Errorf("%w, while it waited for: %s", err, strings.Join(r.Waiting, "; "))
	}
	return &program.ExitError{Code: 128 + int(number), Err: err}
}
