package upstream

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
)

func zoneUpstream(t *testing.T, z *l4test.Zone, endpoint string) *Upstream {
	t.Helper()
	u, err := New(Config{Name: "u", Endpoints: endpointsOf(endpoint), DNSServers: []string{l4test.ServeZone(t, z)}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestResolveKeepsTheLastAnswer(t *testing.T) {
	z := &l4test.Zone{Hosts: map[string][]string{"db.test": {"10.0.0.1", "10.0.0.2"}}}
	u := zoneUpstream(t, z, "db.test.:5432")
	e := u.endpoints[0]
	if got := take(t, &plan{upstream: u}); len(got) != 2 {
		t.Fatalf("a session finds %v", got)
	}
	stays := u.members()[0].Address
	z.Set("db.test", "10.0.0.3", strings.TrimSuffix(stays.name, ":5432"))
	if err := u.resolve(t.Context(), e); err != nil || len(u.members()) != 2 || u.members()[1].Address != stays && u.members()[0].Address != stays {
		t.Errorf("after a change: %v, %v", namesOf(u.members()), err)
	}
	z.Set("db.test")
	var dns *net.DNSError
	if err := u.resolve(t.Context(), e); !errors.As(err, &dns) || len(u.members()) != 2 {
		t.Errorf("after the name went: %v, %v", namesOf(u.members()), err)
	}
	if st := e.status(); len(st.Addresses) != 2 || st.LastReason != outcome.DNS {
		t.Errorf("status %+v", st)
	}
}

func TestResolveServices(t *testing.T) {
	target := func(name string, port, priority, weight uint16) dnsmessage.SRVResource {
		return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(name), Port: port, Priority: priority, Weight: weight}
	}
	z := &l4test.Zone{Hosts: map[string][]string{"a.test": {"10.0.0.1"}, "b.test": {"10.0.0.2"}},
		Targets: map[string][]dnsmessage.SRVResource{"_pg._tcp.test": {target("a.test.", 1000, 1, 3), target("b.test.", 2000, 0, 7), target("gone.test.", 3, 0, 1)}}}
	u := zoneUpstream(t, z, "srv:_pg._tcp.test")
	got := take(t, &plan{upstream: u})
	if strings.Join(got, " ") != "10.0.0.2:2000 10.0.0.1:1000" {
		t.Errorf("a session tries %v, want the targets by priority", got)
	}
	for _, m := range u.members() {
		if m.addr.Port() == 2000 && (m.weight != 7 || m.priority != 0) || m.addr.Port() == 1000 && (m.weight != 3 || m.priority != 1) {
			t.Errorf("%s has weight %d, priority %d", m.name, m.weight, m.priority)
		}
	}
}

func TestResolveNothing(t *testing.T) {
	z := &l4test.Zone{}
	u := zoneUpstream(t, z, "nowhere.test.:1")
	u.cfg.Connect.Backoff = 1
	_, err := u.connect(t.Context(), noProgress)
	if err == nil || err.Reason != outcome.DNS || err.Endpoint != "nowhere.test.:1" {
		t.Errorf("%+v, want dns", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.resolve(ctx, u.endpoints[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
