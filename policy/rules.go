package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule is one line of a listener's rules. Each key that is not empty must match,
// by one of its values; a rule without keys matches everything. A rule without
// an Upstream denies.
type Rule struct {
	// Name is what records and metrics call it. If empty, #N: its place, from 1.
	Name string
	// Hosts are names and "*." patterns as of ParseHostPattern. They never match
	// an address.
	Hosts []string
	Ports []PortRange
	// IPs are where the destination is: an address itself, or what the name
	// resolves to. A rule that allows keeps the addresses inside and matches if
	// any remain; one that denies matches if any is inside. A NAT64 or 6to4 address
	// is the IPv4 one that it reaches to a rule that denies, and never to one that
	// allows.
	IPs []netip.Prefix
	// Clients are where the client is. One on a unix socket is nowhere.
	Clients []netip.Prefix
	// Users are the names that clients authenticated with.
	Users []string
	// UIDs are the system's users at the other end of a unix socket.
	UIDs []uint32
	// Principals judge the proven principal of a client. They are asked in order,
	// rule after rule, by many at once.
	Principals []func(string) bool
	// SNIs are patterns as Hosts, of the server name in the client's ClientHello.
	SNIs []string

	// Upstream is where an allowed connection goes.
	Upstream string
	// Deny says why not, to people.
	Deny string
	// Report lets the connection pass and says why it should not.
	Report string
}

// denies says whether the rule refuses what it matches. One that says both, or
// neither, does.
func (r *Rule) denies() bool { return r.Deny != "" || r.Upstream == "" }

func (r *Rule) proven(principal string) bool {
	return principal != "" && slices.ContainsFunc(r.Principals, func(match func(string) bool) bool { return match(principal) })
}

// reaching are the rule's IPs, and if it denies those that reach them in disguise.
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

// ParsePortRange reads a port, "443", or a range of them, "8000-8999".
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

// Contains says whether the port is in the range.
func (p PortRange) Contains(port uint16) bool { return p.First <= port && port <= p.Last }

// String is the range as it is written.
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// Query is what the rules are asked about. What is empty is not known, and matches
// no key.
type Query struct {
	// Host is the name that the client wants, canonical as of ParseHost. It is
	// empty where Addr is valid, and where the client names no destination.
	Host string
	// Addr is the address that the client wants instead of a name.
	Addr netip.Addr
	Port uint16
	// Client is where the client is: invalid on a unix socket.
	Client netip.Addr
	User   string
	// UID is the client's, if HasUID.
	UID    uint32
	HasUID bool
	// Principal is the client's, proven by its certificate.
	Principal string
	// SNI is canonical as Host.
	SNI string
}

// host is the name that host keys are about: none where the destination is an address.
func (q *Query) host() string {
	if q.Addr.IsValid() {
		return ""
	}
	return q.Host
}

// hasDestination says whether the client named one at all.
func (q *Query) hasDestination() bool { return q.Host != "" || q.Addr.IsValid() }

// addresses are those of the destination, and whether that is all there is to
// know: only those of a name have to be looked up.
func (q *Query) addresses(given []netip.Addr, resolved bool) (addrs []netip.Addr, known bool) {
	switch {
	case q.Addr.IsValid():
		return []netip.Addr{plain(q.Addr)}, true
	case q.Host == "":
		return nil, true
	}
	return given, resolved
}

// Verdict is what the rules say.
type Verdict string

// The verdicts.
const (
	Allow     Verdict = "allow"
	Deny      Verdict = "deny"
	WouldDeny Verdict = "would_deny" // allowed, by a rule that reports
	NoRule    Verdict = "none"       // no rule matched: there is no route
)

