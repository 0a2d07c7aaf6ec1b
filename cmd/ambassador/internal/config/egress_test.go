package config

import (
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4"
	"ambassador/l4/htpasswd"
	"ambassador/policy"
)

// with changes a configuration: old, new pairs.
func with(text string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(text) }

func TestMistakesOfEgressHaveTheirPlaceAndHint(t *testing.T) {
	socks := "socks5: {}"
	withTLS := "tls: {identity: me, ca: x, principals: [any]}"
	identity := "identities: {me: {files: {cert: a, key: b}}}\n"
	onUnix := []string{"127.0.0.1:1", "unix:/s"}
	for _, tt := range []struct{ name, text, want string }{
		{"rules", cmdtest.Ruled(socks, "{name: a, host: [h.x, '*.y'], port: [1, '2-3'], ip: 10.0.0.0/8, client: 10.1.1.1, upstream: net}", "{deny: no}"), ""},
		{"nothing to choose by", "listeners: {l: {listen: '127.0.0.1:1'}}\nupstreams: {u: {endpoints: ['h:1']}}", "listeners.l: no upstream; name one of upstreams, or give rules that choose"},
		{"upstream and rules", cmdtest.Ruled(socks+"\nupstream: u", cmdtest.AllowAll), "a.yaml:7:7: listeners.l.rules: upstream says where all sessions go; remove one of them"},
		{"no rule", with(cmdtest.Ruled(socks), "rules:", "rules: []"), "listeners.l.rules: empty, so that every session would be refused"},
		{"no list", with(cmdtest.Ruled(socks), "rules:", "rules: {deny: x}"), "listeners.l.rules: a section where a list is needed; write each rule behind a dash"},
		{"no section", cmdtest.Ruled(socks, "deny"), `listeners.l.rules[0]: "deny" where a section is needed`},
		{"unknown key", cmdtest.Ruled(socks, "{hots: a, upstream: net}"), "a.yaml:6:10: listeners.l.rules[0].hots: unknown key; did you mean host?"},
		{"no verdict", cmdtest.Ruled(socks, "{host: a.b}"), "listeners.l.rules[0]: it does nothing; give upstream: NAME to allow, or deny: WHY"},
		{"two verdicts", cmdtest.Ruled(socks, "{upstream: net, deny: x}"), "listeners.l.rules[0].deny: a rule allows or refuses"},
		{"report of a deny", cmdtest.Ruled(socks, "{deny: x, report: y}"), "listeners.l.rules[0].report: report allows what would be refused"},
		{"deny without a word", cmdtest.Ruled(socks, "{deny: ''}"), "listeners.l.rules[0].deny: empty; say why"},
		{"report without a word", cmdtest.Ruled(socks, "{upstream: net, report: ''}"), "listeners.l.rules[0].report: empty; say why"},
		{"unknown upstream", cmdtest.Ruled(socks, "{upstream: nat}"), `a.yaml:6:20: listeners.l.rules[0].upstream: there is no "nat" in upstreams; there is net, u`},
		{"same name", cmdtest.Ruled(socks, "{name: a, upstream: net}", "{name: b, deny: x}", "{name: a, deny: x}"), "listeners.l.rules[2].name: rule #1 has this name already"},
		{"name of another's place", cmdtest.Ruled(socks, "{name: '#2', upstream: net}"), `"#2": so the rules without a name are called`},
		{"bad name", cmdtest.Ruled(socks, "{name: 'A b', upstream: net}"), `"A b" is no name; use at most 63`},
		{"empty list", cmdtest.Ruled(socks, "{host: [], upstream: net}"), "listeners.l.rules[0].host: empty; give at least one"},
		{"address as a host", cmdtest.Ruled(socks, "{host: 10.0.0.1, upstream: net}"), "write ip: [10.0.0.1/32]"},
		{"address and port as a host", cmdtest.Ruled(socks, "{host: '[::1]:80', upstream: net}"), `"[::1]:80" has a port; write ip: "::1" and port: 80`},
		{"host with a port", cmdtest.Ruled(socks, "{host: ['a.b', 'db:5432'], upstream: net}"), `listeners.l.rules[0].host[1]: "db:5432" has a port; write host: "db" and port: 5432`},
		{"star inside", cmdtest.Ruled(socks, "{host: 'a.*.b', upstream: net}"), "* stands for one or more whole labels at the beginning"},
		{"star alone", cmdtest.Ruled(socks, "{host: '*', upstream: net}"), "leave the key out to match every name"},
		{"disguised address", cmdtest.Ruled(socks, "{host: '127.1', upstream: net}"), "write an IPv4 address as four decimal numbers"},
		{"upper case, a last dot, a star, IDN", cmdtest.Ruled(socks, "{host: [DB.Internal., '*.Example.COM', 'bücher.example'], upstream: net}"), ""},
		{"no port", cmdtest.Ruled(socks, "{port: http, upstream: net}"), `port "http": not a port`},
		{"ports backwards", cmdtest.Ruled(socks, "{port: '9-8', upstream: net}"), "write 8-9"},
		{"port 0", cmdtest.Ruled(socks, "{port: 0, upstream: net}"), "from 1 to 65535"},
		{"range with bits", cmdtest.Ruled(socks, "{ip: 10.0.0.1/8, upstream: net}"), "did you mean 10.0.0.0/8, or the address 10.0.0.1?"},
		{"client with bits", cmdtest.Ruled(socks, "{client: [10.0.0.1/8], upstream: net}"), "listeners.l.rules[0].client[0]: 10.0.0.1/8 has bits"},
		{"a user is no user", cmdtest.Ruled("socks5: {users_file: f}", "{user: 'a:b', upstream: net}"), "write the name as users_file has it, before the colon"},
		{"no uid", with(cmdtest.Ruled(socks, "{uid: root, upstream: net}"), onUnix...), "write the number that `id -u USER` prints"},
		{"no principal", with(cmdtest.Ruled(socks+"\n"+withTLS, "{principal: batch, upstream: net}"), "upstreams:", identity+"upstreams:"), `listeners.l.rules[0].principal: principal "batch":`},

		{"user of nobody", cmdtest.Ruled(socks, "{user: a, upstream: net}"), "listeners.l.rules[0].user: nobody is asked who he is here; give users_file"},
		{"user of an original destination", cmdtest.Ruled("original_destination: true", "{user: a, upstream: net}"), "nobody is asked who he is here"},
		{"uid over TCP", cmdtest.Ruled(socks, "{uid: 0, upstream: net}"), onLinux("", "listeners.l.rules[0].uid: only Linux knows the uid of clients by TCP")},
		{"uid behind a proxy", cmdtest.Ruled(socks+"\nproxy_protocol: {from: [10.0.0.0/8]}", "{uid: 0, upstream: net}"), onLinux("clients come through a proxy here, and have no uid on this host", "only Linux")},
		{"uid", with(cmdtest.Ruled(socks, "{uid: [0, '33'], upstream: net}"), onUnix...), ""},
		{"uid of a passed socket", with(cmdtest.Ruled(socks, "{uid: 0, upstream: net}"), "127.0.0.1:1", "systemd:s"), ""},
		{"client of a unix socket", with(cmdtest.Ruled(socks, "{client: 10.0.0.1, upstream: net}"), onUnix...), "the clients of a unix socket have no addresses; use uid"},
		{"principal of plaintext", cmdtest.Ruled(socks, "{principal: any, upstream: net}"), "clients prove nothing here; give the listener tls"},
		{"principal", with(cmdtest.Ruled(socks+"\n"+withTLS, "{principal: 'dns:*.b', upstream: net}"), "upstreams:", identity+"upstreams:"), ""},
		{"sni that nobody reads", cmdtest.Ruled("original_destination: true", "{sni: a.b, upstream: net}"), "listeners.l.rules[0].sni: no ClientHello is read here; give the listener sni: true"},
		{"host without a destination", cmdtest.Ruled("", "{host: a.b, upstream: u}"), "listeners.l.rules[0].host: clients of this listener do not say where they want to go"},
		{"ip without a destination", cmdtest.Ruled("", "{ip: 10.0.0.1, upstream: u}"), "listeners.l.rules[0].ip: clients of this listener do not say"},
		{"host of an original destination", cmdtest.Ruled("original_destination: true", "{host: a.b, upstream: net}"), "a redirected connection goes to an address, and has no name; use ip, or sni"},
		{"client without a destination", cmdtest.Ruled("", "{client: 127.0.0.0/8, upstream: u}"), ""},

		{"dynamic without a destination", cmdtest.Ruled("", cmdtest.AllowAll), "listeners.l.rules[0].upstream: upstream net is dynamic, and clients of this listener do not say where"},
		{"dynamic without rules or destination", cmdtest.Good + "    dynamic: true", "listeners.l.upstream: upstream u is dynamic"},
		{"dynamic with endpoints", cmdtest.Good + "    dynamic: true", "upstreams.u.endpoints: a dynamic upstream dials what the client asked for, so endpoints has no meaning"},
		{"dynamic with health", with(cmdtest.Ruled(socks, cmdtest.AllowAll), "dynamic: true", "dynamic: true, health: {interval: 0s}"), "upstreams.net.health: a dynamic upstream"},
		{"dynamic with limits", with(cmdtest.Ruled(socks, cmdtest.AllowAll), "dynamic: true", "dynamic: true, limits: {connections: 1}"), "upstreams.net.limits: a dynamic upstream"},
		{"dynamic with preconnect, balance, resolve", with(cmdtest.Ruled(socks, cmdtest.AllowAll), "dynamic: true", "dynamic: true, preconnect: {connections: 1}, balance: random, resolve: 1s"), "so resolve has no meaning"},
		{"dynamic and required", with(cmdtest.Ruled(socks, cmdtest.AllowAll), "dynamic: true", "dynamic: true, required: true"), "upstreams.net.required: nobody knows before a client asks"},
		{"dynamic and not required", with(cmdtest.Ruled(socks, cmdtest.AllowAll), "dynamic: true", "dynamic: true, required: false, breaker: {failures: 3}, connect: {attempts: 1}, proxy_protocol: v2"), ""},
		{"not dynamic", cmdtest.Good + "    dynamic: false", ""},
		{"no endpoints", "listeners: {l: {listen: '127.0.0.1:1', upstream: u}}\nupstreams: {u: {}}", "or dynamic: true"},
		{"TLS to a redirected destination", with(cmdtest.Ruled("original_destination: true", cmdtest.AllowAll), "dynamic: true", "dynamic: true, tls: {}"), "a redirected connection has only an address; set tls.server_name or tls.principals"},
		{"TLS to a redirected destination with a name", with(cmdtest.Ruled("original_destination: true", cmdtest.AllowAll), "dynamic: true", "dynamic: true, tls: {server_name: a}"), ""},
		{"TLS by rule", with(cmdtest.Ruled(socks, cmdtest.AllowAll), "dynamic: true", "dynamic: true, tls: {}, starttls: postgres"), ""},

		{"two ways to ask", cmdtest.Ruled("socks5: {}\nhttp_connect: {}", cmdtest.AllowAll), "listeners.l.http_connect: clients say in one way where they want to go; give only one of socks5, http_connect"},
		{"three ways to ask", cmdtest.Ruled("socks5: {}\noriginal_destination: true", cmdtest.AllowAll), "give only one of socks5, original_destination"},
		{"unknown key of socks5", cmdtest.Ruled("socks5: {user_file: x}", cmdtest.AllowAll), "listeners.l.socks5.user_file: unknown key; did you mean users_file?"},
		{"redirected to a unix socket", with(cmdtest.Ruled("original_destination: true", cmdtest.AllowAll), onUnix...), "listeners.l.original_destination: only connections over TCP are redirected"},
		{"redirected to a passed socket", with(cmdtest.Ruled("original_destination: true", cmdtest.AllowAll), "127.0.0.1:1", "systemd:s"), "only connections over TCP are redirected"},
		{"sni", cmdtest.Ruled("sni: true", "{sni: '*.a.b', upstream: u}"), ""},
		{"sni with tls", with(cmdtest.Ruled("sni: true\n"+withTLS, "{sni: a.b, upstream: u}"), "upstreams:", identity+"upstreams:"), "listeners.l.sni: the listener's tls ends the client's TLS"},
		{"sni with socks5", cmdtest.Ruled("sni: true\nsocks5: {}", "{sni: a.b, upstream: net}"), "listeners.l.sni: the ClientHello comes only after the answer to the socks5 request"},
		{"sni with http_connect", cmdtest.Ruled("sni: true\nhttp_connect: {}", "{sni: a.b, upstream: net}"), "the answer to the http_connect request"},
		{"sni for nobody", cmdtest.Ruled("sni: true", "{upstream: u}"), "listeners.l.sni: the name is read for rules, and none of them has sni"},
		{"sni without rules", with(cmdtest.Good, "upstream: u", "upstream: u, sni: true"), "listeners.l.sni: the name is read for rules"},
		{"context of nobody", cmdtest.Ruled("socks5: {}\ncontext: true", cmdtest.AllowAll), "listeners.l.context: nothing could carry it"},
		{"context of users", cmdtest.Ruled("socks5: {users_file: f}\ncontext: true", cmdtest.AllowAll), ""},
		{"context in a header", cmdtest.Ruled("http_connect: {}\ncontext: true", cmdtest.AllowAll), ""},
		{"context of a proxy", cmdtest.Ruled("proxy_protocol: {from: [10.0.0.1]}\ncontext: true", "{upstream: u}"), ""},
		{"starttls and socks5", with(cmdtest.Ruled("starttls: postgres\nsocks5: {}\n"+withTLS, cmdtest.AllowAll), "upstreams:", identity+"upstreams:"), "clients begin with their socks5 request, not with postgres"},
		{"starttls against a rule", with(cmdtest.Ruled("starttls: postgres\n"+withTLS, "{upstream: u}"), "upstreams:", identity+"upstreams:", `["h:1"]`, `["h:1"], starttls: mysql, tls: {}`), "upstream u speaks mysql"},

		{"mark", cmdtest.Good + "    mark: 0xa3", ""},
		{"no mark", cmdtest.Good + "    mark: blue", `upstreams.u.mark: "blue" is no mark`},
		{"mark of more than 32 bits", cmdtest.Good + "    mark: 0x100000000", "from 0 to 4294967295"},
		{"mark of a unix socket", with(cmdtest.Good, "h:1", "unix:/s") + "    mark: 1", "connections to unix sockets have no mark"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if runtime.GOOS != "linux" && (strings.Contains(tt.text, "original_destination") || strings.Contains(tt.text, "mark")) {
				t.Skip("only Linux has it")
			}
			_, err := parse(tt.text)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v\n%s", err, tt.text)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error:\n%v\nwant one with\n%s\nof\n%s", err, tt.want, tt.text)
			}
		})
	}
}

