package l4

import (
	"net/netip"
	"os"
	"runtime"
	"testing"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// A rule on uid decides about clients by TCP of this host, also once a reload brings it.
// The record has what the rules or the log wanted, and nothing else is looked up.
func TestProcessOfTCPClients(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux knows users of TCP clients")
	}
	at := l4test.Backend(t, l4test.Echo)
	local := policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"}
	us, others := local, local
	us.UIDs, others.UIDs = []uint32{uint32(os.Getuid())}, []uint32{uint32(os.Getuid()) + 1}
	cfg := egress(local)
	f := serve(t, Options{}, cfg)
	for _, test := range []struct {
		name    string
		rules   []policy.Rule
		process bool
		want    outcome.Reason
	}{
		{"no rule on uid", []policy.Rule{local}, false, outcome.Closed},
		{"our uid", []policy.Rule{us}, false, outcome.Closed},
		{"another uid", []policy.Rule{others}, false, outcome.NoRoute},
		{"denied to our uid", []policy.Rule{{UIDs: us.UIDs, Deny: "not you"}, local}, false, outcome.Denied},
		{"the log wants it", []policy.Rule{local}, true, outcome.Closed},
	} {
		next := egress(test.rules...)
		next.Listeners[0].Addresses = cfg.Listeners[0].Addresses
		next.Listeners[0].LogProcess = test.process
		if err := f.Apply(next); err != nil {
			t.Fatal(err)
		}
		session := func() *outcome.Record {
			c, code := f.socks(at)
			if (code == 0) != (test.want == outcome.Closed) {
				t.Errorf("%s: reply %d", test.name, code)
			} else if code == 0 {
				ping(t, c)
			}
			c.Close()
			return f.record()
		}
		r := session()
		for range 20 { // the search is bounded, and a busy machine may not find the process in that time
			if !test.process || r.PID != 0 {
				break
			}
			r = session()
		}
		if r.Reason != test.want {
			t.Errorf("%s: %+v, want %s", test.name, r, test.want)
		}
		var uid outcome.UserID
		if test.name != "no rule on uid" {
			uid = outcome.UserIDOf(uint32(os.Getuid()))
		}
		if r.UID != uid || (r.PID == os.Getpid()) != test.process || (r.Process != "") != test.process {
			t.Errorf("%s: uid %q, pid %d, process %q", test.name, r.UID, r.PID, r.Process)
		}
	}
}
