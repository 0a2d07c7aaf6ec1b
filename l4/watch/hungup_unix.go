//go:build unix

package watch

import "golang.org/x/sys/unix"

// hungUp reports whether the peer of a TCP socket has reset the connection. It consumes
// nothing from the socket, not even its error. The runtime's poller is edge-triggered,
// so it calls hungUp again when something new arrives.
func hungUp(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}
