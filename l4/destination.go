package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ambassador/l4/outcome"
)

// destination is what a client asks for: a name or an address, and a port. It is owned
// by one session.
type destination struct {
	host string       // as policy.ParseHost gives it; empty for an address
	addr netip.Addr   // not valid for a name
	port uint16       // 0: the client has not named a destination
	ips  []netip.Addr // of host, if the rules looked it up; those that the rules allow
	text string       // result of String, after the first call
	// scope is the rule that allows only some of the name's addresses; empty: all are
	// allowed. The state of these says nothing about the others, which another rule allows.
	scope string
	// may reports whether the rules allow an address; if not, special names the range of
	// special addresses that it is in.
	may func(netip.Addr) (special string, ok bool)
	// ours reports whether we listen at an address.
	ours func(netip.AddrPort) bool
	// lookUp asks a resolver when it is the client's turn. Nil: the lookup is immediate.
	lookUp func(context.Context, *resolver, string) ([]netip.Addr, error)
}

// name returns the host or the address.
func (d *destination) name() string {
	if d.addr.IsValid() {
		return d.addr.String()
	}
	return d.host
}

// String returns "host:port" or "[::1]:port". It is empty if the client has not named a
// destination.
func (d *destination) String() string {
	if d.port == 0 {
		return ""
	}
	if d.text == "" {
		d.text = net.JoinHostPort(d.name(), strconv.Itoa(int(d.port)))
	}
	return d.text
}

// maxDialled bounds the addresses of one destination that may be dialled: the owner of
// a name can list thousands. It is the maximum of connect.attempts.
const maxDialled = 100

// judge returns the addresses that may be dialled, at most the first maxDialled. If
// there are none, the error is an *outcome.Refusal of StageRoute.
func (d *destination) judge(found []netip.Addr) ([]netip.Addr, error) {
	var kept []netip.Addr
	var refused []string
	reason := outcome.SpecialAddress
	for _, ip := range found {
		if len(kept) == maxDialled {
			break
		}
		ip = ip.Unmap()
		if slices.Contains(kept, ip) {
			continue
		}
		special, ok := d.may(ip)
		switch {
		case d.ours(netip.AddrPortFrom(ip, d.port)):
			reason = outcome.Loop
			refused = append(refused, ip.String()+" is ourselves")
		case !ok:
			refused = append(refused, fmt.Sprintf("%s is %s", ip, special))
		default:
			kept = append(kept, ip)
		}
	}
	if len(kept) > 0 {
		return kept, nil
	}
	const most = 3
	if n := len(refused); n > most {
		refused = append(refused[:most], fmt.Sprintf("and %d more", n-most))
	}
	public := "leads to special addresses only (loopback, private and the like), and no rule opens those"
	if reason == outcome.Loop {
		public = "leads back to the ambassador"
	}
	return nil, &outcome.Refusal{Stage: outcome.StageRoute, Reason: reason, Text: fmt.Sprintf("%s: %s, and no rule opens that", d, strings.Join(refused, ", ")), Public: fmt.Sprintf("%s %s", d, public)}
}

// mustLookUp reports whether the name was not looked up for this session yet.
func (d *destination) mustLookUp() bool { return !d.addr.IsValid() && d.ips == nil }

// addresses looks up the name, unless the rules have, and judges the addresses. It does
// not wait if no lookup is needed.
func (d *destination) addresses(ctx context.Context, r *resolver) ([]netip.Addr, error) {
	switch {
	case d.addr.IsValid():
		return d.judge([]netip.Addr{d.addr})
	case !d.mustLookUp():
		return d.judge(d.ips)
	}
	lookUp := d.lookUp
	if lookUp == nil {
		lookUp = func(ctx context.Context, r *resolver, host string) ([]netip.Addr, error) { return r.lookup(ctx, host) }
	}
	found, err := lookUp(ctx, r, d.host)
	if err != nil {
		return nil, err
	}
	return d.judge(found)
}
