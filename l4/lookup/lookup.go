package lookup

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"ambassador/l4/nameserver"
)

// HostPort returns the host and port of "HOST:PORT". For "unix:/path" they are zero.
func HostPort(address string) (string, uint16, error) {
	if strings.HasPrefix(address, "unix:") {
		return "", 0, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, &net.AddrError{Err: "the port must be a number from 1 to 65535", Addr: address}
	}
	return host, uint16(n), nil
}

// Literal returns the address of an endpoint that needs no lookup.
func Literal(endpoint string) (unix string, addr netip.AddrPort, ok bool) {
	if path, is := strings.CutPrefix(endpoint, "unix:"); is {
		return path, netip.AddrPort{}, true
	}
	addr, err := netip.ParseAddrPort(endpoint)
	return "", netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), err == nil
}

// Places is the answer of a lookup, in the answer's order.
type Places struct {
	All     []Place
	Partial bool // the addresses of one family were not awaited
}

// Place is one address in the answer of a lookup.
type Place struct {
	Addr             netip.AddrPort
	Weight, Priority int
	Distance         int  // see Discovered
	Other            bool // of the address family that the system does not prefer (RFC 6724)
}

// Services looks up the SRV records of name (RFC 2782) and the addresses of their
// targets. It fails if no target has an address: with the error of a target, or with
// *net.DNSError if there is no target. Delay is that of nameserver.Resolver.Addresses.
func Services(ctx context.Context, r *nameserver.Resolver, name string, delay time.Duration) (out Places, err error) {
	targets, err := r.Services(ctx, name)
	if err != nil {
		return Places{}, err
	}
	for _, t := range targets {
		found, hostErr := Host(ctx, r, t.Target, t.Port, Place{Weight: int(t.Weight), Priority: int(t.Priority)}, delay)
		if hostErr != nil {
			err = hostErr // one target without an address does not exclude the others
		}
		out.All, out.Partial = append(out.All, found.All...), out.Partial || found.Partial
	}
	if len(out.All) == 0 {
		return Places{}, cmp.Or(err, error(&net.DNSError{Err: "no service there", Name: name, IsNotFound: true}))
	}
	return out, nil
}

// Host looks up the addresses of a host. Each place of the answer is like the given one,
// but for its address.
func Host(ctx context.Context, r *nameserver.Resolver, host string, port uint16, like Place, delay time.Duration) (Places, error) {
	answer, err := r.Addresses(ctx, host, delay)
	if err != nil {
		return Places{}, err
	}
	out := Places{Partial: answer.Partial}
	for _, ip := range answer.Addrs {
		p := like
		p.Addr = netip.AddrPortFrom(ip.Unmap(), port)
		p.Other = ip.Unmap().Is4() != answer.Addrs[0].Unmap().Is4()
		out.All = append(out.All, p)
	}
	return out, nil
}
