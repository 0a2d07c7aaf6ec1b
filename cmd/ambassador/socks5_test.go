package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestAllow(t *testing.T) {
	for _, tt := range []struct{ allow, want string }{ // want is the rule, or a part of the error
		{"db.internal:5432", `{host: "db.internal", port: 5432, upstream: direct}`},
		{"DB.Internal.:5432", `{host: "db.internal", port: 5432, upstream: direct}`},
		{"bücher.example:443", `{host: "xn--bcher-kva.example", port: 443, upstream: direct}`},
		{"*.example.com:8000-8999", `{host: "*.example.com", port: 8000-8999, upstream: direct}`},
		{"localhost:*", `{host: "localhost", upstream: direct}`},
		{"10.0.0.0/8:443", `{ip: "10.0.0.0/8", port: 443, upstream: direct}`},
		{"10.0.0.7:443", `{ip: "10.0.0.7", port: 443, upstream: direct}`},
		{"[2001:db8::]/32:443", `{ip: "2001:db8::/32", port: 443, upstream: direct}`},
		{"[::1]:*", `{ip: "::1", upstream: direct}`},
		{"[::]/0:443", `{ip: "::/0", port: 443, upstream: direct}`},
		{"db.internal", `"db.internal": no port; write HOST:PORT, or HOST:* for every port`},
		{"[::1]", "no port"},
		{":443", "no host"},
		{"*:443", "write 0.0.0.0/0:443 and [::]/0:443"},
		{"a.*.b:443", "* stands for one or more whole labels"},
		{"db:http", `"db:http": the port must be a number; http is 80: write db:80`},
		{"db:nonesuch", `"db:nonesuch": port "nonesuch": not a port`},
		{"a:443,b:443", `"a:443,b:443": more than one destination; repeat the flag: --allow a:443 --allow b:443`},
		{"db:0", "from 1 to 65535"},
		{"db:9-8", "write 8-9"},
		{"10.0.0.1/8:443", "did you mean 10.0.0.0/8, or the address 10.0.0.1?"},
		{"2001:db8::/32:443", "an IPv6 address stands in brackets"},
		{"[::1:443", "no ] behind the IPv6 address"},
		{"[::1]/x:443", "is no range of IP addresses"},
		{"127.1:443", "write an IPv4 address as four decimal numbers"},
		{"https://db.internal:443", "a URL; write HOST:PORT"},
	} {
		rule, err := parseAllow(tt.allow)
		got := rule.yaml()
		if err != nil {
			got = err.Error()
			if !strings.HasPrefix(got, fmt.Sprintf("%q: ", tt.allow)) {
				t.Errorf("%s: the error does not name it: %s", tt.allow, got)
			}
		}
		if err == nil && got != tt.want || err != nil && !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.allow, got, tt.want)
		}
	}
}

func TestSOCKS5Flags(t *testing.T) {
	at := listenFlags{listen: []string{"127.0.0.1:0"}}
	for _, tt := range []struct {
		name string
		sf   socks5Flags
		want string // empty: no error
	}{
		{"one", socks5Flags{listenFlags: at, allow: []string{"h.x:1"}}, ""},
		{"everything", socks5Flags{listenFlags: listenFlags{listen: []string{"unix:/s"}, idle: time.Minute, socketMode: "0660"}, allow: []string{"h.x:1", "[::]/0:*"}, report: true}, ""},
		{"only report", socks5Flags{listenFlags: at, report: true}, ""},
		{"nothing", socks5Flags{}, "--listen: required"},
		{"nothing, in one pass", socks5Flags{}, "--allow: required: what clients may connect to"},
		{"a bad one among good ones", socks5Flags{listenFlags: at, allow: []string{"h.x:1", "h.x"}}, `--allow: "h.x": no port`},
		{"every bad one", socks5Flags{listenFlags: at, allow: []string{"a.x", "b.x"}}, `--allow: "b.x": no port`},
		{"open", socks5Flags{listenFlags: listenFlags{listen: []string{"0.0.0.0:0"}}, allow: []string{"h.x:1"}}, "--listen: plaintext on 0.0.0.0:0, which others can reach; listen on 127.0.0.1 or a unix socket, or set --unsafe-plaintext-listen"},
		{"mode", socks5Flags{listenFlags: listenFlags{listen: []string{"unix:/s"}, socketMode: "rw"}, allow: []string{"h.x:1"}}, "--socket-mode: "},
		{"users", socks5Flags{listenFlags: at, allow: []string{"h.x"}, users: "/absent/users"}, "--users: /absent/users: no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := socks5File(&tt.sf)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "listeners.socks5") {
					t.Errorf("error:\n%v\nwant one with\n%s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, f)
			rules := f.Listeners[0].Rules
			last := rules[len(rules)-1]
			if len(rules) != len(tt.sf.allow)+1 || len(last.Hosts)+len(last.Ports)+len(last.IPs)+len(last.Clients)+len(last.Users)+len(last.UIDs)+len(last.Principals)+len(last.SNIs) > 0 || (last.Deny == "") != tt.sf.report {
				t.Errorf("rules: %+v", rules)
			}
		})
	}
}

// If the other flags are valid, a missing users file is reported once, by its flag.
func TestSOCKS5WithoutItsUsers(t *testing.T) {
	out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
	code := run(t.Context(), []string{"socks5", "--listen", "127.0.0.1:0", "--admin", "", "--allow", "h.x:1", "--users", "/absent/users"}, strings.NewReader(""), out, errs)
	if want := "ambassador: --users: /absent/users: no such file or directory; relative paths start at the folder where the command is run\n"; code != 2 || errs.String() != want {
		t.Errorf("exit code %d, %q, want 2 and %q", code, errs, want)
	}
}

func FuzzAllow(f *testing.F) {
	for _, s := range []string{"db.internal:5432", "*.a.b:1-2", "[::1]/128:*", "10.0.0.0/8:443", "[::", ":", "*:*", "a]:1", "\"}\n:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rule, err := parseAllow(s)
		if err != nil {
			return
		}
		sf := socks5Flags{listenFlags: listenFlags{listen: []string{"127.0.0.1:0"}}, allow: []string{s}}
		file, err := socks5File(&sf)
		if err != nil {
			t.Fatalf("%q is taken alone as %+v, and not as a flag: %v", s, rule, err)
		}
		if n := len(file.Listeners[0].Rules); n != 2 {
			t.Errorf("%q makes %d rules", s, n)
		}
	})
}

// allowsOf returns the needs as values of --allow.
