package l4

import (
	"context"
	"net"

	"ambassador/l4/peer"
	"ambassador/l4/task"
)

// identify records which process of this host the client is, once. It costs nothing
// unless the listener's rules or its log want that; of a unix socket it is always known.
// The client of a TCP connection with a PROXY header is elsewhere.
func (s *session) identify(ctx context.Context) {
	d, cfg := s.downstream, &s.route.cfg
	_, unix := d.conn.(*net.UnixConn)
	if d.from != nil || d.header.Source.IsValid() && !unix || !unix && !cfg.LogProcess && !s.route.rules.WantUID() {
		return
	}
	if cfg.LogProcess || !unix && !peer.Answers() {
		task.Leave(ctx) // it reads files, or the kernel may load a module
	}
	who := peer.Of(d.conn, cfg.Request == RequestOriginal)
	d.from = &who
	if cfg.LogProcess {
		who.FindProcess(ctx)
	}
	s.note(who.Note)
}
