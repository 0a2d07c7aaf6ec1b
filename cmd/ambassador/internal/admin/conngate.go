package admin

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Gate bounds the connections of an HTTP server. Beyond the bound a new one is
// admitted still, and the one that is worth least is closed: of the source that has
// most connections, the one that has been idle longest, and one that is being
// answered only if that source has no other. A client that holds all connections
// therefore keeps no other out, and a source with many costs one with few nothing.
type Gate struct {
	// Static after construction.
	What string // for the log
	Max  int
	Log  *slog.Logger

	mu     sync.Mutex
	conns  []*gatedConn // guarded by mu; the one that has been in its state longest first
	closed int          // guarded by mu; since toldAt
	toldAt time.Time    // guarded by mu
}

// gateLogInterval is the least time between two lines about closed connections.
const gateLogInterval = time.Minute

// gatedConn is a connection that has passed the gate.
type gatedConn struct {
	net.Conn
	gate   *Gate
	source netip.Prefix
	busy   bool // guarded by gate.mu; a request of it is being answered
}

// Close frees the connection's place.
func (c *gatedConn) Close() error {
	c.gate.forget(c)
	return c.Conn.Close()
}

// Listen is ln behind the gate.
func (g *Gate) Listen(ln net.Listener) net.Listener { return &gatedListener{ln, g} }

type gatedListener struct {
	net.Listener
	gate *Gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.gate.admit(conn), nil
}

// admit counts a connection in, and closes another one if there are too many.
func (g *Gate) admit(conn net.Conn) *gatedConn {
	c := &gatedConn{Conn: conn, gate: g, source: sourceOf(conn.RemoteAddr())}
	if least := g.enter(c, time.Now()); least != nil {
		least.Conn.Close()
	}
	return c
}

// enter adds c, and takes out the connection that has to make room for it; nil if
// none has to.
func (g *Gate) enter(c *gatedConn, now time.Time) (least *gatedConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= g.Max {
		least = g.least(c.source)
		g.remove(least)
		g.closed++
		g.tell(now)
	}
	g.conns = append(g.conns, c)
	return least
}

// least is the connection that is worth least, where a source gets one more. The
// caller holds mu.
func (g *Gate) least(more netip.Prefix) (least *gatedConn) {
	count := map[netip.Prefix]int{more: 1}
	for _, c := range g.conns {
		count[c.source]++
	}
	for _, c := range g.conns {
		switch {
		case least == nil || count[c.source] > count[least.source]:
			least = c
		case count[c.source] == count[least.source] && least.busy && !c.busy:
			least = c
		}
	}
	return least
}

// tell logs from time to time how many connections were closed. The caller holds mu.
func (g *Gate) tell(now time.Time) {
	if now.Sub(g.toldAt) < gateLogInterval {
		return
	}
	g.Log.Warn("too many connections: idle ones of the client that has most are closed", "what", g.What, "limit", g.Max, "closed", g.closed)
	g.closed, g.toldAt = 0, now
}

func (g *Gate) forget(c *gatedConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(c)
}

// remove takes c out, if it is there. The caller holds mu.
func (g *Gate) remove(c *gatedConn) (found bool) {
	for i, other := range g.conns {
		if other == c {
			g.conns = append(g.conns[:i], g.conns[i+1:]...)
			return true
		}
	}
	return false
}

// State is an http.Server's ConnState.
func (g *Gate) State(conn net.Conn, s http.ConnState) {
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok { // *tls.Conn
		conn = secure.NetConn()
	}
	c, ok := conn.(*gatedConn)
	if !ok || s != http.StateActive && s != http.StateIdle {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.busy = s == http.StateActive; g.remove(c) {
		g.conns = append(g.conns, c)
	}
}

// sourceOf is the source that a connection is counted for: an IPv4 address, or the /64 of an
// IPv6 one, of which one host may have all. On a unix socket all are one source.
func sourceOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	source, _ := ip.Prefix(bits) // zero for an address that is none
	return source
}
