package l4

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/limits"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// egress is a configuration with a SOCKS5 listener and rules for one dynamic upstream,
// "out".
func egress(rules ...policy.Rule) Config {
	return Config{
		Listeners: []ListenerConfig{{Name: "in", Addresses: []string{"127.0.0.1:0"}, Request: RequestSOCKS5, Rules: policy.NewRules(rules)}},
		Upstreams: []upstream.Config{{Name: "out", Dynamic: true, Connect: upstream.ConnectConfig{Attempts: 1}}},
	}
}

// socks sends a request for "host:port" to the first listener and returns the reply.
func (f *fixture) socks(to string) (net.Conn, byte) {
	f.t.Helper()
	return f.socksAt(0, to)
}

// socksAt is socks for the listener at index i.
func (f *fixture) socksAt(i int, to string) (net.Conn, byte) {
	f.t.Helper()
	c := f.client(i)
	host, port, _ := net.SplitHostPort(to)
	n, _ := strconv.Atoi(port)
	ask := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if ip, err := netip.ParseAddr(host); err == nil {
		ask = append([]byte{5, 1, 0, 5, 1, 0, map[bool]byte{true: 1, false: 4}[ip.Is4()]}, ip.AsSlice()...)
	}
	if _, err := c.Write(append(ask, byte(n>>8), byte(n))); err != nil {
		f.t.Fatal(err)
	}
	reply := make([]byte, 2+10)
	if n, err := io.ReadFull(c, reply); err != nil {
		f.t.Fatalf("reply %x: %v", reply[:n], err)
	}
	return c, reply[3]
}

func TestSOCKSGoesWhereTheClientWants(t *testing.T) {
	at := l4test.Backend(t, l4test.Echo)
	_, port, _ := net.SplitHostPort(at)
	f := serve(t, Options{}, egress(policy.Rule{Name: "here", Hosts: []string{"localhost"}, Upstream: "out"}))
	c, code := f.socks("LocalHost.:" + port)
	if code != 0 {
		t.Fatalf("reply %d: %+v", code, f.record())
	}
	ping(t, c)
	c.Close()
	r := f.record()
	if r.Destination != "localhost:"+port || r.Rule != "here" || r.Upstream != "out" || r.Address != at || r.Reason != outcome.Closed || r.BytesDown != 5 {
		t.Errorf("record %+v", r)
	}
	var active, moved int64
	for _, tr := range f.Traffic() {
		active += int64(tr.Active)
		if tr.Upstream == "out" {
			moved = tr.Down
		}
	}
	if active != 0 || moved != 5 {
		t.Errorf("traffic %+v", f.Traffic())
	}
}