// serverOf translates a configuration for l4.
func serverOf(t *testing.T, text string) l4.Config {
	t.Helper()
	f, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := f.ServerConfig(noParts())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestRulesReachTheServer(t *testing.T) {
	cfg := serverOf(t, with(cmdtest.Ruled("socks5: {}",
		"{name: api, host: [API.example, '*.suffix.example'], port: [80, '8000-8999'], client: 10.0.0.0/8, upstream: net}",
		"{ip: [192.0.2.0/24], deny: no way}",
		"{port: 443, upstream: u, report: later}"), "upstreams:", "dns: {servers: [10.0.0.2]}\nupstreams:"))
	l := cfg.Listeners[0]
	if l.Request != l4.RequestSOCKS5 || l.Upstream != "" || l.Users != nil || !slices.Equal(l.DNSServers, []string{"10.0.0.2:53"}) || !slices.Equal(l.Rules.Upstreams(), []string{"net", "u"}) {
		t.Errorf("listener: %+v", l)
	}
	client := netip.MustParseAddr("10.9.9.9")
	for _, tt := range []struct {
		q     policy.Query
		addrs string
		want  string // verdict, rule, upstream or why
	}{
		{policy.Query{Host: "api.example", Port: 80, Client: client}, "", "allow api net"},
		{policy.Query{Host: "a.b.suffix.example", Port: 8500, Client: client}, "", "allow api net"},
		{policy.Query{Host: "api.example", Port: 81, Client: client}, "192.0.2.7", "deny #2 no way"},
		{policy.Query{Host: "other.example", Port: 443, Client: client}, "203.0.113.1", "would_deny #3 u later"},
		{policy.Query{Host: "other.example", Port: 444, Client: client}, "203.0.113.1", "none  "},
	} {
		var addrs []netip.Addr
		if tt.addrs != "" {
			addrs = append(addrs, netip.MustParseAddr(tt.addrs))
		}
		d, need := l.Rules.Decide(&tt.q, addrs, addrs != nil)
		if got := strings.Join([]string{string(d.Verdict), d.Rule, d.Upstream, d.Why}, " "); need || strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(tt.want), " ") {
			t.Errorf("%+v: %q (needs addresses: %v), want %q", tt.q, got, need, tt.want)
		}
	}
}

