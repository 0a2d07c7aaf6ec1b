package l4

import (
	"context"
	"net"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// watchDelay is how long establishing may wait before the client is watched: a
// connection that is made faster than this costs no watcher, and one that never waits
// no timer.
const watchDelay = 20 * time.Millisecond

// watch looks out for a client that resets while the session is being
// established, so that an attempt in flight is not finished for nobody. A FIN
// is data and goes unnoticed here. On unix sockets a close cannot be told from
// a FIN, so they are not watched.
type watch struct {
	session *session
	forget  func()
	timer   *time.Timer // nil: not before there is a wait
	done    chan struct{}
}

// watchDownstream starts a watch. Its owner calls stop before anybody reads
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
