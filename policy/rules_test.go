package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func prefixes(s string) []netip.Prefix {
	var all []netip.Prefix
	for f := range strings.FieldsSeq(s) {
		all = append(all, netip.MustParsePrefix(f))
	}
	return all
}

func addrs(s string) []netip.Addr {
	var all []netip.Addr
	for f := range strings.FieldsSeq(s) {
		all = append(all, netip.MustParseAddr(f))
	}
	return all
}

// to makes a query from "HOST:PORT", like a client's.
func to(dest string) Query {
	at := strings.LastIndexByte(dest, ':')
	host, addr, err := ParseHost(dest[:at])
	port, err2 := ParsePortRange(dest[at+1:])
	if err != nil || err2 != nil {
		panic(dest)
	}
	return Query{Host: host, Addr: addr, Port: port.First}
}

func with(q Query, edit func(*Query)) Query {
	edit(&q)
	return q
}

// example is the rules of the documentation, and one for each other key.
func example() *Rules {
	spiffe := func(p string) bool { return strings.HasPrefix(p, "spiffe://corp/batch/") }
	return NewRules([]Rule{
		{Hosts: []string{"*.partner.example"}, Ports: []PortRange{{5432, 5432}}, Upstream: "partners"},
		{Name: "api", Hosts: []string{"api.example.com"}, Ports: []PortRange{{80, 80}, {443, 443}, {8000, 8999}}, Upstream: "internet"},
		{Clients: prefixes("10.9.0.0/16"), Deny: "quarantined"},
		{IPs: prefixes("10.66.0.0/16"), Deny: "retired"},
		{IPs: prefixes("10.0.0.0/8"), Users: []string{"batch"}, Upstream: "internet", Report: "not on the list yet"},
		{UIDs: []uint32{0, 33}, Upstream: "root"},
		{Principals: []func(string) bool{func(string) bool { return false }, spiffe}, Upstream: "mesh"},
		{SNIs: []string{"*.tls.example", "tls.example"}, Upstream: "web"},
		{Hosts: []string{"localhost"}, Upstream: "local"},
		{Ports: []PortRange{{25, 25}}, Upstream: "smtp", Deny: "says both"},
		{Ports: []PortRange{{26, 26}}},
		{Hosts: []string{"*.any.example"}, Upstream: "internet"},
	})
}