func onLinux(here, elsewhere string) string {
	if runtime.GOOS == "linux" {
		return here
	}
	return elsewhere
}

func TestLogProcessReachesTheServer(t *testing.T) {
	for text, want := range map[string]bool{"": false, "log: {process: true}": true, "log: {process: false}": false} {
		if got := serverOf(t, cmdtest.Ruled("socks5: {}\n"+text, "{upstream: net}")).Listeners[0].LogProcess; got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestEveryKeyOfARuleReachesTheServer(t *testing.T) {
	keys := "sni: true\noriginal_destination: true"
	identity := "identities: {me: {files: {cert: a, key: b}}}\nupstreams:"
	for _, tt := range []struct {
		text string
		q    policy.Query
	}{
		{cmdtest.Ruled(keys, "{sni: '*.b', upstream: net}"), policy.Query{Addr: netip.MustParseAddr("192.0.2.1"), Port: 1, SNI: "a.b"}},
		{cmdtest.Ruled("socks5: {users_file: f}", "{user: batch, upstream: net}"), policy.Query{Host: "h", Port: 1, User: "batch"}},
		{with(cmdtest.Ruled("", "{uid: 0, upstream: u}"), "127.0.0.1:1", "unix:/s"), policy.Query{HasUID: true}},
		{with(cmdtest.Ruled("tls: {identity: me, ca: x, principals: [any]}", "{principal: 'spiffe://corp/batch/*', upstream: u}"), "upstreams:", identity), policy.Query{Principal: "spiffe://corp/batch/7"}},
	} {
		f, err := parse(tt.text)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := f.Listeners[0].PolicyRules()
		if err != nil {
			t.Fatal(err)
		}
		if d, _ := rules.Decide(&tt.q, nil, false); d.Verdict != policy.Allow {
			t.Errorf("%s: %s", tt.text, d.Verdict)
		}
		none := policy.Query{Host: tt.q.Host, Addr: tt.q.Addr, Port: tt.q.Port}
		if d, _ := rules.Decide(&none, nil, false); d.Verdict != policy.NoRule {
			t.Errorf("%s matches a session that has nothing of it: %s", tt.text, d.Verdict)
		}
	}
}

func TestEgressReachesTheServer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has mark and original_destination")
	}
	text := with(cmdtest.Ruled("original_destination: true\nsni: true", "{sni: a.b, upstream: net}"), "dynamic: true", "dynamic: true, mark: 0xa3")
	cfg := serverOf(t, text)
	l, u := cfg.Listeners[0], cfg.Upstreams[0]
	if l.Request != l4.RequestOriginal || !l.SNI || l.Context {
		t.Errorf("listener: %+v", l)
	}
	if !u.Dynamic || u.Mark != 0xa3 || u.Required || u.Health.Interval != 0 || u.Breaker.Failures != 5 || len(u.Endpoints) != 0 {
		t.Errorf("upstream: %+v", u)
	}
	if other := serverOf(t, with(text, "0xa3", "0xa4")).Upstreams[0]; other.Key == u.Key {
		t.Error("the key does not follow the mark")
	}
	if l := serverOf(t, cmdtest.Ruled("http_connect: {}\ncontext: true", cmdtest.AllowAll)).Listeners[0]; l.Request != l4.RequestConnect || !l.Context || l.SNI {
		t.Errorf("listener: %+v", l)
	}
	if l := serverOf(t, cmdtest.Good).Listeners[0]; l.Request != l4.RequestNone || l.Rules != nil {
		t.Errorf("listener: %+v", l)
	}
}

