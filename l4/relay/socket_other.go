//go:build !linux

package relay

import (
	"context"
	"net"
	"net/netip"
)

// TCP is c as a *net.TCPConn, if it is one.
func TCP(c net.Conn) (*net.TCPConn, bool) {
	conn, ok := c.(*net.TCPConn)
	return conn, ok
}

// Listen returns ln, whose own configuration sets keepalive.
func Listen(ln *net.TCPListener, _ net.KeepAliveConfig) (net.Listener, error) { return ln, nil }

// Dial connects to an address. The error wraps the system's error number or that
// of ctx.
func (e *Engine) Dial(ctx context.Context, to netip.AddrPort, keepAlive net.KeepAliveConfig) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", to.String())
}
