package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule is one line of a listener's rules. Each key that is not empty must match
// by one of its values; a rule without keys matches everything. A rule without an
// Upstream denies.
type Rule struct {
	// Name identifies it in records and metrics. If empty, #N: its place, from 1.
	Name string
	// Hosts are names and "*." patterns, as of ParseHostPattern. They never match
	// an address.
	Hosts []string
	Ports []PortRange
	// IPs are prefixes of the destination: of its address, or of those that its name
	// resolves to. An allowing rule keeps the addresses inside and matches if any
	// remain; a denying rule matches if any is inside. For a denying rule, a NAT64 or
	// 6to4 address counts as the IPv4 address that it reaches; for an allowing rule
	// it never does.
	IPs []netip.Prefix
	// Clients are prefixes of the client's address. A client on a unix socket is in
	// none.
	Clients []netip.Prefix
	// Users are names that clients authenticated with.
	Users []string
	// UIDs are user IDs of clients on this host. A denying rule also matches a client
	// on this host whose user ID was not found.
	UIDs []uint32
	// Principals match the proven principal of a client. They are called in order,
	// rule after rule, and concurrently.
	Principals []func(string) bool
	// SNIs are patterns like Hosts, for the server name in the client's ClientHello.
	SNIs []string

	// Upstream is the name of the upstream of an allowed connection.
	Upstream string
	// Deny is the reason for a denial, for people.
	Deny string
	// Report lets the connection pass and says why it should be denied.
	Report string
}

// denies reports whether the rule refuses what it matches. A rule with both Deny
// and Upstream denies, and so does a rule with neither.
func (r *Rule) denies() bool { return r.Deny != "" || r.Upstream == "" }

func (r *Rule) proven(principal string) bool {
	return principal != "" && slices.ContainsFunc(r.Principals, func(match func(string) bool) bool { return match(principal) })
}

// reaching returns the rule's IPs, and for a denying rule also the IPv6 prefixes
// that reach them.
func (r *Rule) reaching() []netip.Prefix {
	if !r.denies() {
		return r.IPs
	}
	all := slices.Clone(r.IPs)
	for _, p := range r.IPs {
		all = append(all, disguises(p)...)
	}
	return all
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// ParsePortRange parses a port, "443", or a range of ports, "8000-8999".
func ParsePortRange(s string) (PortRange, error) {
	low, high, isRange := strings.Cut(s, "-")
	first, err := parsePort(low)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q: %w", s, err)
	}
	if !isRange {
		return PortRange{first, first}, nil
	}
	last, err := parsePort(high)
	switch {
	case err != nil:
		return PortRange{}, fmt.Errorf("port %q: %w", s, err)
	case last < first:
		return PortRange{}, fmt.Errorf("port %q: the range ends before it begins; write %d-%d", s, last, first)
	}
	return PortRange{first, last}, nil
}

func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New(`not a port; write a number from 1 to 65535, or a range, "8000-8999"`)
	}
	return uint16(port), nil
}

// Contains reports whether the port is in the range.
func (p PortRange) Contains(port uint16) bool { return p.First <= port && port <= p.Last }

// String returns the range in the form that ParsePortRange accepts.
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// Query describes a connection for the rules. An empty field is not known, and
// matches no key.
type Query struct {
	// Host is the name that the client requests, canonical as of ParseHost. It is
	// empty if Addr is valid, and if the client names no destination.
	Host string
	// Addr is the address that the client requests instead of a name.
	Addr netip.Addr
	Port uint16
	// Client is the client's address; invalid on a unix socket.
	Client netip.Addr
	User   string
	// UID is the client's, if HasUID. LostUID says that the client is on this host, and
	// that its user ID was not found.
	UID             uint32
	HasUID, LostUID bool
	// Principal is the client's, proven by its certificate.
	Principal string
	// SNI is canonical like Host.
	SNI string
}

// host returns the name that host keys match; none if the destination is an
// address.
func (q *Query) host() string {
	if q.Addr.IsValid() {
		return ""
	}
	return q.Host
}

// hasDestination reports whether the client named a destination.
func (q *Query) hasDestination() bool { return q.Host != "" || q.Addr.IsValid() }

