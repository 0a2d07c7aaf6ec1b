package l4

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// sockopt reads an option of a socket.
func sockopt(t *testing.T, c net.Conn, level, option int) (value int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, option) })
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// recordDial dials and tells of the connection.
func recordDial(to chan<- net.Conn) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			to <- c
		}
		return c, err
	}
}

// Both legs are plain TCP, not MPTCP, with keepalive and without Nagle's delay.
func TestSocketsOfBothLegs(t *testing.T) {
	dialled := make(chan net.Conn, 1)
	f := serve(t, Options{Dial: recordDial(dialled)}, oneUpstream(backend(t, echo)))
	ping(t, f.client(0))
	for name, c := range map[string]net.Conn{"downstream": f.live()[0].downstream, "upstream": <-dialled} {
		if got := sockopt(t, c, unix.SOL_SOCKET, unix.SO_PROTOCOL); got != unix.IPPROTO_TCP {
			t.Errorf("%s: protocol %d, want TCP", name, got)
		}
		if sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY) == 0 {
			t.Errorf("%s: no TCP_NODELAY", name)
		}
		f.until("keepalive", func() bool { return sockopt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 1 })
		for option, want := range map[int]int{unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 30, unix.TCP_KEEPCNT: 10} {
			if got := sockopt(t, c, unix.IPPROTO_TCP, option); got != want {
				t.Errorf("%s: keepalive option %d is %d, want %d", name, option, got, want)
			}
		}
	}
}
