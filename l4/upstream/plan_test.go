package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/lookup"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// testUpstream returns an upstream whose endpoints are addresses, so that it looks up no
// name.
func testUpstream(t *testing.T, endpoints ...string) *Upstream {
	t.Helper()
	cfg := Config{Name: "u"}
	for _, e := range endpoints {
		cfg.Endpoints = append(cfg.Endpoints, EndpointConfig{Address: e})
	}
	u, err := New(cfg, Deps{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no dialling here")
	}})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// placesOf returns addresses like a lookup, the first of the preferred family.
func placesOf(addrs ...string) (out lookup.Places) {
	for _, a := range addrs {
		addr := netip.MustParseAddrPort(a)
		other := len(out.All) > 0 && addr.Addr().Is4() != out.All[0].Addr.Addr().Is4()
		out.All = append(out.All, lookup.Place{Addr: addr, Other: other})
	}
	return out
}

// take lists the addresses of one round.
func take(t *testing.T, p *plan) []string {
	t.Helper()
	var got []string
	for {
		c, err := p.next(t.Context())
		if errors.Is(err, ending.ErrTriedAll) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		c.at.settle(c.ticket, policy.Success, "")
		c.release()
		got = append(got, c.String())
	}
}

// firsts returns the first choices of n sessions as one text.
func firsts(t *testing.T, u *Upstream, n int) string {
	t.Helper()
	var got []string
	for range n {
		c, err := (&plan{upstream: u}).next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.release()
		got = append(got, c.String())
	}
	return strings.Join(got, " ")
}

func TestPlanTakesAddressesInTurn(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1", "127.0.0.2:2", "unix:/three")
	if got, want := firsts(t, u, 4), "127.0.0.1:1 127.0.0.2:2 unix:/three 127.0.0.1:1"; got != want {
		t.Errorf("sessions begin with %s, want %s", got, want)
	}
	if got := take(t, &plan{upstream: u}); len(got) != 3 {
		t.Errorf("one session tries %v, want each address once", got)
	}
}

