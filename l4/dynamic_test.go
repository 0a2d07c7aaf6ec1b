package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/policy"
)

// Clients that ask for the same destination share its breaker. While it is open, the
// rules of each still judge the destination, and no address is dialled that only the
// rules of another have judged.
func TestOpenBreakerAndOtherRules(t *testing.T) {
	dead := refusedAddress(t)
	cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 1, Open: time.Hour}
	f := serve(t, Options{}, cfg)
	for _, want := range []outcome.Reason{outcome.Refused, outcome.BreakerOpen} {
		f.socks(dead)
		if r := f.record(); r.Reason != want {
			t.Fatalf("opened: %+v, want %s", r, want)
		}
	}
	cfg.Listeners[0].Rules = policy.NewRules([]policy.Rule{{Upstream: "out"}})
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	_, code := f.socks(dead)
	if r := f.record(); code != 2 || r.Reason != outcome.SpecialAddress {
		t.Errorf("reply %d: %+v, want special_address", code, r)
	}
}

func TestOpenBreakerLeavesNothingToDial(t *testing.T) {
	u := dynamic(t, UpstreamConfig{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}}, nil)
	d := &destination{host: "db.test", port: 1, may: everything, ours: notOurs}
	s := u.site(d)
	others := s.members(u, []netip.Addr{netip.MustParseAddr("10.0.0.7")})
	c, _ := others[0].permit(time.Now(), 0)
	u.giveUp(c, &outcome.Error{Reason: outcome.Refused, Err: sys("connect", syscall.ECONNREFUSED)})
	p := &plan{upstream: u, want: want{to: &target{site: s, destination: d}}}
	if err := p.to.find(t.Context(), u); err != nil || len(p.members()) != 0 || len(p.known()) != 1 {
		t.Errorf("find: %v; %d to dial, %d known", err, len(p.members()), len(p.known()))
	}
}

// The owner of a name chooses how many addresses it has, so not all are kept.
func TestManyAddressesAreNotKept(t *testing.T) {
	u := dynamic(t, UpstreamConfig{}, nil)
	var ips []netip.Addr
	for i := range 4000 {
		ips = append(ips, netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)}))
	}
	d := &destination{host: "db.test", port: 1, ips: ips, may: everything, ours: notOurs}
	to := &target{site: u.site(d), destination: d}
	if err := to.find(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if got := len(to.members); got != maxDialled {
		t.Errorf("%d may be dialled", got)
	}
	if kept := cap(to.site.endpoint.members); kept > maxKnownAddresses {
		t.Errorf("%d addresses are kept alive", kept)
	}
}

