package bind

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"ambassador/l4/netconn"
	"ambassador/l4/relay"
)

// IsAbsent reports whether err means that the host does not have the address.
func IsAbsent(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// Socket is a listening TCP socket whose descriptor can be used.
type Socket interface {
	Control(f func(fd uintptr)) error
}

// Listen binds the place, which is one of TCP. The sockets in instead are closed soon; see
// ListenTCP, which has the same errors.
func (p Place) Listen(ctx context.Context, instead []Socket) (net.Listener, error) {
	if !p.tcp.IsValid() {
		return ListenTCP(ctx, p.name, instead...)
	}
	ln, err := listenIP(ctx, p.tcp, p.onlyIPv6, instead)
	if err != nil {
		return nil, &Error{p.tcp.String(), err}
	}
	return ln, nil
}

// ListenTCP binds a TCP socket to "HOST:PORT". 0.0.0.0 accepts IPv4 alone; [::] accepts
// both families, and IPv4 alone on a host without IPv6. Of the addresses of a name the
// first is taken, IPv4 before IPv6. The socket is not MPTCP.
//
// Instead lists sockets of this process that are closed soon and may hold the port.
// The error is an *Error; it is syscall.EADDRINUSE if another socket holds the port.
func ListenTCP(ctx context.Context, address string, instead ...Socket) (net.Listener, error) {
	ln, err := listenTCP(ctx, address, instead)
	if err != nil {
		return nil, &Error{address, err}
	}
	return ln, nil
}

func listenTCP(ctx context.Context, address string, instead []Socket) (net.Listener, error) {
	host, port, err := splitListen(address)
	if err != nil {
		return nil, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return listenInstead(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))), nil, instead)
	}
	return listenIP(ctx, netip.AddrPortFrom(ip.Unmap(), port), false, instead)
}

// listenIP binds a TCP socket to an IP address. The networks are named, because Go's
// choice of one depends on a probe that needs rights which a sandbox takes away.
func listenIP(ctx context.Context, at netip.AddrPort, onlyIPv6 bool, instead []Socket) (net.Listener, error) {
	switch {
	case at.Addr().Is4():
		return listenInstead(ctx, "tcp4", at.String(), nil, instead)
	case at.Addr() != netip.IPv6Unspecified() || onlyIPv6:
		return listenInstead(ctx, "tcp6", at.String(), nil, instead)
	}
	ln, err := listenInstead(ctx, "tcp6", at.String(), bothFamilies, instead)
	if IsAbsent(err) {
		return listenIP(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), false, instead)
	}
	return ln, err
}

// bothFamilies lets an IPv6 socket accept IPv4.
func bothFamilies(fd uintptr) error {
	return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, 0))
}

// listenInstead binds a TCP socket. If sockets in instead hold the port, they and the
// new one share it for a moment: so the new one is bound before they are closed.
func listenInstead(ctx context.Context, network, address string, prepare func(fd uintptr) error, instead []Socket) (net.Listener, error) {
	ln, err := listenPrepared(ctx, network, address, prepare)
	if !errors.Is(err, syscall.EADDRINUSE) || len(instead) == 0 {
		return ln, err
	}
	share := func(socket Socket, on bool) { // on an error the bind fails as before
		socket.Control(func(fd uintptr) { relay.SetShared(fd, on) })
	}
	for _, old := range instead {
		share(old, true)
		defer share(old, false)
	}
	ln, err = listenPrepared(ctx, network, address, func(fd uintptr) error {
		if prepare != nil {
			if err := prepare(fd); err != nil {
				return err
			}
		}
		return relay.SetShared(fd, true)
	})
	if err != nil {
		return nil, err
	}
	if raw, err := ln.(*net.TCPListener).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { relay.SetShared(fd, false) })
	}
	return ln, nil
}

// listenPrepared binds a TCP socket. Prepare, if not nil, is called before the bind.
func listenPrepared(ctx context.Context, network, address string, prepare func(fd uintptr) error) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: netconn.KeepAlive}
	lc.SetMultipathTCP(false) // by default, Go listens with MPTCP
	if prepare != nil {
		lc.Control = netconn.Prepare(prepare)
	}
	return lc.Listen(ctx, network, address)
}
