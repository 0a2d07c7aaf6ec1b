package l4

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
)

// What we dial has the mark of its upstream, whichever way it is dialled.
func TestMark(t *testing.T) {
	if err := relay.MayMark(7); err != nil {
		t.Skip(err)
	}
	served := make(chan *net.TCPConn, 1)
	cfg := oneUpstream(backend(t, func(c *net.TCPConn) { served <- c; echo(c) }))
	cfg.Upstreams[0].Mark = 7
	f := serve(t, Options{}, cfg)
	ping(t, f.client(0))
	conn := <-served
	if got := sockopt(t, socketTo(t, conn.RemoteAddr(), conn.LocalAddr()), unix.SOL_SOCKET, unix.SO_MARK); got != 7 {
		t.Errorf("mark %d, want 7", got)
	}
	e := relay.New()
	defer e.Close()
	address := backend(t, echo)
	for _, mark := range []int{0, 7} {
		for _, host := range []string{"127.0.0.1", "localhost"} { // a name goes the portable way
			c, err := dialer(e, mark)(context.Background(), "tcp", net.JoinHostPort(host, portOf(address)))
			if err != nil {
				t.Fatal(err)
			}
			var got int
			if err := control(c, func(fd uintptr) { got, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); err != nil || got != mark {
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

// Who may not mark is told what is missing, before anything is dialled.
func TestMarkWithoutLeave(t *testing.T) {
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	cfg := UpstreamConfig{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Mark: 7}
	e := relay.New()
	defer e.Close()
	o := upstreamDeps{marked: func(mark int) DialFunc { return dialer(e, mark) }}
	_, err := newUpstream(cfg, o)
	var unmarked *relay.MarkError
	if !errors.As(err, &unmarked) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v", err)
	}
	_, err = dialer(e, 7)(context.Background(), "tcp", "127.0.0.1:1")
	if reason := classify(outcome.StageDial, err); reason != outcome.LocalExhausted {
		t.Errorf("a dial: %v, %v", reason, err)
	}
	cfg.Mark = -1
	if _, err := newUpstream(cfg, o); err == nil || !strings.Contains(err.Error(), "-1 is not between 0 and") {
		t.Errorf("%v", err)
	}
}
