package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Step is the result of one rule for a query.
type Step struct {
	// Index is the rule's place, from 0, and Rule its name.
	Index int
	Rule  string
	// Matched: the rule decides. It is the last step.
	Matched bool
	// Undecided: the result depends on the addresses of the name, which were not
	// given. It is the last step, too.
	Undecided bool
	// Key is the first key that did not match, or that is undecided.
	Key string
	// Text describes the result: "host: db.internal is not *.example.com".
	Text string
}

// Explain checks the rules in order, as Decide does with the same arguments, and
// says of each why it does not match, up to the one that decides. If the last
// step neither matched nor is undecided, no rule matched.
func (r *Rules) Explain(q *Query, addrs []netip.Addr, resolved bool) []Step {
	addrs, known := q.addresses(addrs, resolved)
	var steps []Step
	for i := range r.rules {
		step := r.explain(i, q, addrs, known)
		steps = append(steps, step)
		if step.Matched || step.Undecided {
			break
		}
	}
	return steps
}

func (r *Rules) explain(i int, q *Query, addrs []netip.Addr, known bool) Step {
	rule := &r.rules[i]
	step := Step{Index: i, Rule: rule.Name, Key: rule.differs(q)}
	var inside []netip.Addr
	if step.Key == "" && len(rule.IPs) > 0 {
		if inside = r.index.ips.within(i, addrs); len(inside) == 0 || !known {
			step.Key, step.Undecided = keyIP, !known
		}
	}
	if step.Key != "" {
		step.Text = step.Key + ": " + rule.difference(step.Key, q, addrs, known)
		return step
	}
	step.Matched, step.Text = true, rule.says(inside)
	return step
}

// The keys, by their names in the configuration file.
const (
	keyHost      = "host"
	keyPort      = "port"
	keyIP        = "ip"
	keyClient    = "client"
	keyUser      = "user"
	keyUID       = "uid"
	keyPrincipal = "principal"
	keySNI       = "sni"
)

// differs returns the first of the rule's keys, except ip, that the query does
// not match; "" if it matches all.
func (r *Rule) differs(q *Query) string {
	switch {
	case len(r.Hosts) > 0 && !named(r.Hosts, q.host()):
		return keyHost
	case len(r.Ports) > 0 && !(q.hasDestination() && slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.Contains(q.Port) })):
		return keyPort
	case len(r.Clients) > 0 && !contained(r.Clients, q.Client):
		return keyClient
	case len(r.Users) > 0 && (q.User == "" || !slices.Contains(r.Users, q.User)):
		return keyUser
	case len(r.UIDs) > 0 && !r.matchesUID(q):
		return keyUID
	case len(r.Principals) > 0 && !r.proven(q.Principal):
		return keyPrincipal
	case len(r.SNIs) > 0 && !named(r.SNIs, q.SNI):
		return keySNI
	}
	return ""
}

func (r *Rule) matchesUID(q *Query) bool {
	if !q.HasUID {
		return q.LostUID && r.denies()
	}
	return slices.Contains(r.UIDs, q.UID)
}

// named reports whether a name matches one of the patterns.
func named(patterns []string, name string) bool {
	return name != "" && slices.ContainsFunc(patterns, func(p string) bool {
		if strings.HasPrefix(p, "*.") {
			return len(name) >= len(p) && strings.HasSuffix(name, p[1:])
		}
		return p == name
	})
}

func contained(prefixes []netip.Prefix, addr netip.Addr) bool {
	addr = plain(addr)
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// difference says why a key does not match.
func (r *Rule) difference(key string, q *Query, addrs []netip.Addr, known bool) string {
	switch key {
	case keyHost, keyPort:
		return r.elsewhere(key, q)
	case keyIP:
		return r.outside(q, addrs, known)
	case keyClient:
		if !q.Client.IsValid() {
			return "the client has no address"
		}
		return isOutside(q.Client.String(), r.Clients)
	case keyUser:
		if q.User == "" {
			return "the client did not authenticate"
		}
		return isNot(q.User, r.Users)
	case keyUID:
		if !q.HasUID {
			return "the client's is not known"
		}
		return isNot(number(q.UID), each(r.UIDs, number))
	case keyPrincipal:
		if q.Principal == "" {
			return "the client proved none"
		}
		return q.Principal + " is none of the rule's"
	}
	if q.SNI == "" {
		return "the client named no server"
	}
	return isNot(q.SNI, r.SNIs)
}

// elsewhere says why the rule is for another destination.
func (r *Rule) elsewhere(key string, q *Query) string {
	switch {
	case !q.hasDestination():
		return "the client names no destination"
	case key == keyPort:
		return isNot(strconv.Itoa(int(q.Port)), texts(r.Ports))
	case q.Addr.IsValid():
		return q.Addr.String() + " is an address, and names only match names"
	}
	return isNot(q.Host, r.Hosts)
}

// outside says why the rule's IPs do not contain the destination.
func (r *Rule) outside(q *Query, addrs []netip.Addr, known bool) string {
	switch {
	case !q.hasDestination():
		return "the client names no destination"
	case !known:
		return fmt.Sprintf("it depends on the addresses of %s, which are not known", q.Host)
	case len(addrs) == 0:
		return q.Host + " has no addresses"
	}
	if len(addrs) > 1 {
		return fmt.Sprintf("none of %s is in %s", enumerate(texts(addrs)), enumerate(texts(r.IPs)))
	}
	return isOutside(addrs[0].String(), r.IPs)
}

// says describes what the rule does with a match; inside are the addresses in its
// IPs.
func (r *Rule) says(inside []netip.Addr) string {
	var text string
	switch {
	case r.denies() && r.Deny == "":
		return "denied"
	case r.denies():
		return "denied: " + r.Deny
	case r.Report != "":
		text = fmt.Sprintf("allowed to %s, and reported: %s", r.Upstream, r.Report)
	default:
		text = "allowed to " + r.Upstream
	}
	if len(r.IPs) > 0 {
		text += ", at " + enumerate(texts(inside))
	}
	return text
}

// isNot is "a is not b", or "a is none of b, c".
func isNot(is string, wanted []string) string {
	if len(wanted) == 1 {
		return is + " is not " + wanted[0]
	}
	return is + " is none of " + enumerate(wanted)
}

// isOutside is "a is not in b, c".
func isOutside(is string, prefixes []netip.Prefix) string {
	return is + " is not in " + enumerate(texts(prefixes))
}

// listed is how many items of a list are written out.
const listed = 8

func enumerate(items []string) string {
	if len(items) <= listed {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:listed], ", "), len(items)-listed)
}

func texts[T fmt.Stringer](items []T) []string {
	return each(items, func(item T) string { return item.String() })
}

func each[T any](items []T, text func(T) string) []string {
	all := make([]string, len(items))
	for i, item := range items {
		all[i] = text(item)
	}
	return all
}

func number(uid uint32) string { return strconv.FormatUint(uint64(uid), 10) }