func TestDecide(t *testing.T) {
	rules := example()
	batch := func(q *Query) { q.User = "batch" }
	for _, tt := range []struct {
		name  string
		q     Query
		addrs string // - not resolved
		want  string // RULE VERDICT UPSTREAM, or ?
	}{
		{"below a suffix", to("db.partner.example:5432"), "-", "#1 allow partners"},
		{"far below a suffix", to("a.b.c.partner.example:5432"), "-", "#1 allow partners"},
		{"a suffix is not its own name", to("partner.example:5432"), "", " none "},
		{"nor the end of another", to("xpartner.example:5432"), "", " none "},
		{"the other port", to("db.partner.example:5433"), "", " none "},
		{"a name of a rule", to("api.example.com:443"), "-", "api allow internet"},
		{"the first of a range", to("api.example.com:8000"), "-", "api allow internet"},
		{"the last of a range", to("api.example.com:8999"), "-", "api allow internet"},
		{"behind a range", to("api.example.com:9000"), "", " none "},
		{"a client", with(to("x.any.example:1"), func(q *Query) { q.Client = netip.MustParseAddr("10.9.1.1") }), "-", "#3 deny "},
		{"a client of IPv6 that is one of IPv4", with(to("x.any.example:1"), func(q *Query) { q.Client = netip.MustParseAddr("::ffff:10.9.1.1") }), "-", "#3 deny "},
		{"another client", with(to("x.any.example:1"), func(q *Query) { q.Client = netip.MustParseAddr("10.8.1.1") }), "1.1.1.1", "#12 allow internet"},
		{"it depends on the addresses", to("x.any.example:1"), "-", "?"},
		{"denied if any is inside", to("x.any.example:1"), "1.1.1.1 10.66.0.1", "#4 deny "},
		{"denied if any is inside in disguise", to("x.any.example:1"), "1.1.1.1 ::ffff:10.66.0.1", "#4 deny "},
		{"allowed if any is inside", with(to("x.example:1"), batch), "1.1.1.1 10.65.0.1", "#5 would_deny internet"},
		{"none is inside", with(to("x.example:1"), batch), "1.1.1.1", " none "},
		{"no addresses", with(to("x.example:1"), batch), "", " none "},
		{"an address", with(to("10.1.1.1:1"), batch), "-", "#5 would_deny internet"},
		{"a denied address", to("10.66.1.1:1"), "-", "#4 deny "},
		{"an address in disguise", with(to("[::ffff:10.1.1.1]:1"), batch), "-", "#5 would_deny internet"},
		{"NAT64 is itself", with(to("[64:ff9b::10.1.1.1]:1"), batch), "-", " none "},
		{"another user", with(to("10.1.1.1:1"), func(q *Query) { q.User = "Batch" }), "-", " none "},
		{"a uid", with(to("x.example:1"), func(q *Query) { q.UID, q.HasUID = 33, true }), "", "#6 allow root"},
		{"the uid of root", with(to("x.example:1"), func(q *Query) { q.HasUID = true }), "", "#6 allow root"},
		{"no uid", to("x.example:1"), "", " none "},
		{"a uid that was not found", with(to("x.example:1"), func(q *Query) { q.LostUID = true }), "", " none "},
		{"a principal", Query{Principal: "spiffe://corp/batch/1"}, "-", "#7 allow mesh"},
		{"another principal", Query{Principal: "spiffe://corp/web"}, "-", " none "},
		{"a server name", Query{SNI: "tls.example"}, "-", "#8 allow web"},
		{"a server name below", Query{SNI: "a.tls.example"}, "-", "#8 allow web"},
		{"nothing is known", Query{}, "-", " none "},
		{"no destination has no port", Query{Port: 25}, "-", " none "},
		{"a rule that says both denies", to("1.1.1.1:25"), "-", "#10 deny "},
		{"a rule that says nothing denies", to("1.1.1.1:26"), "-", "#11 deny "},
		{"an address is not its name", Query{Host: "localhost", Addr: netip.MustParseAddr("127.0.0.1"), Port: 1}, "-", " none "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resolved := tt.addrs != "-"
			d, need := rules.Decide(&tt.q, addrs(strings.TrimPrefix(tt.addrs, "-")), resolved)
			got := d.Rule + " " + string(d.Verdict) + " " + d.Upstream
			if need {
				got = "?"
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if d.Rule == "" != (d.Index == -1) || d.Index >= 0 && rules.Names()[d.Index] != d.Rule {
				t.Errorf("rule %q at %d", d.Rule, d.Index)
			}
		})
	}
}

func TestDecisionWhy(t *testing.T) {
	rules := example()
	q := with(to("10.1.1.1:1"), func(q *Query) { q.User = "batch" })
	if d, _ := rules.Decide(&q, nil, false); d.Why != "not on the list yet" {
		t.Errorf("why: %q", d.Why)
	}
	q = to("10.66.1.1:1")
	if d, _ := rules.Decide(&q, nil, false); d.Why != "retired" || d.Addrs != nil {
		t.Errorf("why: %q, addresses %v", d.Why, d.Addrs)
	}
}

