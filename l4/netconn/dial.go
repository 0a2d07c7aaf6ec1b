package netconn

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// Dialer returns the DialFunc of real sockets. They have keepalive, but neither Nagle's
// delay nor MPTCP, which would wrap each socket in another. Sockets of IP have the mark;
// 0 is none.
func Dialer(e *relay.Engine, mark int) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		addr, err := netip.ParseAddrPort(address)
		if network == "tcp" && err == nil && addr.Addr().Zone() == "" {
			return e.DialMarked(ctx, addr, mark, &KeepAlive, task.From(ctx))
		}
		task.Leave(ctx)
		d := net.Dialer{KeepAliveConfig: KeepAlive}
		d.SetMultipathTCP(false)
		if mark != 0 && network != "unix" {
			d.Control = func(_, _ string, c syscall.RawConn) error { return markSocket(c, mark) }
		}
		return d.DialContext(ctx, network, address)
	}
}

func markSocket(c syscall.RawConn, mark int) error {
	var err error
	if controlErr := c.Control(func(fd uintptr) { err = relay.SetMark(fd, mark) }); controlErr != nil {
		return controlErr
	}
	return err
}

// DialFunc opens a connection to a unix path or to an IP address with port.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)
