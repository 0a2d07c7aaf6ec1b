package l4

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"ambassador/l4/outcome"
)

// ownDials are the connections that we have made, by which a redirected one is
// known for one of ours: the redirect that catches those too leads us to make the
// next, without end. They are only kept while a listener takes redirected
// connections. Nil keeps none. It is safe for concurrent use.
type ownDials struct {
	wanted atomic.Bool
	mu     sync.Mutex
	live   map[ownDial]bool // guarded by mu
}

// ownDial is a connection by its ends, as the one who has made it sees them. While
// it is open nobody else has the same two.
type ownDial struct{ from, to netip.AddrPort }

// errOwnDial is a redirected connection that we have made ourselves.
var errOwnDial = &outcome.Refusal{Stage: outcome.StageRoute, Reason: outcome.Loop, Text: "the redirect catches our own connections, and this is one: keep ours out of it, by mark of the upstream (nft: meta mark … return) or by a user of our own (meta skuid)"}

// add keeps a connection until forget, which is nil where it is not kept.
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

// has says whether the connection from a client to where it wanted to go is ours.
func (d *ownDials) has(from, to netip.AddrPort) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.live[ownDial{from, to}]
}

// isOwnDial says whether the client is ourselves. A connection may be accepted before
// whoever has made it could say so, and is then known as soon as it has made the next.
func (s *session) isOwnDial() bool {
	if s.route.cfg.Request != RequestOriginal || s.downstream.request == nil {
		return false
	}
	r := s.downstream.request
	return s.server.deps.dials.has(unmapped(s.downstream.conn.RemoteAddr()), netip.AddrPortFrom(r.Addr, r.Port))
}

// loops is the end of a session whose client is ourselves.
func (s *session) loops() *outcome.Error {
	return &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Loop, Err: errOwnDial}
}
