//go:build !linux

package relay

import (
	"context"
	"net"
	"net/netip"
)

// TCP returns c as a *net.TCPConn, if it is one.
func TCP(c net.Conn) (*net.TCPConn, bool) {
	conn, ok := c.(*net.TCPConn)
	return conn, ok
}

// Listen makes a Listener of ln, whose own configuration sets keepalive.
func (e *Engine) Listen(ln net.Listener, _ *net.KeepAliveConfig) (Listener, error) {
	return &plainListener{Listener: ln}, nil
}

// DialMarked connects to an address. A mark other than 0 is an error: only Linux has
// marks. The error wraps the system's error number or that of ctx. L, if not
// nil, is called first: the dial waits.
func (e *Engine) DialMarked(ctx context.Context, to netip.AddrPort, mark int, keepAlive *net.KeepAliveConfig, l Leaver) (net.Conn, error) {
	if mark != 0 {
		return nil, SetMark(0, mark)
	}
	if l != nil {
		l.Leave()
	}
	d := net.Dialer{KeepAliveConfig: *keepAlive}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", to.String())
}
