//go:build unix

package netconn

import (
	"net"
	"syscall"

	"ambassador/l4/relay"
)

// Peek reports what a read from a connection would return now, without reading: data,
// or the end of the connection or an error. If both results are false, nothing has
// arrived.
func Peek(c net.Conn) (data, ended bool) {
	if t, ok := relay.TCP(c); ok {
		c = t
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false, true
	}
	var n int
	var readErr error
	err = raw.Control(func(fd uintptr) {
		n, _, readErr = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	switch {
	case err != nil:
		return false, true
	case readErr == syscall.EAGAIN || readErr == syscall.EINTR:
		return false, false
	case readErr != nil || n == 0:
		return false, true
	}
	return true, false
}
