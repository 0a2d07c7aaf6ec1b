package l4

import (
	"net"
	"net/netip"

	"ambassador/policy"
)

// sourceOf is the source of a connection's peer.
func sourceOf(c net.Conn) policy.Source {
	if uid, ok := peerUID(c); ok {
		return policy.SourceOfUser(uid)
	}
	return policy.SourceOf(clientIP(c))
}

// clientIP is the address of a connection's peer; not valid on unix sockets.
func clientIP(c net.Conn) netip.Addr {
	if s, ok := c.(interface{ RemoteAddrPort() netip.AddrPort }); ok {
		return s.RemoteAddrPort().Addr().Unmap()
	}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// unmapped is a TCP address, with IPv4 where it is IPv4-mapped; the zero value for others.
func unmapped(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
