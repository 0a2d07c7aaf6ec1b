//go:build !linux

package netconn

import (
	"errors"
	"net"
	"net/netip"
)

// OriginalDestination is where the client of a connection wanted to go before it
// was redirected to us, which only Linux tells.
func OriginalDestination(net.Conn) (netip.AddrPort, error) {
	return netip.AddrPort{}, errors.New("original destination: Linux only")
}