func TestDecisionAddrs(t *testing.T) {
	rules := NewRules([]Rule{
		{Hosts: []string{"all.example"}, Upstream: "u"},
		{IPs: prefixes("10.0.0.0/8 2001:db8::/32"), Upstream: "u"},
	})
	for _, tt := range []struct{ dest, given, want string }{
		{"all.example:1", "1.1.1.1 10.0.0.1", "1.1.1.1 10.0.0.1"},
		{"some.example:1", "1.1.1.1 10.0.0.1 2001:db8::1 2.2.2.2 10.0.0.2", "10.0.0.1 2001:db8::1 10.0.0.2"},
		{"some.example:1", "10.0.0.1 10.0.0.2", "10.0.0.1 10.0.0.2"},
		{"10.0.0.1:1", "", "10.0.0.1"},
	} {
		q := to(tt.dest)
		given := addrs(tt.given)
		d, _ := rules.Decide(&q, given, true)
		if !slices.Equal(d.Addrs, addrs(tt.want)) {
			t.Errorf("%s at %s keeps %v, want %s", tt.dest, tt.given, d.Addrs, tt.want)
		}
		if !slices.Equal(given, addrs(tt.given)) {
			t.Errorf("%s: the given addresses became %v", tt.dest, given)
		}
	}
	q := to("all.example:1")
	if d, need := rules.Decide(&q, nil, false); need || d.Addrs != nil {
		t.Errorf("a rule without ip needs addresses: %v, %v", need, d.Addrs)
	}
}

// Neighbouring rules with one verdict and upstream are judged together, so that a name
// with addresses of both families keeps both.
func TestDecideTogether(t *testing.T) {
	v4, v6 := prefixes("0.0.0.0/0"), prefixes("::/0")
	const both = "192.0.2.1 2001:db8::1"
	for _, tt := range []struct {
		name     string
		rules    []Rule
		want, by string
	}{
		{"two families", []Rule{{IPs: v4, Upstream: "u"}, {IPs: v6, Upstream: "u"}}, both, "#1+#2"},
		{"the other order", []Rule{{IPs: v6, Upstream: "u"}, {IPs: v4, Upstream: "u"}}, both, "#1+#2"},
		{"rules between that do not match", []Rule{{IPs: v4, Upstream: "u"}, {Hosts: []string{"b.test"}, Deny: "no"}, {IPs: prefixes("10.0.0.0/8"), Deny: "no"}, {IPs: v6, Upstream: "u"}}, both, "#1+#4"},
		{"a rule without ip", []Rule{{IPs: v4, Upstream: "u"}, {Upstream: "u"}, {IPs: v6, Deny: "no"}}, both, "#1+#2"},
		{"a name opens what its own rule keeps", []Rule{{IPs: v4, Upstream: "u"}, {Hosts: []string{"a.test"}, Upstream: "u"}}, both, "#1+#2"},
		{"a prefix opens its own", []Rule{{IPs: v6, Upstream: "u"}, {IPs: prefixes("10.0.0.0/8"), Upstream: "u"}, {IPs: v4, Upstream: "u"}}, both, "#1+#3"},
		{"another upstream", []Rule{{IPs: v4, Upstream: "u"}, {IPs: v6, Upstream: "w"}}, "192.0.2.1", "#1"},
		{"another verdict", []Rule{{IPs: v4, Upstream: "u"}, {IPs: v6, Upstream: "u", Report: "not yet"}}, "192.0.2.1", "#1"},
		{"both reported", []Rule{{IPs: v4, Upstream: "u", Report: "a"}, {IPs: v6, Upstream: "u", Report: "b"}}, both, "#1+#2"},
		{"a denial between", []Rule{{IPs: v4, Upstream: "u"}, {IPs: prefixes("2001:db8::/32"), Deny: "no"}, {IPs: v6, Upstream: "u"}}, "192.0.2.1", "#1"},
		{"another client's rule", []Rule{{IPs: v4, Upstream: "u"}, {IPs: v6, Users: []string{"x"}, Upstream: "u"}}, "192.0.2.1", "#1"},
	} {
		q := to("a.test:443")
		given := addrs(both)
		d, _ := NewRules(tt.rules).Decide(&q, given, true)
		if !slices.Equal(d.Addrs, addrs(tt.want)) || d.Rules() != tt.by || d.Rule != "#1" {
			t.Errorf("%s: %v by %s, want %s by %s", tt.name, d.Addrs, d.Rules(), tt.want, tt.by)
		}
		if _, ok := d.May(netip.MustParseAddr("10.0.0.1")); ok {
			t.Errorf("%s: may dial 10.0.0.1: %v", tt.name, ok)
		}
		if !slices.Equal(given, addrs(both)) {
			t.Errorf("%s: the given addresses became %v", tt.name, given)
		}
	}
	q := to("a.test:443")
	d, _ := NewRules([]Rule{{IPs: v6, Upstream: "u"}, {IPs: prefixes("10.0.0.0/8"), Upstream: "u"}}).Decide(&q, addrs("2001:db8::1 10.0.0.1"), true)
	if in, ok := d.May(netip.MustParseAddr("10.0.0.1")); !ok {
		t.Errorf("the second rule does not open its own prefix: %s", in)
	}
}

