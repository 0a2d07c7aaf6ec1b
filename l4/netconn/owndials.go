package netconn

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// OwnDials records the connections that we have made. With it a listener finds out that
// a redirected connection is one of ours. A redirect that catches our connections too
// would make us dial again and again, without end. Connections are recorded only while a
// listener accepts redirected connections. A nil OwnDials records none. It is safe for
// concurrent use.
type OwnDials struct {
	Wanted atomic.Bool
	mu     sync.Mutex
	Live   map[ownDial]bool // guarded by mu
}

// ownDial identifies a connection by its two addresses, as seen by the side that dialled
// it. No two open connections have the same pair.
type ownDial struct{ from, to netip.AddrPort }

// Add records a connection until forget is called. Forget is nil if the connection is
// not recorded.
func (d *OwnDials) Add(c net.Conn) (forget func()) {
	if d == nil || !d.Wanted.Load() {
		return nil
	}
	one := ownDial{Unmapped(c.LocalAddr()), Unmapped(c.RemoteAddr())}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.Live == nil {
		d.Live = map[ownDial]bool{}
	}
	d.Live[one] = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.Live, one)
	}
}

// Has reports whether we have made the connection from a client to its original
// destination.
func (d *OwnDials) Has(from, to netip.AddrPort) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Live[ownDial{from, to}]
}
