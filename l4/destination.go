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

// destination is where a client wants to go: a name or an address, and a port.
// Owned by one session.
type destination struct {
	host string       // as policy.ParseHost gives it; empty for an address
	addr netip.Addr   // not valid for a name
	port uint16       // 0: the client has not said where to
	ips  []netip.Addr // of host, where the rules wanted to know, and kept by them
	text string       // String's, once it was asked
	// scope is the rule that has kept only some of the name's addresses; empty: all are
	// kept. What is known of those says nothing of the others, which another rule keeps.
	scope string
	// may says whether a rule opens a special address, and else what range it is in.
	may func(netip.Addr) (special string, ok bool)
	// ours says whether we listen there.
	ours func(netip.AddrPort) bool
	// lookUp asks a resolver when it is the client's turn. Nil: at once.
	lookUp func(context.Context, *resolver, string) ([]netip.Addr, error)
}

// name is the host or the address.
func (d *destination) name() string {
	if d.addr.IsValid() {
		return d.addr.String()
	}
	return d.host
}

// String is "host:port" or "[::1]:port"; empty where the client has not said.
func (d *destination) String() string {
	if d.port == 0 {
		return ""
	}
	if d.text == "" {
		d.text = net.JoinHostPort(d.name(), strconv.Itoa(int(d.port)))
	}
	return d.text
}

// maxDialled bounds the addresses of one destination that may be dialled, of which
// its owner can name thousands: connect.attempts of an upstream is at most 100.
const maxDialled = 100

// judge keeps the addresses that may be dialled, of more than maxDialled the first.
// The error is a *Refusal of StageRoute if there are none.
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

// mustLookUp says that nobody has looked the name up for this session yet.
func (d *destination) mustLookUp() bool { return !d.addr.IsValid() && d.ips == nil }

// addresses looks the name up, where the rules have not, and judges what is found.
// Where nothing needs to be looked up it does not wait.
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