func TestMay(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rule   Rule
		dest   string
		opened string // of the addresses below
	}{
		{"nothing", Rule{}, "db.internal:1", ""},
		{"a name by a pattern", Rule{Hosts: []string{"*.internal"}}, "db.internal:1", ""},
		{"a name", Rule{Hosts: []string{"*.internal", "db.internal"}}, "db.internal:1", "10.0.0.1 64:ff9b::a00:1 fd12::1 100.64.0.1"},
		{"another name of the rule", Rule{Hosts: []string{"*.internal", "db.internal"}}, "x.internal:1", ""},
		{"localhost", Rule{Hosts: []string{"localhost"}}, "localhost:1", "127.0.0.1 ::1 10.0.0.1 64:ff9b::a00:1 fd12::1 100.64.0.1"},
		{"below localhost", Rule{Hosts: []string{"*.localhost"}}, "x.localhost:1", ""},
		{"private", Rule{IPs: prefixes("10.0.0.0/8")}, "db.internal:1", "10.0.0.1"},
		{"in part", Rule{IPs: prefixes("10.0.0.0/31")}, "db.internal:1", "10.0.0.1"},
		{"wider than private", Rule{IPs: prefixes("8.0.0.0/5")}, "db.internal:1", ""},
		{"everything", Rule{IPs: prefixes("0.0.0.0/0 ::/0")}, "db.internal:1", ""},
		{"everything and private", Rule{IPs: prefixes("0.0.0.0/0 10.0.0.0/8")}, "db.internal:1", "10.0.0.1"},
		{"mapped", Rule{IPs: prefixes("::ffff:10.0.0.0/104")}, "db.internal:1", "10.0.0.1"},
		{"loopback", Rule{IPs: prefixes("127.0.0.0/8 ::1/128")}, "db.internal:1", "127.0.0.1 ::1"},
		{"link-local without metadata", Rule{IPs: prefixes("169.254.0.0/16")}, "db.internal:1", "169.254.1.1"},
		{"metadata", Rule{IPs: prefixes("169.254.169.254/32")}, "db.internal:1", "169.254.169.254"},
		{"metadata and its neighbour", Rule{IPs: prefixes("169.254.169.254/31")}, "db.internal:1", ""},
		{"unique local without metadata", Rule{IPs: prefixes("fc00::/7")}, "db.internal:1", "fd12::1"},
		{"NAT64", Rule{IPs: prefixes("64:ff9b::/96")}, "db.internal:1", ""},
		{"private in NAT64", Rule{IPs: prefixes("64:ff9b::a00:0/104")}, "db.internal:1", "64:ff9b::a00:1"},
		{"multicast", Rule{IPs: prefixes("224.0.0.0/24")}, "db.internal:1", "224.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			special := addrs("10.0.0.1 64:ff9b::a00:1 fd12::1 100.64.0.1 127.0.0.1 ::1 169.254.1.1 169.254.169.254 fd00:ec2::254 224.0.0.1 0.0.0.0")
			tt.rule.Upstream = "internet"
			q := to(tt.dest)
			d, _ := NewRules([]Rule{tt.rule}).Decide(&q, special, true)
			if d.Verdict != Allow {
				t.Fatalf("verdict %q", d.Verdict)
			}
			for _, a := range special {
				in, ok := d.May(a)
				if want := slices.Contains(addrs(tt.opened), a); ok != want || ok == (in != "") || !ok && in != string(Special(a)) {
					t.Errorf("may dial %s: %v %q, want %v", a, ok, in, want)
				}
			}
			if in, ok := d.May(netip.MustParseAddr("1.1.1.1")); !ok || in != "" {
				t.Errorf("may not dial 1.1.1.1: %q", in)
			}
		})
	}
	var none Decision
	if in, ok := none.May(netip.Addr{}); ok || in != "reserved" {
		t.Errorf("may dial the invalid address: %v %q", ok, in)
	}
}

