package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// egressFile is a configuration with the listener "egress", and rules of all kinds.
func egressFile(t *testing.T, more ...string) string {
	t.Helper()
	return cmdtest.WriteConfig(t, fmt.Sprintf(`
dns: {servers: ["127.0.0.1:1"]}
upstreams:
  net: {dynamic: true}
  db: {endpoints: ["db:5432"]}
listeners:
  egress:
    listen: unix:/egress
    socks5: {users_file: absent}
    rules:
      - {host: "*.partner.example", upstream: net}
      - {name: api, port: [80, 443], host: api.example, upstream: net}
      - {user: batch, port: 5432, ip: 10.0.0.0/8, upstream: net, report: "not on the list yet"}
      - {host: localhost, ip: 127.0.0.0/8, upstream: net}
      - {host: db.internal, upstream: db}
      - {port: 8080, upstream: net}
      - {uid: 33, deny: "www-data goes nowhere"}
%s
`, strings.Join(more, "\n")))
}

func explained(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	out, errs := cmdtest.NewOutput(), cmdtest.NewOutput()
	code = run(t.Context(), append([]string{"check"}, args...), strings.NewReader(""), out, errs)
	return out.String(), errs.String(), code
}

func TestExplain(t *testing.T) {
	out, errs, code := explained(t, "-c", egressFile(t), "--explain", "user=batch dest=DB.Internal:5432 addr=10.0.0.7,192.0.2.1")
	want := `listener egress: user=batch dest=DB.Internal:5432 addr=10.0.0.7,192.0.2.1

RULE  MATCHES  WHY
#1    no       host: db.internal is not *.partner.example
api   no       host: db.internal is not api.example
#3    yes      allowed to net, and reported: not on the list yet, at 10.0.0.7

name: db.internal has 10.0.0.7, 192.0.2.1, as addr says; nobody was asked
verdict: would_deny, by rule #3: allowed to upstream net, and reported: not on the list yet
address 10.0.0.7: dialled
`
	if diff := cmp.Diff(want, out); diff != "" || code != 0 || errs != "" {
		t.Errorf("exit code %d, %s\n%s", code, errs, diff)
	}
}

func TestExplainVerdicts(t *testing.T) {
	for _, tt := range []struct {
		question string
		want     []string
	}{
		{"dest=a.partner.example:1", []string{"#1    yes", "name: nothing was looked up", "verdict: allow, by rule #1, to upstream net", "addresses: a.partner.example is looked up when it is dialled"}},
		{"dest=api.example:443 addr=10.1.1.1", []string{"verdict: allow, by rule api", "address 10.1.1.1: dialled"}},
		{"dest=api.example:443 addr=127.0.0.1,192.0.2.9,203.0.114.1", []string{"address 127.0.0.1: refused (special_address: loopback)", "address 203.0.114.1: dialled"}},
		{"dest=db.internal:1", []string{"verdict: allow, by rule #5, to upstream db\n"}},
		{"dest=10.0.0.8:5432 user=batch", []string{"verdict: would_deny, by rule #3", "address 10.0.0.8: dialled"}},
		{"dest=10.0.0.8:8080", []string{"#1    no       host: 10.0.0.8 is an address", "verdict: allow, by rule #6", "address 10.0.0.8: refused (special_address: private), because no rule opens it"}},
		{"dest=localhost:9", []string{"name: localhost was looked up, because a rule depends on its addresses: ", "verdict: allow, by rule #4", "address 127.0.0.1: dialled"}},
		{"dest=nowhere.internal:5432 user=batch", []string{"#3    no       ip: it depends on the addresses of nowhere.internal", "because a rule depends on its addresses: ", "verdict: unknown (reason dns)"}},
		{"dest=x.example:1 uid=33", []string{"verdict: deny, by rule #7 (reason denied): www-data goes nowhere"}},
		{"dest=x.example:1 uid=34", []string{"#7    no       uid: 34 is not 33", "verdict: none, because no rule matches (reason no_route)"}},
		{"listener=egress dest=[2001:db8::1]:1", []string{"verdict: none"}},
	} {
		out, errs, code := explained(t, "-c", egressFile(t), "--explain", tt.question)
		if code != 0 || errs != "" {
			t.Errorf("%s: exit code %d, %s", tt.question, code, errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", tt.question, want, out)
			}
		}
	}
}