// Decision is what the first matching rule says.
type Decision struct {
	Verdict Verdict
	// Index is the rule's place, from 0; -1 if none matched. Rule is its name.
	Index int
	Rule  string
	// Upstream is where the connection goes, if it is allowed.
	Upstream string
	// Why is what the rule says about it: the reason of Deny and WouldDeny.
	Why string
	// Addrs are the addresses that may be dialled, as far as the rule goes; May
	// says the rest. They are the destination's own or, of a name, those that were
	// given, without those outside the rule's IPs. Nil if not known yet.
	Addrs []netip.Addr

	exact, localhost bool           // the name that matched was a whole one; it was localhost
	ips              []netip.Prefix // of the rule
}

// May says whether a dynamic upstream may dial an address under the rule that
// decided. Ordinary addresses it may. Those in a special range it may where the
// rule opens them: a host key that matched by its whole name opens private,
// unique_local and cgnat; host: localhost opens loopback; and a prefix among the
// rule's IPs that lies inside one special range opens what it holds of that
// range, but not the narrower special ranges in it. Else special is the range
// that forbids it.
func (d *Decision) May(addr netip.Addr) (special string, ok bool) {
	b := narrowest(addr)
	switch b.is {
	case "":
		return "", true
	case RangePrivate, RangeUniqueLocal, RangeCGNAT:
		ok = d.exact
	case RangeLoopback:
		ok = d.localhost
	}
	addr = plain(addr)
	if ok || slices.ContainsFunc(d.ips, func(p netip.Prefix) bool { return p.Contains(addr) && b.holds(p) }) {
		return "", true
	}
	return string(b.is), false
}

// Rules is a listener's rules, in order. It is immutable and safe for concurrent
// use. Decide costs about the same for each of 5,000 rules as for the first.
type Rules struct {
	rules []Rule
	index index
}

// NewRules makes the rules. It keeps the slices inside of them, which nobody
// changes from now on.
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

// Upstreams are the names of the upstreams that the rules choose, each once.
func (r *Rules) Upstreams() []string {
	var names []string
	for i := range r.rules {
		if rule := &r.rules[i]; !rule.denies() && !slices.Contains(names, rule.Upstream) {
			names = append(names, rule.Upstream)
		}
	}
	return names
}

// plainPrefixes are the prefixes as plain addresses are looked up in: masked, and
// those of IPv4-mapped addresses as the IPv4 ones.
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

// Names are the names of the rules, by index.
func (r *Rules) Names() []string {
	names := make([]string, len(r.rules))
	for i := range r.rules {
		names[i] = r.rules[i].Name
	}
	return names
}

// Decide finds the first rule that matches. Addrs are the addresses of q.Host, if
// resolved; of nothing else they need to be known. NeedAddrs says that it depends
// on them: the first rule whose other keys match has IPs. Then there is no
// decision yet: resolve, and ask again, with resolved true even where the name
// has no addresses.
//
// Of the rules that match otherwise, those with Principals are asked one by one.
func (r *Rules) Decide(q *Query, addrs []netip.Addr, resolved bool) (d Decision, needAddrs bool) {
	addrs, known := q.addresses(addrs, resolved)
	s := r.index.scratch.Get().(*scratch)
	defer r.index.scratch.Put(s)
	left := r.index.matching(s, q, addrs, known)
	for i := left.next(0, len(r.rules)); i >= 0; i = left.next(i+1, len(r.rules)) {
		rule := &r.rules[i]
		switch {
		case len(rule.Principals) > 0 && !rule.proven(q.Principal):
		case len(rule.IPs) > 0 && !known:
			return Decision{Index: -1}, true
		default:
			return r.decision(i, q, addrs), false
		}
	}
	return Decision{Verdict: NoRule, Index: -1}, false
}

// decision is what a rule that matches says.
func (r *Rules) decision(i int, q *Query, addrs []netip.Addr) Decision {
	rule := &r.rules[i]
	d := Decision{Index: i, Rule: rule.Name}
	if rule.denies() {
		d.Verdict, d.Why = Deny, rule.Deny
		return d
	}
	d.Verdict, d.Upstream, d.Addrs, d.ips = Allow, rule.Upstream, addrs, rule.IPs
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
