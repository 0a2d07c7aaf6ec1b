package l4

import (
	"net/netip"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// Clients that ask for the same destination share its breaker. While it is open, the
// rules of each still judge the destination, and no address is dialled that only the
// rules of another have judged.
func TestOpenBreakerAndOtherRules(t *testing.T) {
	dead := l4test.RefusedAddress(t)
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
