package netconn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// originalDst6 is SO_ORIGINAL_DST for IPv6 (linux/netfilter_ipv6/ip6_tables.h).
const originalDst6 = 80

// OriginalDestination is the address that the client of a TCP connection connected to
// before it was redirected to us. If the connection was not redirected, it is our own
// address, or an error: the caller must check whether the address is ours.
func OriginalDestination(conn net.Conn) (at netip.AddrPort, err error) {
	client, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return at, fmt.Errorf("original destination: a connection by %s was not redirected; original_destination needs a TCP listener", conn.LocalAddr().Network())
	}
	four := client.AddrPort().Addr().Unmap().Is4()
	controlErr := Control(conn, func(fd uintptr) { at, err = originalOf(int(fd), four) })
	switch {
	case controlErr != nil:
		err = controlErr
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("the connection was not redirected; does a rule of nftables like `tcp dport 443 redirect to :PORT` send it here? (%w)", err)
	case errors.Is(err, unix.ENOPROTOOPT):
		err = fmt.Errorf("the kernel tracks no connections, so none is redirected to us; is there a nat table in this network namespace? (%w)", err)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return at, nil
}

// originalOf asks the kernel. The answer is a sockaddr of the address family that was
// asked for. It fits into the result of the only x/sys function that returns an option
// with an address.
func originalOf(fd int, four bool) (netip.AddrPort, error) {
	level, option := unix.SOL_IP, unix.SO_ORIGINAL_DST
	if !four {
		level, option = unix.SOL_IPV6, originalDst6
	}
	info, err := unix.GetsockoptIPv6MTUInfo(fd, level, option)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, info.Addr.Port))
	if !four {
		return netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr).Unmap(), port), nil
	}
	var addr [4]byte // the IPv4 address is where the IPv6 sockaddr has its flow info
	binary.NativeEndian.PutUint32(addr[:], info.Addr.Flowinfo)
	return netip.AddrPortFrom(netip.AddrFrom4(addr), port), nil
}
