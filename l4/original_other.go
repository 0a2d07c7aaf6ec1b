//go:build !linux

package l4

import (
	"errors"
	"net"
	"net/netip"
)

// originalDestination is where the client of a connection wanted to go before it
// was redirected to us, which only Linux tells.
func originalDestination(net.Conn) (netip.AddrPort, error) {
	return netip.AddrPort{}, errors.New("original destination: Linux only")
}
