package l4

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/relay"
)

// What we dial has the mark of its upstream, whichever way it is dialled.
func TestMark(t *testing.T) {
	if err := relay.MayMark(7); err != nil {
		t.Skip(err)
	}
	served := make(chan *net.TCPConn, 1)
	cfg := oneUpstream(l4test.Backend(t, func(c *net.TCPConn) { served <- c; l4test.Echo(c) }))
	cfg.Upstreams[0].Mark = 7
	f := serve(t, Options{}, cfg)
	ping(t, f.client(0))
	conn := <-served
	if got := sockopt(t, socketTo(t, conn.RemoteAddr(), conn.LocalAddr()), unix.SOL_SOCKET, unix.SO_MARK); got != 7 {
		t.Errorf("mark %d, want 7", got)
	}
	e := relay.New()
	defer e.Close()
	address := l4test.Backend(t, l4test.Echo)
	for _, mark := range []int{0, 7} {
		for _, host := range []string{"127.0.0.1", "localhost"} { // a name goes the portable way
			c, err := netconn.Dialer(e, mark)(context.Background(), "tcp", net.JoinHostPort(host, portOf(address)))
			if err != nil {
				t.Fatal(err)
			}
			var got int
			if err := netconn.Control(c, func(fd uintptr) { got, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); err != nil || got != mark {
				t.Errorf("%s: mark %d, %v, want %d", host, got, err, mark)
			}
			c.Close()
		}
	}
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
