package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/destination"
	"ambassador/l4/evicted"
	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// The oldest of many destinations are removed from the destination cache.
func TestDestinationsAreForgotten(t *testing.T) {
	u, err := New(Config{Name: "out", Dynamic: true, Breaker: policy.BreakerConfig{Failures: 1, Open: time.Minute}, Connect: ConnectConfig{Attempts: 1}},
		Deps{Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, l4test.Sys("connect", syscall.ECONNREFUSED)
		}})
	if err != nil {
		t.Fatal(err)
	}
	open := func(netip.Addr) (string, bool) { return "", true }
	nobody := func(netip.AddrPort) bool { return false }
	before := heap()
	for i := range 100_000 {
		d := &destination.Destination{Addr: netip.AddrFrom4([4]byte{8, byte(i >> 16), byte(i >> 8), byte(i)}), Port: 443, May: open, Ours: nobody}
		_, failure := u.ConnectFor(t.Context(), Want{To: &target{cached: u.cached(d), destination: d}, Connect: u.cfg.Connect}, noProgress)
		if failure == nil || failure.Reason != outcome.Refused {
			t.Fatal(failure)
		}
	}
	const all = maxCached + evicted.Max
	if st := u.Status(); all != 4096 || st.Destinations != all || st.Breakers["open"] != all || len(st.Endpoints) != maxListed {
		t.Errorf("%d remembered, %v, %d listed", st.Destinations, st.Breakers, len(st.Endpoints))
	}
	if grown := heap() - before; grown > 10<<20 {
		t.Errorf("100,000 destinations keep %d KiB", grown>>10)
	} else {
		t.Logf("100,000 destinations keep %d KiB", grown>>10)
	}
	runtime.KeepAlive(u)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestOpenBreakerLeavesNothingToDial(t *testing.T) {
	u := dynamic(t, Config{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}}, nil)
	d := &destination.Destination{Host: "db.test", Port: 1, May: everything, Ours: notOurs}
	s := u.cached(d)
	others := s.members(u, []netip.Addr{netip.MustParseAddr("10.0.0.7")})
	c, _ := others[0].permit(time.Now(), 0)
	u.giveUp(c, &outcome.Error{Reason: outcome.Refused, Err: l4test.Sys("connect", syscall.ECONNREFUSED)})
	p := &plan{upstream: u, want: Want{To: &target{cached: s, destination: d}}}
	if err := p.want.To.find(t.Context(), u, ""); err != nil || len(p.members()) != 0 || len(p.known()) != 1 {
		t.Errorf("find: %v; %d to dial, %d known", err, len(p.members()), len(p.known()))
	}
}

// The owner of a name chooses how many addresses it has, so not all are kept.
func TestManyAddressesAreNotKept(t *testing.T) {
	u := dynamic(t, Config{}, nil)
	var ips []netip.Addr
	for i := range 4000 {
		ips = append(ips, netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)}))
	}
	d := &destination.Destination{Host: "db.test", Port: 1, IPs: ips, May: everything, Ours: notOurs}
	to := &target{cached: u.cached(d), destination: d}
	if err := to.find(t.Context(), u, ""); err != nil {
		t.Fatal(err)
	}
	if got := len(to.members); got != destination.MaxDialled {
		t.Errorf("%d may be dialled", got)
	}
	if kept := cap(to.cached.endpoint.members); kept > maxKnownAddresses {
		t.Errorf("%d addresses are kept alive", kept)
	}
}

// dynamic returns a dynamic upstream with the configuration.
func dynamic(t *testing.T, cfg Config, dial netconn.DialFunc) *Upstream {
	t.Helper()
	cfg.Name, cfg.Dynamic = "out", true
	u, err := New(cfg, Deps{Dial: dial})
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
			u := dynamic(t, Config{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}}, silent)
			d := &destination.Destination{Host: "db.test", Port: 1, IPs: c.ips, May: everything, Ours: notOurs}
			w := Want{To: &target{cached: u.cached(d), destination: d}, Connect: u.cfg.Connect}
			if c.timeout > 0 {
				w.Connect.Timeout = c.timeout // as client hints ask for
			}
			_, failure := u.ConnectFor(t.Context(), w, noProgress)
			if got := w.To.cached.breaker.State(); failure == nil || failure.Reason != outcome.Timeout || got != c.want {
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
	u := &Upstream{destinationCache: &destinationCache{byName: map[string]*cached{}}}
	cached := func(i int) *cached {
		return u.cached(&destination.Destination{Host: fmt.Sprintf("h%d.test", i), Port: 443})
	}
	first, second := cached(0), cached(1)
	for i := 2; i < maxCached; i++ {
		cached(i)
		if i%100 == 0 && cached(0) != first {
			t.Fatal("a destination in use was forgotten")
		}
	}
	cached(maxCached)
	if all := u.destinationCache.list(); len(all) != maxCached || all[0] != cached(maxCached) || slices.Contains(all, second) || !slices.Contains(all, first) {
		t.Errorf("%d are remembered", len(all))
	}
	if second.newer != nil || second.older != nil {
		t.Error("a destination that is forgotten holds on to others")
	}
	if again := cached(1); again == second || again.endpoint.host != "h1.test" || again.endpoint.address != "h1.test:443" {
		t.Errorf("%+v", again.endpoint)
	}
	if six := u.cached(&destination.Destination{Addr: netip.MustParseAddr("2600::1"), Port: 443}).endpoint; six.host != "2600::1" || six.address != "[2600::1]:443" {
		t.Errorf("host %q of %s", six.host, six.address)
	}
}

