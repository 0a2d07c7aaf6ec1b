package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// together is the definition of what Decide allows: the addresses that the first match
// keeps, and, while the next match has the same verdict and upstream, those that the
// next match keeps. It shares no code with Decide.
func together(rules []Rule, q *Query, addrs []netip.Addr, resolved bool) (index int, kept []netip.Addr, need bool) {
	index, kept, need = firstMatch(rules, q, addrs, resolved)
	if index < 0 || rules[index].denies() || len(rules[index].IPs) == 0 {
		return index, kept, need
	}
	more := map[netip.Addr]bool{}
	for from := index; ; {
		for _, a := range kept {
			more[a] = true
		}
		at, others, _ := firstMatch(rules[from+1:], q, addrs, resolved)
		if at < 0 {
			break
		}
		from, kept = from+1+at, others
		if next := rules[from]; next.denies() || next.Upstream != rules[index].Upstream || (next.Report == "") != (rules[index].Report == "") {
			break
		}
	}
	if q.Addr.IsValid() {
		return index, []netip.Addr{q.Addr.Unmap()}, need
	}
	return index, slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !more[a] }), need
}

// firstMatch is the definition of the first match: a loop over the rules as they were
// written.
func firstMatch(rules []Rule, q *Query, addrs []netip.Addr, resolved bool) (index int, kept []netip.Addr, need bool) {
	named := q.Host != "" && !q.Addr.IsValid()
	switch {
	case q.Addr.IsValid():
		addrs = []netip.Addr{q.Addr.Unmap()}
	case !named:
		addrs = nil
	}
	for i, r := range rules {
		if !matches(r.Hosts, named, func(p string) bool { return fits(p, q.Host) }) ||
			!matches(r.Ports, named || q.Addr.IsValid(), func(p PortRange) bool { return q.Port >= p.First && q.Port <= p.Last }) ||
			!matches(r.Clients, true, func(p netip.Prefix) bool { return lies(q.Client, p) }) ||
			!matches(r.Users, q.User != "", func(u string) bool { return u == q.User }) ||
			!matches(r.UIDs, q.HasUID || q.LostUID, func(u uint32) bool { return q.HasUID && u == q.UID || !q.HasUID && r.denies() }) ||
			!matches(r.Principals, q.Principal != "", func(m func(string) bool) bool { return m(q.Principal) }) ||
			!matches(r.SNIs, q.SNI != "", func(p string) bool { return fits(p, q.SNI) }) {
			continue
		}
		if len(r.IPs) == 0 {
			return i, addrs, false
		}
		if named && !resolved {
			return -1, nil, true
		}
		var kept []netip.Addr
		for _, a := range addrs {
			if (named || q.Addr.IsValid()) && slices.ContainsFunc(r.IPs, func(p netip.Prefix) bool { return lies(a, p) || r.denies() && lies(held(a), p) }) {
				kept = append(kept, a)
			}
		}
		if len(kept) > 0 {
			return i, kept, false
		}
	}
	return -1, nil, false
}

func matches[T any](values []T, known bool, match func(T) bool) bool {
	return len(values) == 0 || known && slices.ContainsFunc(values, match)
}

func fits(pattern, name string) bool {
	if rest, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(name, rest)
	}
	return pattern == name
}

// held returns the IPv4 address that a NAT64 or 6to4 one reaches.
func held(a netip.Addr) netip.Addr {
	switch b := a.As16(); {
	case strings.HasPrefix(a.String(), "64:ff9b::"):
		return netip.AddrFrom4([4]byte(b[12:]))
	case b[0] == 0x20 && b[1] == 2:
		return netip.AddrFrom4([4]byte(b[2:]))
	}
	return netip.Addr{}
}

