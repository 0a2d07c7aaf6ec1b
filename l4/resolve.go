package l4

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// hostOf is the host of "HOST:PORT"; empty for "unix:/path".
func hostOf(address string) (string, error) {
	if strings.HasPrefix(address, "unix:") {
		return "", nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", &net.AddrError{Err: "the port must be a number from 1 to 65535", Addr: address}
	}
	return host, nil
}

// resolve lists the addresses of an endpoint, the families in turn and each
// family rotated, so that sessions spread over them.
func (u *Upstream) resolve(ctx context.Context, e *endpoint) ([]candidate, error) {
	if path, ok := strings.CutPrefix(e.address, "unix:"); ok {
		return []candidate{{endpoint: e, unix: path}}, nil
	}
	_, port, _ := net.SplitHostPort(e.address) // hostOf has checked it
	n, _ := strconv.ParseUint(port, 10, 16)
	ips, err := u.lookup(ctx, e.host)
	if err != nil {
		return nil, err
	}
	var out []candidate
	for _, ip := range alternate(ips, int(e.turn.Add(1)-1)) {
		out = append(out, candidate{endpoint: e, addr: netip.AddrPortFrom(ip, uint16(n))})
	}
	return out, nil
}

func (u *Upstream) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	start := time.Now()
	ips, err := u.resolver.lookup(ctx, host)
	if err == nil {
		u.timed(PhaseDNS, start)
	}
	return ips, err
}

// alternate orders addresses so that the families take turns, beginning with
// the family of the first (the system's preference, RFC 6724), and rotates each
// family by turn.
func alternate(ips []netip.Addr, turn int) []netip.Addr {
	var lead, other []netip.Addr
	for _, ip := range ips {
		ip = ip.Unmap()
		if ip.Is4() == ips[0].Unmap().Is4() {
			lead = append(lead, ip)
		} else {
			other = append(other, ip)
		}
	}
	out := make([]netip.Addr, 0, len(ips))
	for i := range max(len(lead), len(other)) {
		if i < len(lead) {
			out = append(out, lead[(i+turn)%len(lead)])
		}
		if i < len(other) {
			out = append(out, other[(i+turn)%len(other)])
		}
	}
	return out
}

// resolver looks names up, /etc/hosts and search domains included.
type resolver struct {
	servers []*net.Resolver // each asks one server; the system's resolver stands alone
}

// newResolver asks the given servers ("10.0.0.2:53"), or the system's.
func newResolver(servers []string) *resolver {
	r := &resolver{}
	for _, server := range servers {
		d := net.Dialer{}
		r.servers = append(r.servers, &net.Resolver{PreferGo: true,
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, server)
			}})
	}
	if len(servers) == 0 {
		r.servers = []*net.Resolver{net.DefaultResolver}
	}
	return r
}

// nextServerAfter is when the next server is asked too while one is silent.
const nextServerAfter = time.Second

type answer struct {
	ips []netip.Addr
	err error
}

// lookup asks one server after the other: the next when one fails or is silent
// for nextServerAfter. A name that does not exist is an answer. The error is,
// or wraps, a *net.DNSError.
func (r *resolver) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the look-ups that lost
	answers := make(chan answer, len(r.servers))
	asked, open := 0, 0
	ask := func() {
		server := r.servers[asked]
		asked, open = asked+1, open+1
		go func() { // answers has room for all
			ips, err := server.LookupNetIP(ctx, "ip", host)
			answers <- answer{ips, err}
		}()
	}
	ask()
	for {
		var late <-chan time.Time
		if asked < len(r.servers) {
			late = time.After(nextServerAfter)
		}
		select {
		case <-late:
			ask()
		case a := <-answers:
			open--
			var d *net.DNSError
			if a.err == nil || errors.As(a.err, &d) && d.IsNotFound || asked == len(r.servers) && open == 0 {
				return a.ips, a.err
			}
			if asked < len(r.servers) {
				ask()
			}
		case <-ctx.Done():
			return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, IsTimeout: true, UnwrapErr: ctx.Err()}
		}
	}
}