// addresses returns the destination's addresses, and whether they are known: only
// a name has to be resolved.
func (q *Query) addresses(given []netip.Addr, resolved bool) (addrs []netip.Addr, known bool) {
	switch {
	case q.Addr.IsValid():
		return []netip.Addr{plain(q.Addr)}, true
	case q.Host == "":
		return nil, true
	}
	return given, resolved
}

// Verdict is the result of the rules.
type Verdict string

// The verdicts.
const (
	Allow     Verdict = "allow"
	Deny      Verdict = "deny"
	WouldDeny Verdict = "would_deny" // allowed by a rule with Report
	NoRule    Verdict = "none"       // no rule matched
)

// Decision is the result of the first matching rule.
type Decision struct {
	Verdict Verdict
	// Index is the rule's place, from 0; -1 if none matched. Rule is its name.
	Index int
	Rule  string
	// Upstream is the upstream of the connection, if it is allowed.
	Upstream string
	// Why is the rule's reason for Deny and WouldDeny.
	Why string
	// Addrs are the addresses that the rule, and those judged together with it, allow;
	// May restricts them further. They are the destination's own address or the given
	// ones of its name, in the given order, without those outside the rules' IPs. Nil
	// if not known yet.
	Addrs []netip.Addr

	allows
	also []allows // the rules that are judged together with the first
}

// allows is what one rule allows for a query.
type allows struct {
	name             string         // of the rule
	exact, localhost bool           // a host key matched by the whole name; that was localhost
	ips              []netip.Prefix // of the rule
}

