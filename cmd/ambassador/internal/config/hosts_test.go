package config

import (
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// TestOneGrammarOfHosts is the specification: what a file may say for a host, in which
// form it is used, and what an error tells to write.
func TestOneGrammarOfHosts(t *testing.T) {
	endpoint := func(s string) (string, error) { return canonicalEndpoint(s), checkEndpoint(s) }
	srv := func(s string) (string, error) { return canonicalName(s), checkSRV(s) }
	principal := func(s string) (string, error) { p, err := parsePrincipal(s); return p.String(), err }
	for _, tt := range []struct {
		key      string
		parse    func(string) (string, error)
		in, want string // want: the form; or, after "!", a part of the error
	}{
		{"endpoints", endpoint, "db.x:443", "db.x:443"},
		{"endpoints", endpoint, "DB.x.:443", "DB.x.:443"},
		{"endpoints", endpoint, "bücher.example:443", "xn--bcher-kva.example:443"},
		{"endpoints", endpoint, "bücher.example.:443", "xn--bcher-kva.example.:443"},
		{"endpoints", endpoint, "a-.x:443", "a-.x:443"},
		{"endpoints", endpoint, "my_host:443", "my_host:443"},
		{"endpoints", endpoint, "[::1]:443", "[::1]:443"},
		{"endpoints", endpoint, "[fe80::1%eth0]:443", "[fe80::1%eth0]:443"},
		{"endpoints", endpoint, "unix:/run/bücher:1", "unix:/run/bücher:1"},
		{"endpoints", endpoint, "db x:443", "!' '"},
		{"endpoints", endpoint, " db.x:443", "!' '"},
		{"endpoints", endpoint, "https://db.x:443/a", "!write HOST:PORT alone: db.x:443"},
		{"endpoints", endpoint, "postgres://me:secret@db.x/a", "!write HOST:PORT alone: db.x:PORT"},
		{"endpoints", endpoint, "*.x:443", "!a wildcard"},
		{"endpoints", endpoint, "127.1:443", "!127.0.0.1"},
		{"endpoints", endpoint, "0x7f.1:443", "!127.0.0.1"},
		{"endpoints", endpoint, "a..b:443", "!empty label"},
		{"endpoints", endpoint, "me@db.x:443", "!'@'"},
		{"endpoints", endpoint, "[db.x]:443", "!write db.x:443"},
		{"endpoints", endpoint, "db.x:+443", "!port"},
		{"endpoints", endpoint, "db.x:0", "!port 0"},
		{"endpoints", endpoint, ":443", "!no host"},
		{"server_name", parseServerName, "DB.x.", "db.x"},
		{"server_name", parseServerName, "bücher.example", "xn--bcher-kva.example"},
		{"server_name", parseServerName, "[2001:DB8::1]", "2001:db8::1"},
		{"server_name", parseServerName, "10.0.0.1", "10.0.0.1"},
		{"server_name", parseServerName, "https://db.x/", "!write the host alone: db.x"},
		{"server_name", parseServerName, "db.x:443", "!write the host alone: db.x"},
		{"server_name", parseServerName, "[::1]:443", "!write the host alone: ::1"},
		{"server_name", parseServerName, "*.x", `!principals: ["dns:*.x"]`},
		{"server_name", parseServerName, "db x", "!' '"},
		{"server_name", parseServerName, "127.1", "!127.0.0.1"},
		{"server_name", parseServerName, "", "!empty"},
		{"srv", srv, "_pg._tcp.bücher.example", "_pg._tcp.xn--bcher-kva.example"},
		{"srv", srv, "db.x:443", "!no SRV name"},
		{"srv", srv, "10.0.0.1", "!no SRV name"},
		{"srv", srv, "", "!no SRV name"},
		{"srv", srv, "_pg. _tcp.x", "!no SRV name"},
		{"principals", principal, "dns:bücher.example", "dns:xn--bcher-kva.example"},
		{"principals", principal, "dns:*.bücher.example", "dns:*.xn--bcher-kva.example"},
		{"principals", principal, "dns:DB.x", "dns:db.x"},
		{"principals", principal, "spiffe://corp/a/*", "spiffe://corp/a/*"},
		{"principals", principal, "dns:https://db.x", "!write dns:db.x"},
		{"principals", principal, "dns:db.x:443", "!write dns:db.x"},
		{"principals", principal, "dns: db.x", "!' '"},
		{"principals", principal, "dns:a*.x", "!leftmost label"},
		{"principals", principal, "dns:db.x.", "!do not end in a dot"},
		{"principals", principal, "dns:10.0.0.1", "!write ip:10.0.0.1"},
		{"principals", principal, "dns:127.1", "!127.0.0.1"},
		{"principals", principal, "ip:[::1]", "!write ip:::1"},
		{"principals", principal, "https://db.x", "!write dns:db.x"},
		{"principals", principal, "db.x:443", "!write dns:db.x"},
		{"principals", principal, "10.0.0.1:443", "!write ip:10.0.0.1"},
		{"principals", principal, "bücher.example", "!write dns:xn--bcher-kva.example"},
		{"principals", principal, "DNS:db.x", "!write dns:db.x"},
		{"principals", principal, " dns:db.x", "!write dns:db.x"},
		{"principals", principal, "db", "!no known kind"},
	} {
		got, err := tt.parse(tt.in)
		why, refused := strings.CutPrefix(tt.want, "!")
		switch {
		case refused && (err == nil || !strings.Contains(err.Error(), why)):
			t.Errorf("%s: %q: %v, want an error with %q", tt.key, tt.in, err, why)
		case !refused && (err != nil || got != tt.want):
			t.Errorf("%s: %q is %q, %v; want %q", tt.key, tt.in, got, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "write HOST:PORT alone") && strings.Contains(strings.SplitAfter(err.Error(), "alone")[1], "secret") {
			t.Errorf("%s: %q: the proposal has the password: %v", tt.key, tt.in, err)
		}
	}
}

// Names reach the server in the form in which they are looked up and verified.
func TestHostsReachTheServer(t *testing.T) {
	f, err := parse(strings.Replace(cmdtest.Good, `endpoints: ["h:1"]`, `endpoints: ["bücher.example:1", {address: "bücher.example.:2"}]`, 1) + "    tls: {server_name: Bücher.example., principals: [\"dns:*.bücher.example\"]}\n")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := f.ServerConfig(noParts())
	if err != nil {
		t.Fatal(err)
	}
	e := cfg.Upstreams[0].Endpoints
	if len(e) != 2 || e[0].Address != "xn--bcher-kva.example:1" || e[1].Address != "xn--bcher-kva.example.:2" {
		t.Errorf("endpoints %+v", e)
	}
	p, err := f.Upstreams[0].TLS.policy(noParts())
	if err != nil || p.ServerName != "xn--bcher-kva.example" || len(p.Principals) != 1 || p.Principals[0].String() != "dns:*.xn--bcher-kva.example" {
		t.Errorf("policy %+v, %v", p, err)
	}
}