func TestExplainAsJSON(t *testing.T) {
	for question, want := range map[string]string{
		"dest=api.example:443 addr=127.0.0.1":             `{"listener":"egress","verdict":"allow","reason":"special_address","rule":"api","upstream":"net","dynamic":true,"addresses":[{"address":"127.0.0.1","special":"loopback"}]}`,
		"dest=api.example:443 addr=127.0.0.1,203.0.114.1": `{"listener":"egress","verdict":"allow","rule":"api","upstream":"net","dynamic":true,"addresses":[{"address":"127.0.0.1","special":"loopback"},{"address":"203.0.114.1"}]}`,
		"dest=db.internal:1":                              `{"listener":"egress","verdict":"allow","rule":"#5","upstream":"db"}`,
		"dest=x.example:1":                                `{"listener":"egress","verdict":"none","reason":"no_route"}`,
		"dest=x.example:1 uid=33":                         `{"listener":"egress","verdict":"deny","reason":"denied","rule":"#7","why":"www-data goes nowhere"}`,
	} {
		out, errs, code := explained(t, "-c", egressFile(t), "--json", "--explain", question)
		var got, wanted map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || errs != "" {
			t.Errorf("%s: exit code %d, %v, %s", question, code, err, errs)
			continue
		}
		if rules, ok := got["rules"].([]any); !ok || len(rules) == 0 || got["question"] != question {
			t.Errorf("%s: %s", question, out)
		}
		for _, key := range []string{"rules", "question", "resolved"} {
			delete(got, key)
		}
		if err := json.Unmarshal([]byte(want), &wanted); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s:\n%s", question, diff)
		}
	}
}

// The explanation does not claim that a destination is dialled if it is refused
// regardless of the rules.
func TestExplainLoop(t *testing.T) {
	path := cmdtest.WriteConfig(t, `metrics: {listen: "127.0.0.1:9"}
upstreams: {net: {dynamic: true}}
listeners: {egress: {listen: "localhost:1080", socks5: {}, rules: [{ip: 127.0.0.0/8, upstream: net}]}}
`)
	for question, want := range map[string]string{
		"dest=127.0.0.1:1080":                    "address 127.0.0.1: refused (loop), because we listen there ourselves",
		"dest=[::ffff:127.0.0.1]:9":              "address 127.0.0.1: refused (loop)",
		"dest=127.0.0.2:1080":                    "address 127.0.0.2: dialled",
		"dest=a.test:9 addr=127.0.0.1,127.0.0.2": "address 127.0.0.2: dialled",
	} {
		out, errs, code := explained(t, "-c", path, "--explain", question)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d, %s, no %q in\n%s", question, code, errs, want, out)
		}
		out, _, _ = explained(t, "-c", path, "--json", "--explain", question)
		if loops := strings.Contains(out, `"reason": "loop"`); loops != strings.Contains(want, "loop") {
			t.Errorf("%s: %s", question, out)
		}
	}
}

func TestBadQuestions(t *testing.T) {
	good := egressFile(t)
	two := egressFile(t, "  other:\n    listen: 127.0.0.1:2\n    original_destination: true\n    rules: [{port: 443, upstream: net}]")
	none := cmdtest.WriteConfig(t, cmdtest.OneListener("127.0.0.1:1"))
	for _, tt := range []struct{ file, question, want string }{
		{good, "", "--explain: clients of listener egress say where they want to go; add dest=HOST:PORT"},
		{good, "db.internal:5432", `"db.internal:5432": write KEY=VALUE with spaces between; there are dest, client`},
		{good, "destination=a:1", `"destination=a:1": write KEY=VALUE`},
		{good, "dest=a:1 dest=b:1", "dest is given twice"},
		{good, "dest=a:1 user=", "user has no value"},
		{good, "dest=a", "dest=a: write HOST:PORT"},
		{good, "dest=a:http", `"http" is no port`},
		{good, "dest=a:1-2", `"1-2" is no port`},
		{good, "dest=127.1:1", "write an IPv4 address as four decimal numbers"},
		{good, "dest=a:1 client=here", `"here" is no IP address`},
		{good, "dest=a:1 client=10.0.0.1", "client and listener egress: the clients of a unix socket have no addresses"},
		{good, "dest=a:1 uid=root", "write the number that `id -u USER` prints"},
		{good, "dest=a:1 principal=dns:a", "principal and listener egress: clients prove nothing here"},
		{good, "dest=a:1 sni=a", "sni and listener egress: no ClientHello is read here"},
		{good, "dest=10.0.0.1:1 addr=10.0.0.1", "addr gives the addresses of a name in dest, and there is none"},
		{good, "dest=a:1 addr=10.0.0.1,", `"" is no IP address`},
		{good, "dest=a:1 listener=ingress", "listener=ingress: there is no such listener with rules; there is egress"},
		{two, "dest=10.0.0.1:1", "which listener? add one of listener=egress, listener=other"},
		{two, "dest=a:443 listener=other", "a redirected connection goes to an address; write dest=IP:443"},
		{two, "dest=10.0.0.1:443 user=a listener=other", "user and listener other: nobody is asked who he is here"},
		{none, "dest=a:1", "no listener of the file has rules"},
		{cmdtest.WriteConfig(t, "listeners: {}"), "dest=a:1", "listeners: no listener"},
	} {
		out, errs, code := explained(t, "-c", tt.file, "--explain", tt.question)
		if code != 2 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit code %d, %q, want 2 and %q", tt.question, code, errs+out, tt.want)
		}
	}
}
