package l4

import (
	"context"
	"net"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// watchDelay is how long establishing may wait before the client is watched. A
// connection that is established faster needs no watcher, and one that never waits
// needs no timer.
const watchDelay = 20 * time.Millisecond

// watch detects a client that resets while the session is being established, so that an
// attempt in flight is not continued for nothing. It does not detect a FIN: a FIN is
// data. On unix sockets a close cannot be told from a FIN, so they are not watched.
type watch struct {
	session *session
	forget  func()
	timer   *time.Timer // nil: establishing has not waited yet
	done    chan struct{}
}

// watchDownstream starts a watch. The caller must stop it before anything else reads
// from the client.
func (s *session) watchDownstream(ctx context.Context) *watch {
	if _, unix := s.downstream.conn.(*net.UnixConn); unix {
		return nil
	}
	w := &watch{session: s}
	w.forget = task.OnLeave(ctx, func() {
		w.done = make(chan struct{})
		w.timer = time.AfterFunc(watchDelay, w.run) // stop waits for it
	})
	return w
}

func (w *watch) run() {
	defer close(w.done)
	conn, ok := relay.TCP(w.session.downstream.conn)
	if !ok {
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	if raw.Read(hungUp) == nil {
		w.session.stop(errDownstreamGone)
	}
}

// stop ends the watch and leaves the connection without a read deadline.
func (w *watch) stop() {
	if w == nil {
		return
	}
	if w.forget(); w.timer == nil || w.timer.Stop() {
		return
	}
	w.session.downstream.conn.SetReadDeadline(time.Unix(1, 0))
	<-w.done
	w.session.downstream.conn.SetReadDeadline(time.Time{})
}
