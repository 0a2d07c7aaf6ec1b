package l4

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// testUpstream has literal endpoints only, so that nothing is looked up.
func testUpstream(t *testing.T, endpoints ...string) *Upstream {
	t.Helper()
	cfg := UpstreamConfig{Name: "u"}
	for _, e := range endpoints {
		cfg.Endpoints = append(cfg.Endpoints, EndpointConfig{Address: e})
	}
	u, err := newUpstream(cfg, Options{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no dialling here")
	}})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// take lists the addresses of one round.
func take(t *testing.T, p *plan) []string {
	t.Helper()
	var got []string
	for !p.exhausted() {
		c, err := p.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.String())
	}
	return got
}

func TestPlanTakesEndpointsInTurn(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1", "127.0.0.2:2", "unix:/three")
	for i, want := range []string{
		"127.0.0.1:1 127.0.0.2:2 unix:/three",
		"127.0.0.2:2 unix:/three 127.0.0.1:1",
		"unix:/three 127.0.0.1:1 127.0.0.2:2",
		"127.0.0.1:1 127.0.0.2:2 unix:/three",
	} {
		if got := strings.Join(take(t, u.newPlan()), " "); got != want {
			t.Errorf("session %d tries %s, want %s", i, got, want)
		}
	}
}

func TestPlanTriesAgainOnlyWhatMayChange(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1", "127.0.0.2:2")
	p := u.newPlan()
	first, _ := p.next(t.Context())
	p.failed(first, &Error{Reason: ReasonRefused})
	second, _ := p.next(t.Context())
	p.failed(second, &Error{Reason: ReasonUpstreamTLS})
	if !p.exhausted() {
		t.Fatal("a round of two addresses is not exhausted after two")
	}
	if !p.again() {
		t.Fatal("nothing to try again, though one was only refused")
	}
	if got := take(t, p); !slices.Equal(got, []string{"127.0.0.1:1"}) {
		t.Errorf("second round tries %v, want only the refused address", got)
	}
	if p.again() {
		t.Error("a third round begins with nothing failed in the second")
	}
}

func TestPlanSiblingIsOfTheOtherFamily(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1")
	e := u.endpoints[0]
	addr := func(s string) candidate { return candidate{endpoint: e, addr: netip.MustParseAddrPort(s)} }
	p := u.newPlan()
	p.lines[0].resolved = true
	p.lines[0].left = []candidate{addr("10.0.0.2:1"), addr("[2001:db8::1]:1"), addr("[2001:db8::2]:1")}
	got, ok := p.sibling(addr("10.0.0.1:1"))
	if !ok || got != addr("[2001:db8::1]:1") {
		t.Fatalf("sibling of an IPv4 address is %v, %v", got, ok)
	}
	if rest := take(t, p); !slices.Equal(rest, []string{"10.0.0.2:1", "[2001:db8::2]:1"}) {
		t.Errorf("left after the sibling was taken: %v", rest)
	}
	if _, ok := p.sibling(addr("10.0.0.1:1")); ok {
		t.Error("a sibling where nothing is left")
	}
}

func TestAlternate(t *testing.T) {
	for _, tt := range []struct {
		in   string
		turn int
		want string
	}{
		{"10.0.0.1", 5, "10.0.0.1"},
		{"::1 127.0.0.1", 0, "::1 127.0.0.1"},
		{"::1 127.0.0.1", 1, "::1 127.0.0.1"},
		{"::ffff:10.0.0.1 2001:db8::1", 0, "10.0.0.1 2001:db8::1"},
		{"10.0.0.1 10.0.0.2 2001:db8::1", 0, "10.0.0.1 2001:db8::1 10.0.0.2"},
		{"10.0.0.1 10.0.0.2 2001:db8::1", 1, "10.0.0.2 2001:db8::1 10.0.0.1"},
	} {
		var ips []netip.Addr
		for _, s := range strings.Fields(tt.in) {
			ips = append(ips, netip.MustParseAddr(s))
		}
		var got []string
		for _, ip := range alternate(ips, tt.turn) {
			got = append(got, ip.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("alternate(%s, %d) = %s, want %s", tt.in, tt.turn, s, tt.want)
		}
	}
}

func TestNewUpstreamNamesWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		cfg  UpstreamConfig
		want string
	}{
		{UpstreamConfig{Name: "db"}, "upstream db: no endpoint"},
		{UpstreamConfig{Name: "db", Endpoints: []EndpointConfig{{Address: "db.internal"}}}, "endpoint db.internal"},
		{UpstreamConfig{Name: "db", Endpoints: []EndpointConfig{{Address: "db.internal:0"}}}, "1 to 65535"},
		{UpstreamConfig{Name: "db", StartTLS: "gopher", Endpoints: []EndpointConfig{{Address: "a:1"}}}, "starttls gopher"},
	} {
		if _, err := newUpstream(tt.cfg, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("newUpstream(%+v) = %v, want an error with %q", tt.cfg, err, tt.want)
		}
	}
}
