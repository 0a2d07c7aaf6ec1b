package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	rules := NewRules(append(slices.Clone(example().rules[:8]),
		Rule{Hosts: []string{"a.example", "b.example"}, Upstream: "u"},
		Rule{Name: "rest", Deny: "not on the list"},
		Rule{Upstream: "never"}))
	batch := with(to("db.example:5432"), func(q *Query) {
		q.User, q.Client = "batch", netip.MustParseAddr("10.1.2.3")
		q.UID, q.HasUID, q.Principal, q.SNI = 7, true, "spiffe://corp/web", "x.example"
	})
	for _, tt := range []struct {
		name  string
		q     Query
		addrs string // - not resolved
		want  []string
	}{
		{"matched", batch, "10.1.1.1 1.1.1.1", []string{
			"#1 host: db.example is not *.partner.example",
			"api host: db.example is not api.example.com",
			"#3 client: 10.1.2.3 is not in 10.9.0.0/16",
			"#4 ip: none of 10.1.1.1, 1.1.1.1 is in 10.66.0.0/16",
			"#5 = allowed to internet, and reported: not on the list yet, at 10.1.1.1",
		}},
		{"undecided", batch, "-", []string{
			"#1 host: db.example is not *.partner.example",
			"api host: db.example is not api.example.com",
			"#3 client: 10.1.2.3 is not in 10.9.0.0/16",
			"#4 ? ip: it depends on the addresses of db.example, which are not known",
		}},
		{"all keys", batch, "", []string{
			"#1 host: db.example is not *.partner.example",
			"api host: db.example is not api.example.com",
			"#3 client: 10.1.2.3 is not in 10.9.0.0/16",
			"#4 ip: db.example has no addresses",
			"#5 ip: db.example has no addresses",
			"#6 uid: 7 is none of 0, 33",
			"#7 principal: spiffe://corp/web is none of the rule's",
			"#8 sni: x.example is none of *.tls.example, tls.example",
			"#9 host: db.example is none of a.example, b.example",
			"rest = denied: not on the list",
		}},
		{"nothing known", Query{}, "-", []string{
			"#1 host: the client names no destination",
			"api host: the client names no destination",
			"#3 client: the client has no address",
			"#4 ip: the client names no destination",
			"#5 user: the client did not authenticate",
			"#6 uid: the client's is not known",
			"#7 principal: the client proved none",
			"#8 sni: the client named no server",
			"#9 host: the client names no destination",
			"rest = denied: not on the list",
		}},
		{"an address", to("1.1.1.1:1"), "-", []string{
			"#1 host: 1.1.1.1 is an address, and names only match names",
			"api host: 1.1.1.1 is an address, and names only match names",
			"#3 client: the client has no address",
			"#4 ip: 1.1.1.1 is not in 10.66.0.0/16",
			"#5 user: the client did not authenticate",
			"#6 uid: the client's is not known",
			"#7 principal: the client proved none",
			"#8 sni: the client named no server",
			"#9 host: 1.1.1.1 is an address, and names only match names",
			"rest = denied: not on the list",
		}},
		{"a port", to("api.example.com:22"), "-", []string{
			"#1 host: api.example.com is not *.partner.example",
			"api port: 22 is none of 80, 443, 8000-8999",
			"#3 client: the client has no address",
			"#4 ? ip: it depends on the addresses of api.example.com, which are not known",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for i, s := range rules.Explain(&tt.q, addrs(strings.TrimPrefix(tt.addrs, "-")), tt.addrs != "-") {
				mark := map[bool]string{s.Matched: "= ", s.Undecided: "? "}[true]
				got = append(got, fmt.Sprintf("%s %s%s", s.Rule, mark, s.Text))
				if s.Index != i {
					t.Errorf("step %d is of rule %d", i, s.Index)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestExplainLongList(t *testing.T) {
	var hosts []string
	for i := range 5000 {
		hosts = append(hosts, fmt.Sprintf("h%d.example", i))
	}
	q := to("x.example:1")
	steps := NewRules([]Rule{{Hosts: hosts, Upstream: "u"}}).Explain(&q, nil, false)
	if want := "host: x.example is none of h0.example, h1.example, h2.example, h3.example, h4.example, h5.example, h6.example, h7.example and 4992 more"; len(steps) != 1 || steps[0].Text != want {
		t.Errorf("got %+v", steps)
	}
}
