package netconn

import (
	"net"
	"net/netip"
)

// ClientIP is the IP address of the peer of a connection. It is not valid on unix
// sockets.
func ClientIP(c net.Conn) netip.Addr {
	if s, ok := c.(interface{ RemoteAddrPort() netip.AddrPort }); ok {
		return s.RemoteAddrPort().Addr().Unmap()
	}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// Unmapped converts a TCP address, and turns an IPv4-mapped address into IPv4. It
// returns the zero value for other addresses.
func Unmapped(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