func TestSOCKSRefusals(t *testing.T) {
	at := l4test.Backend(t, l4test.Echo)
	_, port, _ := net.SplitHostPort(at)
	dead := l4test.RefusedAddress(t)
	cfg := egress(
		policy.Rule{Hosts: []string{"secret.test"}, Deny: "it is secret"},
		policy.Rule{Hosts: []string{"*.any.test"}, Upstream: "out"},
		policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
	zone := &l4test.Zone{Hosts: map[string][]string{"in.any.test": {"127.0.0.1"}, "meta.any.test": {"169.254.169.254"}}}
	cfg.Upstreams[0].DNSServers = []string{l4test.ServeZone(t, zone)}
	cfg.Listeners[0].DNSServers = cfg.Upstreams[0].DNSServers
	f := serve(t, Options{Guarded: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")} }}, cfg)
	for _, c := range []struct {
		to     string
		code   byte
		reason outcome.Reason
		stage  outcome.Stage
	}{
		{"secret.test:" + port, 2, outcome.Denied, outcome.StageRoute},
		{"8.8.8.8:53", 2, outcome.NoRoute, outcome.StageRoute},
		{"in.any.test:" + port, 2, outcome.SpecialAddress, outcome.StageRoute},
		{"meta.any.test:80", 2, outcome.SpecialAddress, outcome.StageRoute},
		{"nowhere.any.test:80", 4, outcome.DNS, outcome.StageDial},
		{f.Listening()[0].Addr, 2, outcome.Loop, outcome.StageRoute},
		{"127.0.0.1:9", 2, outcome.Loop, outcome.StageRoute},
		{"[::ffff:127.0.0.1]:9", 2, outcome.Loop, outcome.StageRoute},
		{dead, 5, outcome.Refused, outcome.StageDial},
	} {
		_, code := f.socks(c.to)
		if r := f.record(); code != c.code || r.Reason != c.reason || r.Stage != c.stage {
			t.Errorf("%s: reply %d, %s at %s (%s); want %d, %s at %s", c.to, code, r.Reason, r.Stage, r.Cause, c.code, c.reason, c.stage)
		}
	}
	if c, code := f.socks(at); code != 0 {
		t.Errorf("what the prefix opens: reply %d", code)
	} else {
		ping(t, c)
	}
}

// A destination that fails has its own breaker, which all its addresses share.
func TestBreakerOfADestination(t *testing.T) {
	at, dead := l4test.Backend(t, l4test.Echo), l4test.RefusedAddress(t)
	cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour, MaxOpen: time.Hour}
	f := serve(t, Options{}, cfg)
	for i, want := range []outcome.Reason{outcome.Refused, outcome.Refused, outcome.BreakerOpen} {
		_, code := f.socks(dead)
		r := f.record()
		if code != 5 || r.Reason != want || want == outcome.BreakerOpen && (r.RetryIn == 0 || !strings.Contains(r.Cause, "connection refused")) {
			t.Errorf("session %d: reply %d, %+v", i, code, r)
		}
	}
	if _, code := f.socks(at); code != 0 {
		t.Errorf("another destination: reply %d", code)
	}
	st := f.Upstreams()[0]
	if st.Destinations != 2 || st.Breakers["open"] != 1 || st.Breakers["closed"] != 1 || len(st.Endpoints) != 1 || st.Endpoints[0].Endpoint != dead {
		t.Errorf("status %+v", st)
	}
}

// A name in rules is looked up once, and the addresses that were judged are dialled.
func TestNamesAreResolvedOnce(t *testing.T) {
	zone := &l4test.Zone{Hosts: map[string][]string{"db.test": {"127.0.0.7", "8.8.8.8", "127.0.0.8"}}}
	cfg := egress(
		policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Deny: "not there"},
		policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.8/32")}, Upstream: "out"})
	cfg.Listeners[0].DNSServers = []string{l4test.ServeZone(t, zone)}
	cfg.Upstreams[0].DNSServers = cfg.Listeners[0].DNSServers
	var mu sync.Mutex
	var dialled []string
	refuse := func(_ context.Context, _, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		dialled = append(dialled, address)
		return nil, l4test.Sys("connect", syscall.ECONNREFUSED)
	}
	f := serve(t, Options{Dial: refuse}, cfg)
	if _, code := f.socks("db.test:5432"); code != 5 {
		t.Errorf("reply %d: %+v", code, f.record())
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(dialled) != "[127.0.0.8:5432]" || zone.Questions() != 2 { // A and AAAA
		t.Errorf("dialled %v after %d questions", dialled, zone.Questions())
	}
}

// A refusal that the client has received is the session's ending, even if the process
// ends before the client closes.
func TestARefusalIsNotOvertakenByShutdown(t *testing.T) {
	f := serve(t, Options{}, egress(policy.Rule{Hosts: []string{"localhost"}, Upstream: "out"}))
	if _, code := f.socks("8.8.8.8:53"); code != 2 {
		t.Errorf("reply %d", code)
	}
	f.cancel()
	if r := f.record(); r.Reason != outcome.NoRoute {
		t.Errorf("record %+v", r)
	}
}

// The client's timeout also bounds lookups for rules.
func TestTheClientsTimeoutBoundsTheLookUpOfRules(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
	cfg.Listeners[0].Request, cfg.Listeners[0].Context = RequestConnect, true
	cfg.Listeners[0].DNSServers = []string{silent.LocalAddr().String()}
	f := serve(t, Options{}, cfg)
	fmt.Fprintf(f.client(0), "CONNECT db.test:1 HTTP/1.0\r\nAmbassador-Context: timeout=100ms\r\n\r\n")
	if r := f.record(); r.Reason != outcome.DNS || r.Stage != outcome.StageRoute || time.Duration(r.Duration) > upstream.LookupTimeout/2 {
		t.Errorf("record %+v", r)
	}
}

// Bytes that a client sends right after its request, without waiting for the answer,
// are relayed completely, with every transport on either side. So is the client's FIN.
func TestEarlyBytesInEveryCombination(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	cert, pool := l4test.SelfSigned(t)
	secure := l4test.Backend(t, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		io.Copy(s, s)
		s.CloseWrite()
	})
	plain := l4test.Backend(t, l4test.Echo)
	toTLS := func(string, string) (*tls.Config, error) {
		return &tls.Config{RootCAs: pool, ServerName: "localhost"}, nil
	}
	for n := range 16 {
		inTLS, outTLS, connect, proxied := n&1 > 0, n&2 > 0, n&4 > 0, n&8 > 0
		t.Run(fmt.Sprintf("TLS in %v, TLS out %v, CONNECT %v, PROXY %v", inTLS, outTLS, connect, proxied), func(t *testing.T) {
			cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
			to := netip.MustParseAddrPort(plain)
			if outTLS {
				to, cfg.Upstreams[0].TLS = netip.MustParseAddrPort(secure), toTLS
			}
			if proxied {
				cfg.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			}
			ask, reply := "\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01"+string([]byte{byte(to.Port() >> 8), byte(to.Port())}), 12
			if connect {
				cfg.Listeners[0].Request = RequestConnect
				ask, reply = "CONNECT "+to.String()+" HTTP/1.0\r\n\r\n", len("HTTP/1.0 200 OK\r\n\r\n")
			}
			var theirs tls.Certificate
			if inTLS {
				with, cert, _ := tlsListener(t, plain)
				cfg.Listeners[0].TLS, theirs = with.Listeners[0].TLS, cert
			}
			f := serve(t, Options{}, cfg)
			raw := f.client(0)
			if proxied {
				io.WriteString(raw, "PROXY TCP4 192.0.2.7 192.0.2.1 1000 2000\r\n")
			}
			var c interface {
				net.Conn
				CloseWrite() error
			} = raw
			if inTLS {
				c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{theirs}})
			}
			go func() { // ends with the connection
				c.Write(append([]byte(ask), payload...))
				c.CloseWrite()
				raw.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || len(got) < reply || !bytes.Equal(got[reply:], payload) {
				t.Errorf("%d bytes, %v: %+v", len(got), err, f.record())
				return
			}
			r := f.record()
			if r.Reason != outcome.Closed || r.BytesUp != int64(len(payload)) || r.BytesDown != r.BytesUp || r.Truncated || proxied != (r.Client == "192.0.2.7:1000") {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// A long session does not keep the rules and the upstreams of the configuration that it
// began with.
func TestSessionsKeepNoOldRules(t *testing.T) {
	at := l4test.Backend(t, l4test.Echo)
	open := policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"}
	cfg := egress(open)
	cfg.Listeners[0].Limits.Connections, cfg.Listeners[0].Timeouts.Handshake = 2, time.Second // a timer keeps them for this long
	gone := make(chan bool, 1)
	runtime.AddCleanup(cfg.Listeners[0].Rules, func(gone chan bool) { gone <- true }, gone)
	f := serve(t, Options{}, cfg)
	c, code := f.socks(at)
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	ping(t, c)
	cfg.Listeners = slices.Clone(cfg.Listeners)
	cfg.Listeners[0].Rules = policy.NewRules([]policy.Rule{open, open})
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	f.until("the old rules are collected", func() bool {
		runtime.GC()
		select {
		case <-gone:
			return true
		default:
			return false
		}
	})
	ping(t, c)
	c.Close()
	if r := f.record(); r.Reason != outcome.Closed {
		t.Errorf("record %+v", r)
	}
	if live, clients := f.listeners[0].limiter.Counts(); live != 0 || clients != 0 {
		t.Errorf("%d live, of %d clients", live, clients)
	}
}

// Two rules that keep different addresses of a name have separate breakers: clients of
// one rule cannot open the breaker for those of the other.
func TestRulesOfANameHaveBreakersOfTheirOwn(t *testing.T) {
	zone := &l4test.Zone{Hosts: map[string][]string{"db.test": {"127.0.0.1", "127.0.0.8"}}}
	_, port, _ := net.SplitHostPort(l4test.Backend(t, l4test.Echo))
	rules := func(prefix string) *policy.Rules {
		return policy.NewRules([]policy.Rule{{IPs: []netip.Prefix{netip.MustParsePrefix(prefix)}, Upstream: "out"}})
	}
	cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.8/32")}, Upstream: "out"}) // nothing listens there
	cfg.Listeners = append(cfg.Listeners, cfg.Listeners[0])
	cfg.Listeners[1].Name, cfg.Listeners[1].Rules = "other", rules("127.0.0.1/32")
	for i := range cfg.Listeners {
		cfg.Listeners[i].DNSServers = []string{l4test.ServeZone(t, zone)}
	}
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
	f := serve(t, Options{}, cfg)
	for i := range 4 {
		f.socks("db.test:" + port)
		if r := f.record(); i == 3 && r.Reason != outcome.BreakerOpen {
			t.Fatalf("record: %+v", r)
		}
	}
	c, code := f.socksAt(1, "db.test:"+port)
	if code != 0 {
		t.Fatalf("reply %d by the rule whose address is well: %+v", code, f.record())
	}
	ping(t, c)
}

// Names that no server answers use at most a fixed number of lookups, and another
// client's name gets its turn.
func TestSlowLookupsOfOneClientKeepNobodyOut(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0") // a name server that does not answer
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := egress(policy.Rule{Hosts: []string{"*.test"}, Upstream: "out"})
	cfg.Upstreams[0].DNSServers = []string{silent.LocalAddr().String()}
	cfg.Listeners = append(cfg.Listeners, cfg.Listeners[0])
	cfg.Listeners[1].Name = "other"
	f := serve(t, Options{}, cfg)
	f.lookups = limits.NewTurns(3)
	ask := func(name string) {
		c := f.client(0)
		c.Write(append(append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(name))}, name...), 0, 80))
	}
	for i := range 9 {
		ask(fmt.Sprintf("n%d.test", i))
	}
	f.until("all to wait", func() bool {
		return f.lookups.InUse() == 3 && f.lookups.Waiting(sourceAt("127.0.0.1")) == 6
	})
	f.stopAll(errKilled(""))
	f.until("all turns to be given back", func() bool { return f.active() == 0 && f.lookups.InUse() == 0 })
}