// lies compares bits, so that it shares nothing with netip's Contains.
func lies(a netip.Addr, p netip.Prefix) bool {
	if !a.IsValid() {
		return false
	}
	length := p.Bits()
	if p.Addr().Is4() {
		length += 96
	}
	x, y := a.As16(), p.Addr().As16()
	for i := range length {
		if (x[i/8]^y[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	is4 := p.Addr().Is4() || p.Addr().Is4In6() && p.Bits() >= 96
	return a.Unmap().Is4() == is4 // 10.0.0.1 is not in ::/0
}

// world draws rules and queries from few values, so that many match.
type world struct{ *rand.Rand }

func (w world) one(values ...string) string { return values[w.IntN(len(values))] }

// some returns usually nothing, else one to three values.
func some[T any](w world, draw func() T) []T {
	if w.IntN(3) > 0 {
		return nil
	}
	var all []T
	for range 1 + w.IntN(3) {
		all = append(all, draw())
	}
	return all
}

func (w world) name() string {
	return w.one("a.x", "b.x", "a.b.x", "c.a.b.x", "x", "y", "localhost", "a.localhost")
}

func (w world) pattern() string { return w.one("", "", "*.") + w.name() }

func (w world) port() uint16 {
	return []uint16{0, 1, 2, 80, 443, 8000, 8191, 8192, 8999, 32767, 32768, 65534, 65535}[w.IntN(13)]
}

func (w world) ports() PortRange {
	a, b := w.port(), w.port()
	if w.IntN(2) == 0 {
		b = a
	}
	return PortRange{min(a, b), max(a, b)}
}

func (w world) addr() netip.Addr {
	return netip.MustParseAddr(w.one("10.0.0.1", "10.0.0.2", "10.1.0.1", "11.0.0.1", "255.255.255.255", "0.0.0.0",
		"::ffff:10.0.0.1", "2001:db8::1", "2001:db8::2", "2001:db8:1::1", "::1", "ffff:ffff::", "64:ff9b::a00:1", "2002:a00:1::9"))
}

func (w world) prefix() netip.Prefix {
	a := w.addr()
	return netip.PrefixFrom(a, w.IntN(a.BitLen()+1))
}

func (w world) rule() Rule {
	return Rule{
		Hosts:      some(w, w.pattern),
		Ports:      some(w, w.ports),
		IPs:        some(w, w.prefix),
		Clients:    some(w, w.prefix),
		Users:      some(w, func() string { return w.one("u", "v", "w") }),
		UIDs:       some(w, func() uint32 { return w.Uint32N(3) }),
		Principals: some(w, func() func(string) bool { p := w.one("p", "q"); return func(s string) bool { return s == p } }),
		SNIs:       some(w, w.pattern),
		Upstream:   w.one("", "up", "up"),
		Report:     w.one("", "", "report"),
	}
}

func (w world) query() (q Query, addrs []netip.Addr, resolved bool) {
	q = Query{Port: w.port(), User: w.one("", "u", "v"), Principal: w.one("", "p", "q"), SNI: w.one("", w.name()), UID: w.Uint32N(4), HasUID: w.IntN(2) == 0, LostUID: w.IntN(2) == 0}
	switch w.IntN(5) {
	case 0:
	case 1:
		q.Addr = w.addr()
	default:
		q.Host = w.name()
	}
	if w.IntN(3) > 0 {
		q.Client = w.addr()
	}
	for range w.IntN(4) {
		addrs = append(addrs, w.addr())
	}
	return q, addrs, w.IntN(3) > 0
}

// FuzzDecide asserts that the index decides as the loop does, and that Explain
// says the same.
func FuzzDecide(f *testing.F) {
	for i := range uint64(40) {
		f.Add(i, uint16(i*i))
	}
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		list := make([]Rule, n%1600)
		for i := range list {
			list[i] = w.rule()
		}
		rules := NewRules(list)
		for range 100 {
			q, addrs, resolved := w.query()
			checkDecision(t, list, rules, q, addrs, resolved)
		}
	})
}

func checkDecision(t *testing.T, list []Rule, rules *Rules, q Query, addrs []netip.Addr, resolved bool) {
	t.Helper()
	index, kept, need := together(list, &q, addrs, resolved)
	d, gotNeed := rules.Decide(&q, addrs, resolved)
	if d.Index != index || gotNeed != need {
		t.Fatalf("%+v at %v (%v): rule %d, need %v; want %d, %v", q, addrs, resolved, d.Index, gotNeed, index, need)
	}
	if d.Verdict != Deny && !slices.Equal(d.Addrs, kept) {
		t.Fatalf("%+v at %v: keeps %v, want %v", q, addrs, d.Addrs, kept)
	}
	checkAlone(t, rules, q, addrs, d)
	var last Step
	for _, last = range rules.Explain(&q, addrs, resolved) {
	}
	if last.Undecided != need || last.Matched != (index >= 0) || last.Matched && last.Index != index {
		t.Fatalf("%+v at %v: explained as %+v; want rule %d, need %v", q, addrs, last, index, need)
	}
}

// checkAlone asserts that rules which are judged together allow no address that the
// rules would not allow alone, and open no special range that they would not open.
func checkAlone(t *testing.T, rules *Rules, q Query, addrs []netip.Addr, d Decision) {
	t.Helper()
	if d.Verdict != Allow && d.Verdict != WouldDeny || d.also == nil {
		return
	}
	for _, a := range d.Addrs {
		alone, _ := rules.Decide(&q, []netip.Addr{a}, true)
		_, may := d.May(a)
		_, mayAlone := alone.May(a)
		if alone.Verdict != d.Verdict || alone.Upstream != d.Upstream || may != mayAlone {
			t.Fatalf("%+v at %v: %s is %s by %s, may %v; alone %s by %s, may %v", q, addrs, a, d.Verdict, d.Rules(), may, alone.Verdict, alone.Rule, mayAlone)
		}
	}
}

// many makes rules of which the last one matches, for each key.
func many(n int, key func(i int, r *Rule)) *Rules {
	list := make([]Rule, n)
	for i := range list {
		list[i].Upstream = "internet"
		key(i, &list[i])
	}
	return NewRules(list)
}

func v4(i int) netip.Addr { return netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}) }

