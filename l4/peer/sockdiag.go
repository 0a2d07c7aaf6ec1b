package peer

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// The wire form of a question about one TCP socket, and of its answer: linux/netlink.h,
// linux/sock_diag.h and linux/inet_diag.h. Numbers are in the order of the machine, ports
// and addresses in that of the network.
const (
	headerLen   = 16 // struct nlmsghdr
	questionLen = 56 // struct inet_diag_req_v2
	answerLen   = 72 // struct inet_diag_msg

	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY, the type of both messages
	errorType        = 2  // NLMSG_ERROR
	requestFlag      = 1  // NLM_F_REQUEST

	familyIPv4, familyIPv6 = 2, 10 // AF_INET, AF_INET6
	protocolTCP            = 6
)

// The states of a TCP socket that a process may still hold (linux/tcp_states.h). A socket
// that is connecting or listening belongs to somebody else who has the same port.
const (
	stateEstablished = 1
	stateFinWait1    = 4
	stateFinWait2    = 5
	stateCloseWait   = 8
)

var (
	errNoSocket  = errors.New("the kernel knows no such socket")
	errNotHeld   = errors.New("no process holds the socket any more")
	errMalformed = errors.New("malformed answer of sock_diag")
)

// appendID appends a struct inet_diag_sockid: the socket at src that is connected to dst,
// and bound to an interface; 0: to none.
func appendID(b []byte, src, dst netip.AddrPort, boundTo uint32) []byte {
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	for _, a := range []netip.Addr{src.Addr(), dst.Addr()} {
		var field [16]byte
		copy(field[:], a.AsSlice())
		b = append(b, field[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, boundTo)
	return append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // INET_DIAG_NOCOOKIE
}

// question is the message that asks for the socket at src that is connected to dst, and
// bound to an interface; 0: to none.
func question(src, dst netip.AddrPort, boundTo uint32) []byte {
	b := make([]byte, 0, headerLen+questionLen)
	b = binary.NativeEndian.AppendUint32(b, headerLen+questionLen)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, requestFlag)
	b = append(b, make([]byte, 8)...) // sequence number, port
	family := byte(familyIPv4)
	if src.Addr().Is6() {
		family = familyIPv6
	}
	b = append(b, family, protocolTCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 1<<stateEstablished|1<<stateFinWait1|1<<stateFinWait2|1<<stateCloseWait)
	return appendID(b, src, dst, boundTo)
}

// readEnd reads one end of a socket. A socket of IPv6 that is connected to an IPv4 address
// has the address as an IPv6 one.
func readEnd(family byte, port, addr []byte) netip.AddrPort {
	a, n := netip.Addr{}, binary.BigEndian.Uint16(port)
	if family == familyIPv6 {
		a = netip.AddrFrom16([16]byte(addr[:16])).Unmap()
	} else {
		a = netip.AddrFrom4([4]byte(addr[:4]))
	}
	return netip.AddrPortFrom(a, n)
}

// answer reads the kernel's message about the socket at src that is connected to dst: the
// owner of the socket, and its inode.
func answer(b []byte, src, dst netip.AddrPort) (uid, inode uint32, err error) {
	if len(b) < headerLen {
		return 0, 0, errMalformed
	}
	length, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
	switch {
	case length < headerLen || uint64(length) > uint64(len(b)):
		return 0, 0, errMalformed
	case kind == errorType:
		return 0, 0, errNoSocket
	case kind != sockDiagByFamily || length < headerLen+answerLen:
		return 0, 0, errMalformed
	}
	b = b[headerLen:]
	if readEnd(b[0], b[4:], b[8:]) != src || readEnd(b[0], b[6:], b[24:]) != dst {
		return 0, 0, errNoSocket // a listening socket with the client's port, for example
	}
	uid, inode = binary.NativeEndian.Uint32(b[64:]), binary.NativeEndian.Uint32(b[68:])
	switch b[1] {
	case stateEstablished, stateFinWait1, stateFinWait2, stateCloseWait:
	default:
		return 0, 0, errNotHeld
	}
	if inode == 0 { // closed by its process: the kernel then says user 0
		return 0, 0, errNotHeld
	}
	return uid, inode, nil
}