// dynamic returns a dynamic upstream with the configuration.
func dynamic(t *testing.T, cfg UpstreamConfig, dial DialFunc) *Upstream {
	t.Helper()
	cfg.Name, cfg.Dynamic = "out", true
	u, err := newUpstream(cfg, upstreamDeps{dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func everything(netip.Addr) (string, bool) { return "", true }

func notOurs(netip.AddrPort) bool { return false }

// A timeout of the client's own says nothing about the upstream. Else a client that asks
// for timeout=1ms would open the breaker for all.
func TestImpatientClientsOpenNoBreaker(t *testing.T) {
	silent := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for _, c := range []struct {
		name    string
		ips     []netip.Addr
		timeout time.Duration // the client's own; 0: none
		want    policy.BreakerState
	}{
		{"impatient", addrs("8.8.8.8"), time.Millisecond, policy.Closed},
		{"impatient in a race", addrs("8.8.8.8", "2606:4700::1"), raceDelay + 50*time.Millisecond, policy.Closed},
		{"patient", addrs("8.8.8.8"), 0, policy.Open},
	} {
		synctest.Test(t, func(t *testing.T) {
			u := dynamic(t, UpstreamConfig{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}}, silent)
			d := &destination{host: "db.test", port: 1, ips: c.ips, may: everything, ours: notOurs}
			w := want{to: &target{site: u.site(d), destination: d}, connect: u.cfg.Connect}
			w.connect, _ = narrow(w.connect, preface.Hints{Timeout: c.timeout})
			_, failure := u.connectFor(t.Context(), w, untold)
			if got := w.to.site.breaker.State(); failure == nil || failure.Reason != outcome.Timeout || got != c.want {
				t.Errorf("%s: %v, and the breaker is %v, want %v", c.name, failure, got, c.want)
			}
		})
	}
}

func addrs(all ...string) (out []netip.Addr) {
	for _, s := range all {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// The cache evicts the destination that was used least recently. An evicted one keeps no
// others in memory.
func TestVisitedForgetsTheOldest(t *testing.T) {
	u := &Upstream{visited: &visited{byName: map[string]*site{}}}
	site := func(i int) *site { return u.site(&destination{host: fmt.Sprintf("h%d.test", i), port: 443}) }
	first, second := site(0), site(1)
	for i := 2; i < maxVisited; i++ {
		site(i)
		if i%100 == 0 && site(0) != first {
			t.Fatal("a destination in use was forgotten")
		}
	}
	site(maxVisited)
	if all := u.visited.list(); len(all) != maxVisited || all[0] != site(maxVisited) || slices.Contains(all, second) || !slices.Contains(all, first) {
		t.Errorf("%d are remembered", len(all))
	}
	if second.newer != nil || second.older != nil {
		t.Error("a destination that is forgotten holds on to others")
	}
	if again := site(1); again == second || again.endpoint.host != "h1.test" || again.endpoint.address != "h1.test:443" {
		t.Errorf("%+v", again.endpoint)
	}
	if six := u.site(&destination{addr: netip.MustParseAddr("2600::1"), port: 443}).endpoint; six.host != "2600::1" || six.address != "[2600::1]:443" {
		t.Errorf("host %q of %s", six.host, six.address)
	}
}

// The open breaker of an evicted destination stays open, and its cause is kept. Of the
// evicted breakers, the oldest is forgotten first.
func TestBreakersOutliveTheirDestinations(t *testing.T) {
	u := dynamic(t, UpstreamConfig{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}, Connect: ConnectConfig{Attempts: 1}},
		func(context.Context, string, string) (net.Conn, error) {
			return nil, sys("connect", syscall.ECONNREFUSED)
		})
	ask := func(i int) *outcome.Error {
		d := &destination{host: fmt.Sprintf("h%d.test", i), port: 443, ips: addrs("192.0.2.1"), may: everything, ours: notOurs}
		_, failure := u.connectFor(t.Context(), want{to: &target{site: u.site(d), destination: d}, connect: u.cfg.Connect}, untold)
		if failure == nil {
			t.Fatal("connected")
		}
		return failure
	}
	const all = maxVisited + maxFaded
	next := 0
	fill := func(n int) {
		for range n {
			if e := ask(next); e.Reason != outcome.Refused {
				t.Fatalf("%d: %v", next, e)
			}
			next++
		}
	}
	fill(all)
	for range 3 { // each recall makes it one of the newest
		oldest := next - all + 8
		e := ask(oldest)
		if e.Reason != outcome.BreakerOpen || e.RetryIn < 40*time.Minute {
			t.Fatalf("%v, retry in %v", e, e.RetryIn)
		}
		for _, text := range []string{"is left alone", "connection refused"} {
			if !strings.Contains(e.Error(), text) {
				t.Errorf("%v; want %q", e, text)
			}
		}
		fill(maxVisited + 1) // it is evicted again, with another place in the ring
		if e := ask(oldest); e.Reason != outcome.BreakerOpen {
			t.Errorf("after it came back: %v", e)
		}
	}
	forgotten := ask(1)
	if forgotten.Reason != outcome.Refused {
		t.Errorf("a destination of long ago is remembered: %v", forgotten)
	}
	unresolved := u.site(&destination{host: fmt.Sprintf("h%d.test", next-2000), port: 443})
	p := &plan{upstream: u, want: want{to: &target{site: unresolved, destination: &destination{}}}}
	if text := p.refuse(time.Now()).Error(); !strings.Contains(text, fmt.Sprintf("h%d.test:443 is left alone", next-2000)) || !strings.Contains(text, "connection refused") {
		t.Errorf("before its name is looked up: %s", text)
	}
	if st := u.status(); st.Destinations > all || st.Destinations < all-8 {
		t.Errorf("%d destinations, want about %d", st.Destinations, all)
	}
	u.forgetSites()
	if st := u.status(); st.Destinations != 0 {
		t.Errorf("%d destinations are left", st.Destinations)
	}
}

// An address keeps its state while it is one of the addresses of its name, and all these
// addresses share the destination's breaker.
func TestSiteMembers(t *testing.T) {
	u := &Upstream{visited: &visited{byName: map[string]*site{}}}
	s := u.site(&destination{host: "h.test", port: 443})
	var last []member
	for _, ips := range []string{"1", "1", "2", "1 2", "2 1 3", "1", "3", "1"} {
		var want []netip.Addr
		for i := 0; i < len(ips); i += 2 {
			want = append(want, netip.MustParseAddr("192.0.2."+ips[i:i+1]))
		}
		got := s.members(u, want)
		for i, m := range got {
			if m.addr != netip.AddrPortFrom(want[i], 443) || m.breaker != s.breaker || m.endpoint != s.endpoint || m.upstream != u {
				t.Errorf("%s: member %d is %s", ips, i, m.name)
			}
			for _, old := range last {
				if old.addr == m.addr && old.address != m.address {
					t.Errorf("%s: what was known of %s is lost", ips, m.name)
				}
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d members", ips, len(got))
		}
		last = got
	}
	e := s.endpoint
	e.note(last[0].candidate(policy.Ticket{}, time.Now()), outcome.Refused, fmt.Errorf("no"))
	if st := e.status(); st.LastFailure == nil || time.Since(*st.LastFailure) > time.Minute || st.LastSuccess != nil || st.LastError != "no" {
		t.Errorf("%+v", st)
	}
	e.note(last[0].candidate(policy.Ticket{}, time.Now()), outcome.OK, nil)
	if st := e.status(); st.LastFailure == nil || st.LastSuccess == nil || st.LastError != "" {
		t.Errorf("%+v", st)
	}
}
