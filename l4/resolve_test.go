package l4

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"ambassador/l4/outcome"
)

// zone is a DNS server on loopback whose answers can be changed.
type zone struct {
	mu      sync.Mutex
	hosts   map[string][]string                 // guarded by mu; name without the last dot to IPv4 addresses
	targets map[string][]dnsmessage.SRVResource // guarded by mu
	asked   int                                 // guarded by mu
}

// serveZone answers until the end of the test and returns its address.
func serveZone(t *testing.T, z *zone) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() { // ends with conn
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, err := z.answer(buf[:n]); err == nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

func (z *zone) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	m.Header.Response, m.Header.Authoritative, m.Additionals = true, true, nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
	_, isHost := z.hosts[name]
	switch {
	case q.Type == dnsmessage.TypeA && isHost:
		for _, ip := range z.hosts[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(ip).As4()}})
		}
	case q.Type == dnsmessage.TypeSRV && z.targets[name] != nil:
		for _, target := range z.targets[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &target})
		}
	case !isHost:
		m.Header.RCode = dnsmessage.RCodeNameError
	}
	return m.Pack()
}

func (z *zone) set(name string, ips ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if ips == nil {
		delete(z.hosts, name)
		return
	}
	z.hosts[name] = ips
}

func zoneUpstream(t *testing.T, z *zone, endpoint string) *Upstream {
	t.Helper()
	u, err := newUpstream(UpstreamConfig{Name: "u", Endpoints: endpointsOf(endpoint), DNSServers: []string{serveZone(t, z)}}, upstreamDeps{})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestResolveKeepsTheLastAnswer(t *testing.T) {
	z := &zone{hosts: map[string][]string{"db.test": {"10.0.0.1", "10.0.0.2"}}}
	u := zoneUpstream(t, z, "db.test.:5432")
	e := u.endpoints[0]
	if got := take(t, &plan{upstream: u}); len(got) != 2 {
		t.Fatalf("a session finds %v", got)
	}
	stays := u.members()[0].address
	z.set("db.test", "10.0.0.3", strings.TrimSuffix(stays.name, ":5432"))
	if err := u.resolve(t.Context(), e); err != nil || len(u.members()) != 2 || u.members()[1].address != stays && u.members()[0].address != stays {
		t.Errorf("after a change: %v, %v", namesOf(u.members()), err)
	}
	z.set("db.test")
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
	z := &zone{hosts: map[string][]string{"a.test": {"10.0.0.1"}, "b.test": {"10.0.0.2"}},
		targets: map[string][]dnsmessage.SRVResource{"_pg._tcp.test": {target("a.test.", 1000, 1, 3), target("b.test.", 2000, 0, 7), target("gone.test.", 3, 0, 1)}}}
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
	z := &zone{}
	u := zoneUpstream(t, z, "nowhere.test.:1")
	u.cfg.Connect.Backoff = 1
	_, err := u.connect(t.Context(), func(outcome.Stage, candidate, int) {})
	if err == nil || err.Reason != outcome.DNS || err.Endpoint != "nowhere.test.:1" {
		t.Errorf("%+v, want dns", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.resolve(ctx, u.endpoints[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
