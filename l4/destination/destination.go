package destination

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/l4/nameserver"
	"ambassador/l4/outcome"
)

// Destination is what a client asks for: a name or an address, and a port. It is owned
// by one session.
type Destination struct {
	Host     string       // as policy.ParseHost gives it; empty for an address
	Absolute bool         // the client's name ends in the root's dot, which Host does not have
	Addr     netip.Addr   // not valid for a name
	Port     uint16       // 0: the client has not named a destination
	IPs      []netip.Addr // of host, if the rules looked it up; those that the rules allow
	Partial  bool         // the lookup did not await the addresses of one family
	text     string       // result of String, after the first call
	// Scope is the rule, or the rules judged together, that allow only some of the name's
	// addresses; empty: all are allowed. The state of these says nothing about the others,
	// which another rule allows.
	Scope string
	// May reports whether the rules allow an address; if not, special names the range of
	// special addresses that it is in.
	May func(netip.Addr) (special string, ok bool)
	// Ours reports whether we listen at an address.
	Ours func(netip.AddrPort) bool
	// LookUp asks a resolver when it is the client's turn. Nil: the lookup is immediate.
	LookUp func(context.Context, *nameserver.Resolver, string, time.Duration) (nameserver.Answer, error)
	// DecideAgain is for rules that looked the name up: it looks it up again, and returns
	// the addresses that the same decision allows. Nil: the rules did not look it up.
	DecideAgain func(context.Context) ([]netip.Addr, error)
}

// Name returns the host or the address.
func (d *Destination) Name() string {
	if d.Addr.IsValid() {
		return d.Addr.String()
	}
	return d.FullName()
}

// FullName returns the name as it is looked up: with the root's dot if the client sent
// it. Without the dot the resolver may append a search domain, which is another host.
// "localhost." is localhost (RFC 6761, section 6.3), which /etc/hosts has without a dot.
func (d *Destination) FullName() string {
	if d.Absolute && d.Host != "localhost" {
		return d.Host + "."
	}
	return d.Host
}

// String returns "host:port" or "[::1]:port". It is empty if the client has not named a
// destination.
func (d *Destination) String() string {
	if d.Port == 0 {
		return ""
	}
	if d.text == "" {
		d.text = net.JoinHostPort(d.Name(), strconv.Itoa(int(d.Port)))
	}
	return d.text
}

// MaxDialled bounds the addresses of one destination that may be dialled: the owner of
// a name can list thousands. It is the maximum of connect.attempts.
const MaxDialled = 100

// judge returns the addresses that may be dialled, at most the first MaxDialled. If
// there are none, the error is an *outcome.Refusal of StageRoute.
func (d *Destination) judge(found []netip.Addr) ([]netip.Addr, error) {
	var kept []netip.Addr
	var refused []string
	reason := outcome.SpecialAddress
	for _, ip := range found {
		if len(kept) == MaxDialled {
			break
		}
		ip = ip.Unmap()
		if slices.Contains(kept, ip) {
			continue
		}
		special, ok := d.May(ip)
		switch {
		case d.Ours(netip.AddrPortFrom(ip, d.Port)):
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

// MustLookUp reports whether the name was not looked up for this session yet.
func (d *Destination) MustLookUp() bool { return !d.Addr.IsValid() && d.IPs == nil }

// Addresses looks up the name, unless the rules have, and judges the addresses. It does
// not wait if no lookup is needed.
func (d *Destination) Addresses(ctx context.Context, r *nameserver.Resolver) ([]netip.Addr, error) {
	switch {
	case d.Addr.IsValid():
		return d.judge([]netip.Addr{d.Addr})
	case !d.MustLookUp():
		return d.judge(d.IPs)
	}
	return d.find(ctx, r, nameserver.Quick)
}

// find looks up the name, and judges the addresses.
func (d *Destination) find(ctx context.Context, r *nameserver.Resolver, delay time.Duration) ([]netip.Addr, error) {
	lookUp := d.LookUp
	if lookUp == nil {
		lookUp = func(ctx context.Context, r *nameserver.Resolver, host string, delay time.Duration) (nameserver.Answer, error) {
			return r.Addresses(ctx, host, delay)
		}
	}
	found, err := lookUp(ctx, r, d.FullName(), delay)
	if err != nil {
		return nil, err
	}
	d.Partial = found.Partial
	return d.judge(found.Addrs)
}

// BothFamilies looks up the name again if the lookup did not await the addresses of one
// family, and waits longer. It returns the addresses that may be dialled.
func (d *Destination) BothFamilies(ctx context.Context, r *nameserver.Resolver) ([]netip.Addr, error) {
	if !d.Partial {
		return nil, nil
	}
	d.Partial = false
	if d.DecideAgain == nil {
		return d.find(ctx, r, nameserver.Patient)
	}
	ips, err := d.DecideAgain(ctx)
	if err != nil || len(ips) == 0 {
		return nil, err
	}
	return d.judge(ips)
}