func TestUsersFileStartsAtTheFile(t *testing.T) {
	for _, key := range []string{"socks5", "http_connect"} {
		f, err := parse(cmdtest.Ruled(key+": {users_file: sub/users}", cmdtest.AllowAll))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Listeners[0].UsersFile(); got != "/etc/a/sub/users" {
			t.Errorf("%s: users_file is %s", key, got)
		}
	}
}

func TestWarningsAndNotesOfEgress(t *testing.T) {
	open := []string{"127.0.0.1:1", "0.0.0.0:1", "    rules:", "    unsafe_plaintext_listen: true\n    rules:"}
	identity := "identities: {me: {files: {cert: a, key: b}}}\nupstreams:"
	for _, tt := range []struct{ name, text, warning, note string }{
		{"nothing", cmdtest.Ruled("socks5: {}", "{host: a.b, upstream: net}", "{deny: x}"), "", ""},
		{"an open proxy", with(cmdtest.Ruled("socks5: {}", "{host: a.b, upstream: net}"), open...), "listeners.l.socks5: every client that reaches 0.0.0.0:1 may go where the rules allow", ""},
		{"passwords in plaintext", with(cmdtest.Ruled("http_connect: {users_file: f}", "{host: a.b, upstream: net}"), open...), "listeners.l.http_connect.users_file: passwords cross the network in plaintext", ""},
		{"an open proxy with TLS", with(cmdtest.Ruled("socks5: {}\ntls: {identity: me, client: none}", "{host: a.b, upstream: net}"), "upstreams:", identity), "every client that reaches 127.0.0.1:1 may go", ""},
		{"passwords in TLS", with(cmdtest.Ruled("socks5: {users_file: f}\ntls: {identity: me, client: none}", "{host: a.b, upstream: net}"), "upstreams:", identity), "", ""},
		{"metadata", cmdtest.Ruled("socks5: {}", "{host: a.b, upstream: net}", "{ip: [10.0.0.0/8, 169.254.169.254], upstream: net}"), "listeners.l.rules[1].ip: 169.254.169.254 opens the metadata service", ""},
		{"no metadata", cmdtest.Ruled("socks5: {}", "{ip: 169.254.169.254, deny: x}", "{ip: 169.254.0.0/16, upstream: net}"), "", ""},
		{"unreachable", cmdtest.Ruled("socks5: {}", "{port: 1, upstream: net}", "{upstream: net}", "{deny: x}"), "", "listeners.l.rules[2]: it can never match, nor those after it, because rule #2 before it matches everything"},
		{"everything", with(cmdtest.Good, "upstream: u", "upstream: u, socks5: {}", `endpoints: ["h:1"]`, "dynamic: true"), "", "every destination is allowed but special addresses"},
		{"whatever is asked for", with(cmdtest.Good, "upstream: u", "upstream: u, socks5: {}"), "", "all sessions go to u, whatever their clients ask for"},
		{"addresses without a name", with(cmdtest.Ruled("socks5: {}", "{ip: 192.0.2.0/24, upstream: net}"), "dynamic: true", "dynamic: true, tls: {}"), "", "upstream net verifies what was asked for"},
		{"names", with(cmdtest.Ruled("socks5: {}", "{ip: 192.0.2.0/24, host: '*.b', upstream: net}"), "dynamic: true", "dynamic: true, tls: {}"), "", ""},
	} {
		f, err := parse(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		warnings := slices.DeleteFunc(f.Warnings(), func(w string) bool { return strings.Contains(w, ".unsafe_plaintext_listen:") })
		for _, c := range []struct {
			kind string
			got  []string
			want string
		}{{"warnings", warnings, tt.warning}, {"notes", f.Notes(), tt.note}} {
			if c.want == "" && len(c.got) > 0 || c.want != "" && (len(c.got) != 1 || !strings.Contains(c.got[0], c.want)) {
				t.Errorf("%s: %s are %q, want %q", tt.name, c.kind, c.got, c.want)
			}
		}
	}
}

func TestRuleLabels(t *testing.T) {
	f, err := parse(with(cmdtest.Ruled("socks5: {}", "{name: api, port: 443, upstream: net}", "{port: 80, upstream: net, report: x}", "{deny: x}"), "listeners:",
		"listeners:\n  all: {listen: '127.0.0.1:2', socks5: {}, upstream: net}\n  one: {listen: '127.0.0.1:3', upstream: u}"))
	if err != nil {
		t.Fatal(err)
	}
	want := []ruleLabel{{"l", "api", policy.Allow}, {"l", "#2", policy.WouldDeny}, {"l", "#3", policy.Deny}, {"l", "", policy.NoRule}}
	if got := f.RuleLabels(); !slices.Equal(got, want) {
		t.Errorf("labels %v, want %v", got, want)
	}
}

// noParts gives nothing of what a configuration names.
func noParts() Parts {
	source := func(string) *certs.Source { return nil }
	return Parts{Identity: source, Roots: source, Users: func(string) *htpasswd.Users { return nil }}
}

// A rule with any key that clients must match does not match everything.
func TestEverything(t *testing.T) {
	if r := new(RuleSection); !r.everything() {
		t.Error("a rule without keys does not match everything")
	}
	empty := reflect.TypeFor[RuleSection]()
	for i := range empty.NumField() {
		f := empty.Field(i)
		if f.Type.Kind() != reflect.Slice {
			continue
		}
		r := new(RuleSection)
		reflect.ValueOf(r).Elem().Field(i).Set(reflect.MakeSlice(f.Type, 1, 1))
		if r.everything() {
			t.Errorf("a rule with %s matches everything", f.Name)
		}
	}
}
