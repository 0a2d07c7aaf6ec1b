package l4

import (
	"io"
	"math"
	"net"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// suspended is how many sessions are suspended until more of their request arrives.
func (f *fixture) suspended() (n int) {
	for _, s := range f.live() {
		s.mu.Lock()
		if s.parked && s.suspended != nil {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

func suspendingEgress() Config {
	return egress(policy.Rule{Hosts: []string{"localhost"}, Upstream: "out"})
}

// A session whose client sends its request in pieces is suspended between them, however
// many pieces and clients there are.
func TestSessionsAreSuspendedWithinARequest(t *testing.T) {
	parks(t)
	_, port, _ := net.SplitHostPort(l4test.Backend(t, l4test.Echo))
	f := serve(t, Options{}, suspendingEgress())
	n, _ := net.LookupPort("tcp", port)
	text := append([]byte{5, 1, 0, 5, 1, 0, 3, 9}, "localhost"...)
	text = append(text, byte(n>>8), byte(n))
	text = append(text, "ping\n"...)
	var clients []*net.TCPConn
	for range 20 {
		clients = append(clients, f.client(0))
	}
	for i, b := range text {
		for _, c := range clients {
			c.Write([]byte{b})
		}
		if i < len(text)-6 { // the port is not complete yet
			f.until("all to be suspended", func() bool { return f.suspended() == len(clients) })
		}
	}
	for _, c := range clients {
		got := make([]byte, 2+10+5)
		if _, err := io.ReadFull(c, got); err != nil || got[3] != 0 || string(got[12:]) != "ping\n" {
			t.Fatalf("%q, %v", got, err)
		}
		c.Close()
		if r := f.record(); r.Reason != outcome.Closed {
			t.Errorf("record %+v", r)
		}
	}
}

// Every kind of ending reaches a suspended session.
func TestEndingsOfSuspendedSessions(t *testing.T) {
	parks(t)
	cfg := suspendingEgress()
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	f := serve(t, Options{}, cfg)
	for name, c := range map[string]struct {
		end  func(*net.TCPConn)
		want outcome.Reason
	}{
		"a kill":  {func(*net.TCPConn) { f.Kill(f.Sessions(math.MaxInt)[0].ID, "") }, outcome.Killed},
		"a FIN":   {func(c *net.TCPConn) { c.CloseWrite() }, outcome.BadGreeting},
		"a reset": {func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, outcome.DownstreamReset},
	} {
		client := f.client(0)
		client.Write([]byte{5, 1, 0, 5})
		f.until("the session to be suspended", func() bool { return f.suspended() == 1 })
		c.end(client)
		if r := f.record(); r.Reason != c.want || r.Stage != outcome.StageGreet {
			t.Errorf("%s: %+v", name, r)
		}
	}
	client := f.client(0)
	client.Write([]byte{5, 1, 0, 5})
	f.until("the session to be suspended", func() bool { return f.suspended() == 1 })
	f.cancel()
	if r := f.record(); r.Reason != outcome.Shutdown {
		t.Errorf("the end of all: %+v", r)
	}
	wantReset(t, client)
}

// A suspended session keeps its position among the parked ones, in the order of their
// deadlines.
func TestSuspendedSessionsKeepTheirPlace(t *testing.T) {
	parks(t)
	cfg := suspendingEgress()
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	f := serve(t, Options{}, cfg)
	first := f.client(0)
	f.until("the first to be parked", func() bool { return f.parked() == 1 })
	f.client(0)
	f.until("both to be parked", func() bool { return f.parked() == 2 })
	first.Write([]byte{5, 1, 0})
	if _, err := io.ReadFull(first, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	f.until("the first to be suspended", func() bool { return f.suspended() == 1 })
	for _, s := range f.live() {
		s.mu.Lock()
		isNext := s.place.Prev() == nil
		s.mu.Unlock()
		if got := s.snapshot().Client; isNext != (got == first.LocalAddr().String()) {
			t.Errorf("%s is the first to go: %v", got, isNext)
		}
	}
	if n := f.places(); n != 2 {
		t.Errorf("%d places, want 2", n)
	}
}

// If too many sessions are suspended, the oldest ends, as in a TLS handshake. Parked
// sessions that have not run do not count.
func TestCrowdOfSuspendedSessionsIsBounded(t *testing.T) {
	parks(t)
	cfg := suspendingEgress()
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	cfg.MaxMemory = 5 * suspendCost / 2
	f := serve(t, Options{}, cfg)
	for range 5 {
		f.client(0)
	}
	f.until("the silent ones to be parked", func() bool { return f.parked() == 5 })
	var clients []*net.TCPConn
	for n := range 3 {
		c := f.client(0)
		c.Write([]byte{5, 1, 0, 5})
		clients = append(clients, c)
		f.until("the session to be suspended", func() bool { return f.suspended() == min(n+1, 2) })
	}
	wantReset(t, clients[0])
	if r := f.record(); r.Reason != outcome.Limit || r.Limit != "limits.memory" || r.Client != clients[0].LocalAddr().String() {
		t.Errorf("record %+v", r)
	}
	if n := f.active(); n != 7 {
		t.Errorf("%d sessions are left, want 7", n)
	}
}

func TestSuspendedSessionsHaveADeadline(t *testing.T) {
	cfg := suspendingEgress()
	const patience = 200 * time.Millisecond
	cfg.Listeners[0].Timeouts.Handshake = patience
	f := serve(t, Options{}, cfg)
	client := f.client(0)
	client.Write([]byte{5, 1, 0, 5})
	if r := f.record(); r.Reason != outcome.HandshakeTimeout || time.Duration(r.Duration) < patience {
		t.Errorf("record %+v", r)
	}
}
