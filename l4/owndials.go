package l4

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"ambassador/l4/outcome"
)

// ownDials records the connections that we have made. With it a listener finds out that
// a redirected connection is one of ours. A redirect that catches our connections too
// would make us dial again and again, without end. Connections are recorded only while a
// listener accepts redirected connections. A nil ownDials records none. It is safe for
// concurrent use.
type ownDials struct {
	wanted atomic.Bool
	mu     sync.Mutex
	live   map[ownDial]bool // guarded by mu
}

// ownDial identifies a connection by its two addresses, as seen by the side that dialled
// it. No two open connections have the same pair.
type ownDial struct{ from, to netip.AddrPort }

// errOwnDial means that we have made a redirected connection ourselves.
var errOwnDial = &outcome.Refusal{Stage: outcome.StageRoute, Reason: outcome.Loop, Text: "the redirect catches our own connections, and this is one: keep ours out of it, by mark of the upstream (nft: meta mark … return) or by a user of our own (meta skuid)"}

// add records a connection until forget is called. Forget is nil if the connection is
// not recorded.
func (d *ownDials) add(c net.Conn) (forget func()) {
	if d == nil || !d.wanted.Load() {
		return nil
	}
	one := ownDial{unmapped(c.LocalAddr()), unmapped(c.RemoteAddr())}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live == nil {
		d.live = map[ownDial]bool{}
	}
	d.live[one] = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.live, one)
	}
}

// has reports whether we have made the connection from a client to its original
// destination.
func (d *ownDials) has(from, to netip.AddrPort) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.live[ownDial{from, to}]
}

// isOwnDial reports whether we have made the client's connection ourselves. Such a
// connection may be accepted before its dial has recorded it. It is then found later,
// when the session has made the next connection.
func (s *session) isOwnDial() bool {
	if s.route.cfg.Request != RequestOriginal || s.downstream.request == nil {
		return false
	}
	r := s.downstream.request
	return s.server.deps.dials.has(unmapped(s.downstream.conn.RemoteAddr()), netip.AddrPortFrom(r.Addr, r.Port))
}

// loops returns the error of a session whose client is the ambassador itself.
func (s *session) loops() *outcome.Error {
	return &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Loop, Err: errOwnDial}
}
