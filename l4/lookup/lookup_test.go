package lookup

import (
	"fmt"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"ambassador/l4/l4test"
	"ambassador/l4/nameserver"
)

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		endpoint string
		host     string
		port     uint16
		fails    bool
		literal  string // empty: the endpoint needs a lookup
	}{
		{endpoint: "db.test:5432", host: "db.test", port: 5432},
		{endpoint: "10.0.0.1:1", host: "10.0.0.1", port: 1, literal: "10.0.0.1:1"},
		{endpoint: "[::1]:65535", host: "::1", port: 65535, literal: "[::1]:65535"},
		{endpoint: "[::ffff:10.0.0.1]:1", host: "::ffff:10.0.0.1", port: 1, literal: "10.0.0.1:1"},
		{endpoint: "unix:/run/db", literal: "unix:/run/db"},
		{endpoint: "db.test", fails: true},
		{endpoint: "db.test:0", fails: true},
		{endpoint: "db.test:65536", fails: true},
		{endpoint: "db.test:http", fails: true},
	} {
		host, port, err := HostPort(c.endpoint)
		if host != c.host || port != c.port || (err != nil) != c.fails {
			t.Errorf("HostPort(%s) = %q, %d, %v", c.endpoint, host, port, err)
		}
		unix, addr, ok := Literal(c.endpoint)
		got := addr.String()
		if unix != "" {
			got = "unix:" + unix
		}
		if ok != (c.literal != "") || ok && got != c.literal {
			t.Errorf("Literal(%s) = %s, %v", c.endpoint, got, ok)
		}
	}
}

func TestServices(t *testing.T) {
	target := func(name string, port, priority, weight uint16) dnsmessage.SRVResource {
		return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(name), Port: port, Priority: priority, Weight: weight}
	}
	z := &l4test.Zone{Hosts: map[string][]string{"a.test": {"10.0.0.1"}},
		Targets: map[string][]dnsmessage.SRVResource{
			"_pg._tcp.test":   {target("gone.test.", 3, 0, 1), target("a.test.", 1000, 1, 3)},
			"_gone._tcp.test": {target("gone.test.", 3, 0, 1)}}}
	r := nameserver.New([]string{l4test.ServeZone(t, z)}, func(body func()) error { body(); return nil })
	found, err := Services(t.Context(), r, "_pg._tcp.test", nameserver.Patient)
	if got := fmt.Sprint(found.All); err != nil || got != "[{10.0.0.1:1000 3 1 0 false}]" || found.Partial {
		t.Errorf("%v, %v; want the target that has an address", found, err)
	}
	if found, err := Services(t.Context(), r, "_gone._tcp.test", nameserver.Patient); err == nil {
		t.Errorf("%v; want the error of the target", found)
	}
}