func TestPlanByWeightAndPriority(t *testing.T) {
	u, err := New(Config{Name: "u", Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour},
		Endpoints: []EndpointConfig{{Address: "127.0.0.1:1", Weight: 2}, {Address: "127.0.0.2:1"}, {Address: "127.0.0.3:1", Priority: 1}}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if got := firsts(t, u, 300); strings.Count(got, "0.0.1:") != 200 || strings.Count(got, "0.0.2:") != 100 {
		t.Errorf("sessions begin with %s", got)
	}
	if got := take(t, &plan{upstream: u}); len(got) != 3 || got[2] != "127.0.0.3:1" {
		t.Errorf("one session tries %v, want the lower priority last", got)
	}
	for _, m := range u.members()[:2] {
		fail(t, m.Address)
	}
	if got := firsts(t, u, 2); got != "127.0.0.3:1 127.0.0.3:1" {
		t.Errorf("with both others open: %s", got)
	}
}

// fail settles one attempt at an address as failed.
func fail(t *testing.T, a *Address) {
	t.Helper()
	c, ok := a.permit(time.Now(), 0)
	if !ok {
		t.Fatalf("%s: not permitted", a.name)
	}
	a.settle(c.ticket, policy.Failure, "nobody there")
	c.release()
}

func TestPlanLeastConnections(t *testing.T) {
	u, err := New(Config{Name: "u", Balance: policy.LeastConnections, Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1")}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	u.members()[0].places.Store(3)
	if got := firsts(t, u, 3); got != "127.0.0.2:1 127.0.0.2:1 127.0.0.2:1" {
		t.Errorf("sessions begin with %s", got)
	}
}

func TestPlanTriesAgainOnlyWhatMayChange(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1", "127.0.0.2:2")
	p := &plan{upstream: u}
	first, _ := p.next(t.Context())
	p.failed(first, &outcome.Error{Reason: outcome.Refused})
	second, _ := p.next(t.Context())
	p.failed(second, &outcome.Error{Reason: outcome.UpstreamTLS})
	if _, err := p.next(t.Context()); !errors.Is(err, ending.ErrTriedAll) {
		t.Fatalf("a third address of two: %v", err)
	}
	if !p.again() {
		t.Fatal("nothing to try again, though one was only refused")
	}
	if got := take(t, p); !slices.Equal(got, []string{first.String()}) {
		t.Errorf("second round tries %v, want only the refused address", got)
	}
}

func TestPlanFamiliesTakeTurns(t *testing.T) {
	u := testUpstream(t, "name:1")
	u.learned(u.endpoints[0], placesOf("[2001:db8::1]:1", "[2001:db8::2]:1", "10.0.0.1:1"))
	got := take(t, &plan{upstream: u})
	if len(got) != 3 || got[1] != "10.0.0.1:1" {
		t.Errorf("tries %v, want the other family second", got)
	}
	if got := firsts(t, u, 2); strings.Contains(got, "10.0.0.1") {
		t.Errorf("sessions begin with %s, want the preferred family", got)
	}
	p := &plan{upstream: u}
	six, _ := p.next(t.Context())
	four, ok := p.sibling(six)
	if !ok || four.String() != "10.0.0.1:1" {
		t.Errorf("sibling of %s is %s, %v", six, four, ok)
	}
	if _, ok := p.sibling(six); ok {
		t.Error("a sibling where nothing is left")
	}
}

func TestPlanRefuses(t *testing.T) {
	cfg := Config{Name: "db", MaxConnections: 1, Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"),
		Breaker: policy.BreakerConfig{Failures: 1, Open: time.Minute}}
	u, err := New(cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	one, two := u.members()[0].Address, u.members()[1].Address
	fail(t, one)
	refused := func(want outcome.Refusal) {
		t.Helper()
		_, err := (&plan{upstream: u}).next(t.Context())
		var got *outcome.Refusal
		if !errors.As(err, &got) || got.Stage != outcome.StagePermit || got.Reason != want.Reason || got.Limit != want.Limit || !strings.Contains(got.Text, want.Text) || got.Public != want.Public {
			t.Errorf("refused with %+v, want %+v", got, want)
		}
	}
	held, ok := two.permit(time.Now(), 1)
	if !ok {
		t.Fatal("not permitted")
	}
	refused(outcome.Refusal{Reason: outcome.Limit, Limit: "upstreams.db.limits.connections"})
	held.release()
	fail(t, two)
	refused(outcome.Refusal{Reason: outcome.BreakerOpen, Text: "nobody there"})
	u.destinationCache = &destinationCache{}
	open, _ := (&plan{upstream: u}).next(t.Context())
	_ = open
	if one.places.Load() != 0 || two.places.Load() != 0 {
		t.Errorf("places left: %d, %d", one.places.Load(), two.places.Load())
	}
}

func TestAddressesComeAndGo(t *testing.T) {
	u := testUpstream(t, "name:1")
	u.learned(u.endpoints[0], placesOf("10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:1"))
	first, gone := u.members()[0].Address, u.members()[1].Address
	if len(u.members()) != 2 {
		t.Fatalf("members %v, want an address said twice only once", namesOf(u.members()))
	}
	u.learned(u.endpoints[0], placesOf("10.0.0.3:1", "10.0.0.1:1"))
	if got := namesOf(u.members()); got != "10.0.0.1:1 10.0.0.3:1" {
		t.Errorf("members %s", got)
	}
	if u.members()[1].Address != first || slices.ContainsFunc(u.members(), func(m member) bool { return m.Address == gone }) {
		t.Error("an address that stayed is another one, or one that went is there")
	}
}

func TestNewUpstreamNamesWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Name: "db"}, "upstream db: no endpoint"},
		{Config{Name: "db", Endpoints: []EndpointConfig{{Address: "db.internal"}}}, "endpoint db.internal"},
		{Config{Name: "db", Endpoints: []EndpointConfig{{Address: "db.internal:0"}}}, "1 to 65535"},
		{Config{Name: "db", StartTLS: "gopher", Endpoints: []EndpointConfig{{Address: "a:1"}}}, "starttls gopher"},
		{Config{Name: "db", StartTLS: "mysql", Endpoints: []EndpointConfig{{Address: "a:1"}}}, "no TLS to start"},
		{Config{Name: "db", Endpoints: []EndpointConfig{{Address: "a:1"}}, Health: HealthConfig{LogIn: func() (string, string, error) { return "", "", nil }}}, "health: no login"},
		{Config{Name: "db", StartTLS: "xmpp", Endpoints: []EndpointConfig{{Address: "a:1"}}, Preconnect: PreconnectConfig{Connections: 1},
			TLS: func(string, string) (*tls.Config, error) { return nil, nil }}, "preconnect: with starttls xmpp"},
	} {
		if _, err := New(tt.cfg, Deps{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, want an error with %q", tt.cfg, err, tt.want)
		}
	}
}
