package l4

import (
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"ambassador/l4/l4test"
)

// socketTo is this process's socket from local to remote, whichever code owns it.
func socketTo(t *testing.T, local, remote net.Addr) (fd int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		own, err1 := unix.Getsockname(fd)
		peer, err2 := unix.Getpeername(fd)
		if err1 == nil && err2 == nil && is(own, local) && is(peer, remote) {
			return fd
		}
	}
	t.Fatalf("no socket from %v to %v", local, remote)
	return -1
}

func is(sa unix.Sockaddr, a net.Addr) bool {
	in, ok := sa.(*unix.SockaddrInet4)
	return ok && in.Port == a.(*net.TCPAddr).Port && net.IP(in.Addr[:]).Equal(a.(*net.TCPAddr).IP)
}

func sockopt(t *testing.T, fd, level, option int) int {
	t.Helper()
	value, err := unix.GetsockoptInt(fd, level, option)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// Both legs are plain TCP, not MPTCP, with keepalive and without Nagle's delay.
func TestSocketsOfBothLegs(t *testing.T) {
	served := make(chan *net.TCPConn, 1)
	f := serve(t, Options{}, oneUpstream(l4test.Backend(t, func(c *net.TCPConn) { served <- c; l4test.Echo(c) })))
	client := f.client(0)
	ping(t, client)
	to := <-served
	for name, fd := range map[string]int{
		"downstream": socketTo(t, client.RemoteAddr(), client.LocalAddr()),
		"to":         socketTo(t, to.RemoteAddr(), to.LocalAddr()),
	} {
		if got := sockopt(t, fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); got != unix.IPPROTO_TCP {
			t.Errorf("%s: protocol %d, want TCP", name, got)
		}
		if sockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_NODELAY) == 0 {
			t.Errorf("%s: no TCP_NODELAY", name)
		}
		f.until("keepalive", func() bool { return sockopt(t, fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 1 })
		for option, want := range map[int]int{unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 30, unix.TCP_KEEPCNT: 10} {
			if got := sockopt(t, fd, unix.IPPROTO_TCP, option); got != want {
				t.Errorf("%s: keepalive option %d is %d, want %d", name, option, got, want)
			}
		}
	}
}