// keeps reports whether the rule allows an address at all.
func (a *allows) keeps(addr netip.Addr) bool {
	return len(a.ips) == 0 || slices.ContainsFunc(a.ips, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Rules returns the names of the rules that allow Addrs together: "#1", "#1+#2".
func (d *Decision) Rules() string {
	names := d.Rule
	for i := range d.also {
		names += "+" + d.also[i].name
	}
	return names
}

// May reports whether a dynamic upstream may dial an address under the rule that
// decided. An ordinary address is permitted. An address in a special range is
// permitted if the rule opens it: a host key that matched by its whole name opens
// private, unique_local and cgnat; host: localhost opens loopback; a prefix among
// the rule's IPs that lies inside one special range opens its part of that range,
// but not the narrower special ranges in it. Otherwise special is the range that
// forbids the address. Of rules that are judged together, the first that allows the
// address counts, as if the name had this address alone.
func (d *Decision) May(addr netip.Addr) (special string, ok bool) {
	b := narrowest(addr)
	if b.is == "" {
		return "", true
	}
	addr = plain(addr)
	rule := &d.allows
	for i := 0; i < len(d.also) && !rule.keeps(addr); i++ {
		rule = &d.also[i]
	}
	if rule.opens(b, addr) {
		return "", true
	}
	return string(b.is), false
}

// opens reports whether the rule opens an address in the special range b.
func (a *allows) opens(b block, addr netip.Addr) bool {
	switch b.is {
	case RangePrivate, RangeUniqueLocal, RangeCGNAT:
		if a.exact {
			return true
		}
	case RangeLoopback:
		if a.localhost {
			return true
		}
	}
	return slices.ContainsFunc(a.ips, func(p netip.Prefix) bool { return p.Contains(addr) && b.holds(p) })
}

// Rules are a listener's rules, in order. It is immutable and safe for concurrent
// use. Decide costs about the same for each of 5,000 rules as for the first.
type Rules struct {
	rules []Rule
	index index
}

// NewRules makes the rules. It keeps the slices inside them, which must not be
// modified afterwards.
func NewRules(rules []Rule) *Rules {
	r := &Rules{rules: slices.Clone(rules)}
	for i := range r.rules {
		rule := &r.rules[i]
		if rule.Name == "" {
			rule.Name = "#" + strconv.Itoa(i+1)
		}
		rule.IPs, rule.Clients = plainPrefixes(rule.IPs), plainPrefixes(rule.Clients)
	}
	r.index.build(r.rules)
	return r
}

// Upstreams lists the names of the upstreams that the rules choose, each once.
func (r *Rules) Upstreams() []string {
	var names []string
	for i := range r.rules {
		if rule := &r.rules[i]; !rule.denies() && !slices.Contains(names, rule.Upstream) {
			names = append(names, rule.Upstream)
		}
	}
	return names
}

// plainPrefixes converts prefixes for the lookup of plain addresses: masked, and
// those of IPv4-mapped addresses as IPv4.
func plainPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	plain := slices.Clone(prefixes)
	for i, p := range plain {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		plain[i] = p.Masked()
	}
	return plain
}

// WantUID reports whether a rule has UIDs. If none has, they need not be found out.
func (r *Rules) WantUID() bool { return r != nil && r.index.uids.without != nil }

// Names lists the names of the rules, by index.
func (r *Rules) Names() []string {
	names := make([]string, len(r.rules))
	for i := range r.rules {
		names[i] = r.rules[i].Name
	}
	return names
}

// Decide finds the first matching rule. Addrs are the addresses of q.Host, if
// resolved is true; only a host name needs them. NeedAddrs says that there is no
// decision yet, because the first rule whose other keys match has IPs: resolve
// the name and call Decide again, with resolved true even if the name has no
// addresses.
//
// If the rule keeps only some of the addresses, the next matching rules with the same
// verdict and upstream are judged together with it: each address that one of them
// keeps is allowed. The first matching rule with another verdict or upstream ends
// that. An address alone would be decided in the same way.
//
// Rules with Principals are tested one by one after their other keys have
// matched.
func (r *Rules) Decide(q *Query, addrs []netip.Addr, resolved bool) (d Decision, needAddrs bool) {
	addrs, known := q.addresses(addrs, resolved)
	s := r.index.scratch.Get().(*scratch)
	defer r.index.scratch.Put(s)
	left := r.index.matching(s, q, addrs, known)
	i := r.next(left, 0, q)
	switch {
	case i < 0:
		return Decision{Verdict: NoRule, Index: -1}, false
	case len(r.rules[i].IPs) > 0 && !known:
		return Decision{Index: -1}, true
	}
	d = r.decision(i, q, addrs)
	if d.Verdict != Deny && len(d.Addrs) < len(addrs) {
		r.join(&d, left, q, addrs)
	}
	return d, false
}

// next returns the first rule from i on that matches; -1 if none does.
func (r *Rules) next(left denseSet, i int, q *Query) int {
	i = left.next(i, len(r.rules))
	for i >= 0 && len(r.rules[i].Principals) > 0 && !r.rules[i].proven(q.Principal) {
		i = left.next(i+1, len(r.rules))
	}
	return i
}

// join adds the rules that are judged together with the first, and the addresses that
// they keep.
func (r *Rules) join(d *Decision, left denseSet, q *Query, addrs []netip.Addr) {
	for i := r.next(left, d.Index+1, q); i >= 0; i = r.next(left, i+1, q) {
		next := r.decision(i, q, addrs)
		if next.Verdict != d.Verdict || next.Upstream != d.Upstream {
			break
		}
		d.also = append(d.also, next.allows)
		if len(next.Addrs) == len(addrs) {
			d.Addrs = addrs
			return
		}
		d.Addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
			return !slices.Contains(d.Addrs, a) && !slices.Contains(next.Addrs, a)
		})
		if len(d.Addrs) == len(addrs) {
			return
		}
	}
}

// decision is the result of a rule that matches.
func (r *Rules) decision(i int, q *Query, addrs []netip.Addr) Decision {
	rule := &r.rules[i]
	d := Decision{Index: i, Rule: rule.Name}
	if rule.denies() {
		d.Verdict, d.Why = Deny, rule.Deny
		if len(rule.UIDs) > 0 && !q.HasUID {
			d.Why += " (the uid of the client was not found)"
		}
		return d
	}
	d.Verdict, d.Upstream, d.Addrs, d.name, d.ips = Allow, rule.Upstream, addrs, rule.Name, rule.IPs
	if rule.Report != "" {
		d.Verdict, d.Why = WouldDeny, rule.Report
	}
	if len(rule.IPs) > 0 {
		d.Addrs = r.index.ips.within(i, addrs)
	}
	if host := q.host(); host != "" && r.index.hosts.exact[host].has(i) {
		d.exact, d.localhost = true, host == "localhost"
	}
	return d
}
