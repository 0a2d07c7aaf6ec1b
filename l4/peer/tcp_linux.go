package peer

import (
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ofTCP asks the kernel who owns the socket at client that is connected to dialled, and
// bound to that interface.
func ofTCP(client, dialled netip.AddrPort, boundTo int) Who {
	uid, inode, err := diagnose(withoutZone(client), withoutZone(dialled), uint32(boundTo))
	if err != nil {
		return Who{}
	}
	return Who{UID: uid, HasUID: true, inode: inode}
}

// answered is set once the kernel has answered a question.
var answered atomic.Bool

// Answers reports whether a question has been answered already. Before, the kernel may
// have to load a module for it, which takes milliseconds: leave the event loop first.
func Answers() bool { return answered.Load() }

func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}

// diagnose asks one question. The kernel has answered it when the send returns.
func diagnose(src, dst netip.AddrPort, boundTo uint32) (uid, inode uint32, err error) {
	if src.Addr().Is4() != dst.Addr().Is4() {
		return 0, 0, errNoSocket
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, question(src, dst, boundTo), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, 0, err
	}
	var b [1024]byte
	n, from, err := unix.Recvfrom(fd, b[:], 0)
	if err != nil {
		return 0, 0, err
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 { // another process may send to the socket, too
		return 0, 0, errMalformed
	}
	answered.Store(true)
	return answer(b[:n], src, dst)
}
