package upstream

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ambassador/l4/lookup"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// An endpoint that both configurations have keeps its addresses with health, breaker and
// last error when a reload changes its neighbours; a new endpoint begins anew.
func TestInheritKeepsState(t *testing.T) {
	make := func(state string, endpoints ...EndpointConfig) *Upstream {
		u, err := New(Config{Name: "db", StateKey: state, Endpoints: endpoints, Breaker: policy.BreakerConfig{Failures: 1, Open: time.Hour}}, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	old := make("same", EndpointConfig{Address: "10.0.0.1:1"}, EndpointConfig{Address: "db.test:2", Weight: 3}, EndpointConfig{Address: "srv:_db._tcp.test"})
	old.learned(old.endpoints[1], placesOf("10.0.0.2:2"))
	old.learned(old.endpoints[2], lookup.Places{All: []lookup.Place{{Addr: netip.MustParseAddrPort("10.0.0.3:3"), Weight: 7, Priority: 1}}})
	for _, m := range old.members() {
		ticket, _, _ := m.breaker.Permit(time.Now())
		old.settled(m.candidate(ticket, time.Now()), outcome.Refused, errors.New("refused"), policy.Failure)
		old.judge(m.Address, false, "refused", time.Now())
	}
	endpoints := []EndpointConfig{{Address: "10.0.0.9:9"}, {Address: "db.test:2", Weight: 5}, {Address: "srv:_db._tcp.test"}, {Address: "10.0.0.1:1"}}
	kept := make("same", endpoints...)
	kept.Inherit([]*Upstream{old})
	weights := map[string]int{"10.0.0.9:9": 0, "10.0.0.2:2": 5, "10.0.0.3:3": 7, "10.0.0.1:1": 0}
	if len(kept.members()) != len(weights) {
		t.Fatalf("%d addresses, want %d", len(kept.members()), len(weights))
	}
	for _, m := range kept.members() {
		st, isNew := m.status(), m.name == "10.0.0.9:9"
		if (st.Health == policy.Unknown) != isNew || (st.Breaker == "closed") != isNew || (st.LastError == "") != isNew || m.down.Load() == isNew {
			t.Errorf("%s: %+v", m.name, st)
		}
		if m.weight != weights[m.name] || m.upstream != kept {
			t.Errorf("%s: weight %d, want %d", m.name, m.weight, weights[m.name])
		}
	}
	if e := kept.Status().Endpoints[1]; e.LastReason != outcome.Refused {
		t.Errorf("the endpoint has forgotten its last attempt: %+v", e)
	}
	other := make("other", endpoints...)
	other.Inherit([]*Upstream{old})
	for _, m := range other.members() {
		if st := m.status(); st.Health != policy.Unknown || st.Breaker != "closed" {
			t.Errorf("other settings, and %s: %+v", m.name, st)
		}
	}
}

// A breaker closes because of an attempt, and the log says so.
func TestBreakerClosesWithACause(t *testing.T) {
	var log bytes.Buffer
	u, err := New(Config{Name: "db", Endpoints: []EndpointConfig{{Address: "10.0.0.1:1"}}, Breaker: policy.BreakerConfig{Failures: 1}}, Deps{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	a, now := u.members()[0].Address, time.Now()
	attempt := func(reason outcome.Reason, err error, verdict policy.Outcome) {
		c, ok := a.permit(now, 0)
		if !ok {
			t.Fatal("not permitted")
		}
		u.settled(c, reason, err, verdict)
		now = now.Add(time.Hour)
	}
	attempt(outcome.Refused, errors.New("refused"), policy.Failure)
	attempt(outcome.OK, nil, policy.Success)
	if got := log.String(); !strings.Contains(got, `to=closed cause="an attempt succeeded"`) {
		t.Errorf("log: %s", got)
	}
}
