package l4

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// The parts of a server that continue after a panic in them, as Observer.Panicked names
// them.
const (
	PartSession    = "session"
	PartRelay      = "relay"
	PartProber     = "prober"
	PartResolver   = "resolver"
	PartPreconnect = "preconnect"
	PartUpstream   = "upstream" // dials, cancel requests, trials of a required upstream
)

// Parts lists all parts.
func Parts() []string {
	return []string{PartSession, PartRelay, PartProber, PartResolver, PartPreconnect, PartUpstream}
}

// panics reports the panics after which a part continues: it logs each with its stack,
// and counts it. The zero value does neither.
type panics struct {
	log   *slog.Logger
	count func(part string)
}

// panicError is a panic that became the error of its part, and was reported.
type panicError struct{ value any }

func (e *panicError) Error() string {
	return fmt.Sprintf("panic: %v; this is a bug: please report it with the stack in the log", e.value)
}

// panicPause is the time between a panic and the restart of a part that runs all the
// time.
const panicPause = time.Second

// catch runs body. A panic in body is reported and becomes the error.
func (p panics) catch(part string, body func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = p.tell(part, v, debug.Stack())
		}
	}()
	body()
	return nil
}

// keep runs body until it ends without a panic, or ctx ends. It restarts body panicPause
// after a panic.
func (p panics) keep(ctx context.Context, part string, body func()) {
	for p.catch(part, body) != nil && task.Wait(ctx, panicPause, nil) == nil {
	}
}

// tell logs and counts a panic.
func (p panics) tell(part string, value any, stack []byte, attrs ...any) error {
	if p.log != nil {
		p.log.Error("panic", append([]any{"part", part, "panic", fmt.Sprint(value), "stack", string(stack)}, attrs...)...)
	}
	if p.count != nil {
		p.count(part)
	}
	return &panicError{value}
}

// tellOf is tell for a panic in the chain of err that was not reported yet, if there is
// one.
func (p panics) tellOf(part string, err error, attrs ...any) {
	if e, ok := errors.AsType[*relay.PanicError](err); ok {
		p.tell(part, e.Value, e.Stack, attrs...)
	}
}

func (u *Upstream) panics() panics { return panics{u.log, u.observer.Panicked} }

func (s *Server) panics() panics { return panics{s.log, s.opts.Observer.Panicked} }
