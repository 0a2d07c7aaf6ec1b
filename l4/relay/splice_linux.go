package relay

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// hasSplice: the runtime moves bytes between two sockets in the kernel.
const hasSplice = true

// hungUp says whether the connection was reset or is closed both ways, without
// taking anything from the socket.
func hungUp(c net.Conn) bool {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	hung := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		hung = err == nil && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
	})
	return hung || err != nil
}

// wasReset says whether a connection whose reader has met its end, while we had
// not ended our side, was reset: a FIN leaves our side open.
func wasReset(c net.Conn) bool {
	_, tcp := c.(*net.TCPConn)
	return tcp && hungUp(c)
}

// pollable is c as a connection in Go's poller.
func pollable(c net.Conn) net.Conn {
	if s, ok := c.(*Socket); ok {
		if conn, err := s.adopt(); err == nil {
			return conn
		}
	}
	return c
}
