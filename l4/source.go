package l4

import (
	"net"
	"net/netip"

	"ambassador/policy"
)

// sourceOf is the source of the peer of a connection.
func sourceOf(c net.Conn) policy.Source {
	if uid, ok := peerUID(c); ok {
		return policy.SourceOfUser(uid)
	}
	return policy.SourceOf(clientIP(c))
}

// clientIP is the IP address of the peer of a connection. It is not valid on unix
// sockets.
func clientIP(c net.Conn) netip.Addr {
	if s, ok := c.(interface{ RemoteAddrPort() netip.AddrPort }); ok {
		return s.RemoteAddrPort().Addr().Unmap()
	}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// unmapped converts a TCP address, and turns an IPv4-mapped address into IPv4. It
// returns the zero value for other addresses.
func unmapped(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
