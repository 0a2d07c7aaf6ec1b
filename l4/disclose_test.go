package l4

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// ask sends a CONNECT request to a listener and returns the whole answer.
func (f *fixture) ask(listener int, to string) string {
	f.t.Helper()
	c := f.client(listener)
	defer c.Close()
	fmt.Fprintf(c, "CONNECT %s HTTP/1.0\r\n\r\n", to)
	text, err := io.ReadAll(c)
	if err != nil {
		f.t.Errorf("%s: %v", to, err)
	}
	return string(text)
}

// A refused client does not learn the addresses of a name, nor the address of our name
// server. The record has them.
func TestRefusalsDiscloseNoAddress(t *testing.T) {
	const hidden = "10.1.2.3"
	z := &l4test.Zone{Hosts: map[string][]string{
		"inner.out.test": {hidden}, "denied.test": {"10.2.0.1"}, "outer.test": {"10.3.0.1"}, "self.test": {"127.0.0.1"},
	}}
	dns := l4test.ServeZone(t, z)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent.Close() // nothing answers there
	cfg := egress(
		policy.Rule{Hosts: []string{"*.out.test"}, Upstream: "out"},
		policy.Rule{Hosts: []string{"lost.test"}, Upstream: "lost"},
		policy.Rule{Deny: "not there", IPs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}},
		policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
	cfg.Listeners[0].Request, cfg.Listeners[0].DNSServers = RequestConnect, []string{dns}
	cfg.Upstreams[0].DNSServers = []string{dns}
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "lost", Dynamic: true, DNSServers: []string{silent.LocalAddr().String()},
		Connect: upstream.ConnectConfig{Attempts: 1}})
	f := serve(t, Options{}, cfg)
	own := f.Listening()[0].Addr
	for _, tt := range []struct {
		to, cause, public string
		reason            outcome.Reason
	}{
		{"inner.out.test:80", hidden + " is private", "inner.out.test:80 leads to special addresses only", outcome.SpecialAddress},
		{"self.test:" + own[len("127.0.0.1:"):], "127.0.0.1 is ourselves", "leads back to the ambassador", outcome.Loop},
		{"denied.test:80", "not there", "not there", outcome.Denied},
		{"outer.test:80", "none of the rules", "none of the rules", outcome.NoRoute},
		{"unknown.out.test:80", "lookup unknown.out.test on ", "lookup unknown.out.test: no such host", outcome.DNS},
		{"lost.test:80", silent.LocalAddr().String(), "lookup lost.test: the name server failed", outcome.DNS},
	} {
		hears := f.ask(0, tt.to)
		if !strings.Contains(hears, string(tt.reason)+": ") || strings.Count(hears, tt.public) != 2 || strings.Contains(hears, "10.") || strings.Contains(hears, "127.") {
			t.Errorf("%s: hears %q, want %s twice, and no address", tt.to, hears, tt.public)
		}
		if r := f.record(); r.Reason != tt.reason || !strings.Contains(r.Cause, tt.cause) {
			t.Errorf("%s: record %s, %s; want %s, %s", tt.to, r.Reason, r.Cause, tt.reason, tt.cause)
		}
	}
}

// If a destination's breaker was opened through another listener, which may allow more,
// a client does not learn an address either.
func TestOpenBreakerDisclosesNoAddress(t *testing.T) {
	z := &l4test.Zone{Hosts: map[string][]string{"inner.test": {"127.0.0.1"}}}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	to := fmt.Sprintf("inner.test:%d", dead.Addr().(*net.TCPAddr).Port)
	cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"})
	dns := []string{l4test.ServeZone(t, z)}
	other := ListenerConfig{Name: "other", Addresses: []string{"127.0.0.1:0"}, Rules: policy.NewRules([]policy.Rule{{Hosts: []string{"inner.test"}, Upstream: "out"}})}
	cfg.Listeners = append(cfg.Listeners, other)
	for i := range cfg.Listeners {
		cfg.Listeners[i].Request, cfg.Listeners[i].DNSServers = RequestConnect, dns
	}
	cfg.Upstreams[0].DNSServers = dns
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 1, Open: time.Minute}
	f := serve(t, Options{}, cfg)
	if hears := f.ask(0, to); !strings.Contains(hears, "refused: ") {
		t.Fatalf("the one that may go there hears %q", hears)
	}
	f.record()
	hears := f.ask(1, to)
	if !strings.Contains(hears, "breaker_open: ") || !strings.Contains(hears, "next attempt in ") || !strings.Contains(hears, "Retry-After: ") || strings.Contains(hears, "127.") {
		t.Errorf("the other hears %q", hears)
	}
	if r := f.record(); r.Reason != outcome.BreakerOpen || !strings.Contains(r.Cause, "127.0.0.1:") {
		t.Errorf("record %s, %s", r.Reason, r.Cause)
	}
}

// Failures that are not changed for the client: they concern the client itself or the
// configuration.
func TestFailuresThatClientsRead(t *testing.T) {
	open := &outcome.Refusal{Reason: outcome.BreakerOpen, Text: "10.0.0.7:443 failed", RetryIn: 1500 * time.Millisecond}
	public := *open
	public.Public = "the circuit breaker is open; next attempt in 1.5s"
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"a destination that may be reached", l4test.Sys("connect", syscall.ECONNREFUSED), "dial out: connect: connect: connection refused"},
		{"the words of a rule", errors.New("rule r: not on the list"), "dial out: rule r: not on the list"},
		{"a breaker of a configured upstream", open, "dial out: 10.0.0.7:443 failed"},
		{"a breaker of a destination", &public, "dial out: the circuit breaker is open; next attempt in 1.5s"},
		{"a look-up of a configured upstream", fmt.Errorf("a: %w", &net.DNSError{Err: "read udp 10.0.0.1:1->10.0.0.2:53", Name: "db", Server: "10.0.0.2:53", IsTimeout: true}), "dial out: lookup db: no answer in time"},
		{"our own connection", errOwnDial, "dial out: " + errOwnDial.Text},
	} {
		e := &outcome.Error{Stage: outcome.StageDial, Reason: outcome.Refused, Upstream: "out", RetryIn: time.Second, Err: tt.err}
		got := ending.ForClient(e)
		if got.Error() != tt.want || got.Reason != e.Reason || got.RetryIn != e.RetryIn || e.Err != tt.err {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
	}
}