func TestParsePortRange(t *testing.T) {
	for _, tt := range []struct{ in, want, why string }{
		{"443", "443", ""},
		{"8000-8999", "8000-8999", ""},
		{"1-65535", "1-65535", ""},
		{"7-7", "7", ""},
		{"", "", "not a port"},
		{"0", "", "not a port"},
		{"65536", "", "not a port"},
		{"+1", "", "not a port"},
		{"1-", "", "not a port"},
		{"-1", "", "not a port"},
		{"1-2-3", "", "not a port"},
		{"http", "", "not a port"},
		{"9-8", "", "write 8-9"},
	} {
		got, err := ParsePortRange(tt.in)
		if tt.why == "" && (err != nil || got.String() != tt.want) || tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)) {
			t.Errorf("ParsePortRange(%q) = %v, %v; want %q, %q", tt.in, got, err, tt.want, tt.why)
		}
	}
}

func TestUpstreamsAreThoseThatRulesChoose(t *testing.T) {
	r := NewRules([]Rule{{Upstream: "b"}, {Upstream: "c", Deny: "no"}, {Upstream: "a", Report: "not yet"}, {Upstream: "b"}, {Deny: "no"}})
	if got := r.Upstreams(); !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("%q", got)
	}
}

// A denied range cannot be reached through IPv6 forms that contain IPv4 addresses.
func TestDenyingRulesMatchIPv6Forms(t *testing.T) {
	rules := NewRules([]Rule{
		{IPs: prefixes("203.0.113.0/24 ::ffff:198.51.100.7/128 2001:db8::/32"), Deny: "no"},
		{IPs: prefixes("8.8.8.0/24"), Upstream: "google"},
		{Upstream: "internet"}})
	for _, tt := range []struct{ addr, want string }{
		{"203.0.113.9", "#1"}, {"::ffff:203.0.113.9", "#1"}, {"64:ff9b::203.0.113.9", "#1"}, {"2002:cb00:7109::1", "#1"},
		{"64:ff9b::198.51.100.7", "#1"}, {"2002:c633:6407:1::", "#1"}, {"2001:db8::1", "#1"},
		{"64:ff9b::203.0.114.9", "#3"}, {"2002:cb00:7209::1", "#3"}, {"64:ff9b::198.51.100.8", "#3"},
		{"64:ff9b::8.8.8.8", "#3"}, // allowing rules open what they name
	} {
		q := Query{Host: "a.test", Port: 1}
		d, _ := rules.Decide(&q, addrs("1.1.1.1 "+tt.addr), true)
		steps := rules.Explain(&q, addrs("1.1.1.1 "+tt.addr), true)
		if last := steps[len(steps)-1]; d.Rule != tt.want || last.Rule != tt.want || !last.Matched {
			t.Errorf("%s: %s decides, and %s is explained, want %s", tt.addr, d.Rule, last.Rule, tt.want)
		}
	}
}