// mixes are the worst cases of each key: every rule has another value, or all have
// the same.
func mixes(n int) map[string]struct {
	rules *Rules
	q     Query
} {
	type mix = struct {
		rules *Rules
		q     Query
	}
	last := fmt.Sprintf("h%d.example.com", n-1)
	q := Query{Host: last, Port: uint16(10000 + n - 1), User: fmt.Sprint("u", n-1), Client: v4(n - 1), SNI: last, UID: uint32(n - 1), HasUID: true, Principal: last}
	keys := map[string]func(i int, r *Rule){
		"hosts":    func(i int, r *Rule) { r.Hosts = []string{fmt.Sprintf("h%d.example.com", i)} },
		"suffixes": func(i int, r *Rule) { r.Hosts = []string{"*." + strings.Repeat("x.", (n-1-i)%100) + "com"} },
		"ips": func(i int, r *Rule) {
			r.IPs = []netip.Prefix{netip.PrefixFrom(v4(i), 32)}
		},
		"nested ips": func(i int, r *Rule) {
			r.IPs = []netip.Prefix{netip.PrefixFrom(v4(i), 8+i%25)}
		},
		"ports":  func(i int, r *Rule) { r.Ports = []PortRange{{uint16(10000 + i), uint16(10000 + i)}} },
		"ranges": func(i int, r *Rule) { r.Ports = []PortRange{{uint16(10000 + i), uint16(10001 + 2*i)}} },
		"users":  func(i int, r *Rule) { r.Users = []string{fmt.Sprint("u", i)} },
		"principals": func(i int, r *Rule) {
			r.Principals = []func(string) bool{func(p string) bool { return i == n-1 && p == last }}
		},
	}
	all := map[string]mix{}
	for name, key := range keys {
		all[name] = mix{many(n, key), q}
	}
	all["every key"] = mix{many(n, func(i int, r *Rule) {
		for _, name := range []string{"hosts", "ips", "ports", "users"} {
			keys[name](i, r)
		}
		r.SNIs, r.UIDs, r.Clients = r.Hosts, []uint32{uint32(i)}, r.IPs
	}), q}
	all["every key the same but one"] = mix{many(n, func(i int, r *Rule) {
		for _, name := range []string{"hosts", "ips", "ports"} {
			keys[name](n-1, r)
		}
		r.SNIs, r.UIDs, r.Clients = r.Hosts, []uint32{uint32(n - 1)}, r.IPs
		keys["users"](i, r)
	}), q}
	deep := q
	deep.Host = strings.Repeat("x.", 120) + "com"
	all["suffixes"] = mix{all["suffixes"].rules, deep}
	all["no match"] = mix{all["every key"].rules, Query{Host: "other.example.com", Port: 10001}}
	return all
}

func BenchmarkDecide(b *testing.B) {
	const n = 5000
	for name, mix := range mixes(n) {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			at := []netip.Addr{v4(n - 1)}
			b.ReportAllocs()
			for b.Loop() {
				mix.rules.Decide(&mix.q, at, true)
			}
		})
	}
}

func BenchmarkDecideFewRules(b *testing.B) {
	rules, q := example(), with(to("x.any.example:1"), func(q *Query) { q.Client = netip.MustParseAddr("10.8.1.1") })
	at := addrs("1.1.1.1")
	b.ReportAllocs()
	for b.Loop() {
		rules.Decide(&q, at, true)
	}
}

func BenchmarkNewRules(b *testing.B) {
	list := mixes(5000)["every key"].rules.rules
	b.ReportAllocs()
	for b.Loop() {
		NewRules(list)
	}
}

// TestDecideDoesNotAllocate: a decision allocates nothing if the addresses are given
// or not needed. The race detector drops objects of a pool at random; an average of
// less than one counts as none.
func TestDecideDoesNotAllocate(t *testing.T) {
	const n = 100
	for name, mix := range mixes(n) {
		at := []netip.Addr{v4(n - 1)}
		if got := testing.AllocsPerRun(1000, func() { mix.rules.Decide(&mix.q, at, true) }); got != 0 {
			t.Errorf("%s: allocates %v times", name, got)
		}
	}
}

// TestDecideLast asserts that in the benchmarks the last rule matches, except where
// several do.
func TestDecideLast(t *testing.T) {
	const n = 5000
	for name, mix := range mixes(n) {
		d, need := mix.rules.Decide(&mix.q, []netip.Addr{v4(n - 1)}, true)
		switch {
		case need:
			t.Errorf("%s: needs addresses", name)
		case name == "no match" && d.Verdict != NoRule, name != "no match" && d.Verdict != Allow:
			t.Errorf("%s: %s", name, d.Verdict)
		}
	}
}