// TestTrialsOfDestinations asserts that the addresses of a destination whose breaker is open
// can be tried at once, and no others; a trial that passes closes the breaker.
func TestTrialsOfDestinations(t *testing.T) {
	up := false
	u := dynamic(t, Config{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}, Connect: ConnectConfig{Attempts: 1}},
		func(ctx context.Context, _, address string) (net.Conn, error) {
			if up || address == "192.0.2.9:443" {
				return says("")(ctx)
			}
			return nil, l4test.Sys("connect", syscall.ECONNREFUSED)
		})
	ask := func(host, ip string) {
		d := &destination.Destination{Host: host, Port: 443, IPs: addrs(ip), May: everything, Ours: notOurs}
		if conn, err := u.ConnectFor(t.Context(), Want{To: u.Target(d), Connect: u.cfg.Connect}, noProgress); err == nil {
			conn.Abort(nil)
		}
	}
	ask("well.test", "192.0.2.9")
	ask("dead.test", "192.0.2.1")
	memory, _ := u.cached(&destination.Destination{Host: "dead.test", Port: 443}).breaker.Memory(time.Now())
	u.recall(u.cached(&destination.Destination{Host: "recalled.test", Port: 443}), evicted.Destination{Key: "recalled.test:443", Breaker: memory, Cause: "refused", Failed: time.Now()})
	all := u.Trials(t.Context())
	if len(all) != 1 || all[0].Endpoint != "dead.test:443" || all[0].Host != "dead.test" || all[0].Address != "192.0.2.1:443" {
		t.Fatalf("%+v, want the address of dead.test", all)
	}
	state := func(want string) {
		t.Helper()
		if n := u.Status().Breakers[want]; n == 0 {
			t.Errorf("no breaker is %s", want)
		}
	}
	if err := all[0].Now(t.Context()); err == nil {
		t.Error("a trial of a dead address passed")
	}
	state("open")
	up = true
	if err := all[0].Now(t.Context()); err != nil {
		t.Error(err)
	}
	if again := u.Trials(t.Context()); len(again) != 0 {
		t.Errorf("%+v is left to try", again)
	}
}

// The open breaker of an evicted destination stays open, and its cause is kept. Of the
// evicted breakers, the oldest is forgotten first.
func TestBreakersOutliveTheirDestinations(t *testing.T) {
	u := dynamic(t, Config{Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}, Connect: ConnectConfig{Attempts: 1}},
		func(context.Context, string, string) (net.Conn, error) {
			return nil, l4test.Sys("connect", syscall.ECONNREFUSED)
		})
	ask := func(i int) *outcome.Error {
		d := &destination.Destination{Host: fmt.Sprintf("h%d.test", i), Port: 443, IPs: addrs("192.0.2.1"), May: everything, Ours: notOurs}
		_, failure := u.ConnectFor(t.Context(), Want{To: &target{cached: u.cached(d), destination: d}, Connect: u.cfg.Connect}, noProgress)
		if failure == nil {
			t.Fatal("connected")
		}
		return failure
	}
	const all = maxCached + evicted.Max
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
		for _, text := range []string{"the circuit breaker of", "connection refused"} {
			if !strings.Contains(e.Error(), text) {
				t.Errorf("%v; want %q", e, text)
			}
		}
		fill(maxCached + 1) // it is evicted again, with another place in the ring
		if e := ask(oldest); e.Reason != outcome.BreakerOpen {
			t.Errorf("after it came back: %v", e)
		}
	}
	forgotten := ask(1)
	if forgotten.Reason != outcome.Refused {
		t.Errorf("a destination of long ago is remembered: %v", forgotten)
	}
	unresolved := u.cached(&destination.Destination{Host: fmt.Sprintf("h%d.test", next-2000), Port: 443})
	p := &plan{upstream: u, want: Want{To: &target{cached: unresolved, destination: &destination.Destination{}}}}
	if text := p.refuse(time.Now()).Error(); !strings.Contains(text, fmt.Sprintf("the circuit breaker of h%d.test:443 is open", next-2000)) || !strings.Contains(text, "connection refused") {
		t.Errorf("before its name is looked up: %s", text)
	}
	if st := u.Status(); st.Destinations > all || st.Destinations < all-8 {
		t.Errorf("%d destinations, want about %d", st.Destinations, all)
	}
	u.emptyCache()
	if st := u.Status(); st.Destinations != 0 {
		t.Errorf("%d destinations are left", st.Destinations)
	}
}

// An address keeps its state while it is one of the addresses of its name, and all these
// addresses share the destination's breaker.
func TestSiteMembers(t *testing.T) {
	u := &Upstream{destinationCache: &destinationCache{byName: map[string]*cached{}}}
	s := u.cached(&destination.Destination{Host: "h.test", Port: 443})
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
				if old.addr == m.addr && old.Address != m.Address {
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
