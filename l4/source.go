package l4

import (
	"net"
	"net/netip"
)

// Source is what counts as one client, for limits and for failed logins: an IPv4
// address; a /64 of IPv6, since a host can use every address of its own; the user
// of the process that connects through a unix socket. It is comparable. The zero
// value is a unix socket's client whose user the system does not tell.
type Source struct {
	network netip.Prefix // not valid: a unix socket's
	uid     uint32
	local   bool // uid is known
}

// SourceOf is the source of an address. An IPv4-mapped address counts as IPv4.
func SourceOf(a netip.Addr) Source {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return Source{}
	}
	return Source{network: p}
}

// sourceOf is the source of a connection's peer.
func sourceOf(c net.Conn) Source {
	if uid, ok := peerUID(c); ok {
		return Source{uid: uid, local: true}
	}
	return SourceOf(clientIP(c))
}

// source is the client's, by the PROXY header where there is one.
func (s *session) source() Source {
	if g := s.greeted; g != nil && g.header.source.IsValid() {
		return SourceOf(g.header.source.Addr())
	}
	return sourceOf(s.downstream)
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
