package watch

import (
	"context"
	"net"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// Delay is how long establishing may wait before the client is watched. A connection
// that is established faster needs no watcher, and one that never waits needs no timer.
const Delay = 20 * time.Millisecond

// Watch detects a reset. It does not detect a FIN: a FIN is data. On unix sockets a
// close cannot be told from a FIN, so they are not watched. Nil is a watch that detects
// nothing.
type Watch struct {
	conn   net.Conn
	gone   func()
	forget func()
	timer  *time.Timer // nil: establishing has not waited yet
	done   chan struct{}
}

// Begin starts a watch of conn for the task of ctx. If the client resets, gone is
// called, once and on a goroutine of the watch; it must not call Stop. The caller must
// call Stop before anything else reads from conn.
func Begin(ctx context.Context, conn net.Conn, gone func()) *Watch {
	if _, unix := conn.(*net.UnixConn); unix {
		return nil
	}
	w := &Watch{conn: conn, gone: gone}
	w.forget = task.OnLeave(ctx, func() {
		w.done = make(chan struct{})
		w.timer = time.AfterFunc(Delay, w.run) // Stop waits for it
	})
	return w
}

func (w *Watch) run() {
	defer close(w.done)
	conn, ok := relay.TCP(w.conn)
	if !ok {
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	if raw.Read(hungUp) == nil {
		w.gone()
	}
}

// Stop ends the watch and leaves the connection without a read deadline.
func (w *Watch) Stop() {
	if w == nil {
		return
	}
	if w.forget(); w.timer == nil || w.timer.Stop() {
		return
	}
	w.conn.SetReadDeadline(time.Unix(1, 0))
	<-w.done
	w.conn.SetReadDeadline(time.Time{})
}
