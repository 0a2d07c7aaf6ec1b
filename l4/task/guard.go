package task

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// Guard reports the panics after which a part of the process continues: it logs each
// with its stack, and counts it. The zero value does neither.
type Guard struct {
	Log   *slog.Logger
	Count func(part string)
}

// PanicError is a panic that became the error of its part, and was reported.
type PanicError struct{ value any }

func (e *PanicError) Error() string {
	return fmt.Sprintf("panic: %v; this is a bug: please report it with the stack in the log", e.value)
}

// panicPause is the time between a panic and the restart of a part that runs all the
// time.
const panicPause = time.Second

// Catch runs body. A panic in body is reported and becomes the error, a *PanicError.
func (g Guard) Catch(part string, body func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = g.Report(part, v, debug.Stack())
		}
	}()
	body()
	return nil
}

// Keep runs body until it ends without a panic, or ctx ends. It restarts body a second
// after a panic.
func (g Guard) Keep(ctx context.Context, part string, body func()) {
	for g.Catch(part, body) != nil && Wait(ctx, panicPause, nil) == nil {
	}
}

// Report logs and counts a panic, with attributes for the log. It returns a *PanicError.
func (g Guard) Report(part string, value any, stack []byte, attrs ...any) error {
	if g.Log != nil {
		g.Log.Error("panic", append([]any{"part", part, "panic", fmt.Sprint(value), "stack", string(stack)}, attrs...)...)
	}
	if g.Count != nil {
		g.Count(part)
	}
	return &PanicError{value}
}
