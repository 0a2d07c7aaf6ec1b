package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// wasReset reports whether a connection was reset. Its reader has met its end, and
// our side is still open: after a mere FIN there is no error and no hang-up. It reads
// nothing from the socket.
func wasReset(c net.Conn) bool {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return true
	}
	reset := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		reset = err == nil && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
	})
	return reset || err != nil
}

// pollable returns c as a connection in Go's poller, for goroutines: they leave nothing
// when they wait.
func pollable(c net.Conn) net.Conn {
	if s, ok := c.(*Socket); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leaver = nil
		if conn, err := s.adopt(); err == nil {
			return conn
		}
	}
	return c
}

func isSocket(c net.Conn) bool {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}
