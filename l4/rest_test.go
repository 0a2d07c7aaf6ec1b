package l4

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"ambassador/policy"
)

// resting is how many sessions of the listener rest in their greeting.
func (f *fixture) resting() (n int) {
	for _, s := range f.live() {
		s.mu.Lock()
		if s.parked && s.runner != nil {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

func restingEgress() Config {
	return egress(policy.Rule{Hosts: []string{"localhost"}, Upstream: "out"})
}

// A client that says its part in pieces is waited for on a loop, however many pieces
// there are and whoever else does the same.
func TestAClientRestsBetweenTheBytesOfItsRequest(t *testing.T) {
	parks(t)
	_, port, _ := net.SplitHostPort(backend(t, echo))
	f := serve(t, Options{}, restingEgress())
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
		if i < len(text)-6 { // the port is not whole yet
			f.until("all to rest", func() bool { return f.resting() == len(clients) })
		}
	}
	for _, c := range clients {
		got := make([]byte, 2+10+5)
		if _, err := io.ReadFull(c, got); err != nil || got[3] != 0 || string(got[12:]) != "ping\n" {
			t.Fatalf("%q, %v", got, err)
		}
		c.Close()
		if r := f.record(); r.Reason != ReasonClosed {
			t.Errorf("record %+v", r)
		}
	}
}

// Every ending finds a client that rests.
func TestEndingsOfClientsThatRest(t *testing.T) {
	parks(t)
	cfg := restingEgress()
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	f := serve(t, Options{}, cfg)
	for name, c := range map[string]struct {
		end  func(*net.TCPConn)
		want Reason
	}{
		"a kill":  {func(*net.TCPConn) { f.Kill(f.Sessions()[0].ID) }, ReasonKilled},
		"a FIN":   {func(c *net.TCPConn) { c.CloseWrite() }, ReasonBadGreeting},
		"a reset": {func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, ReasonDownstreamReset},
	} {
		client := f.client(0)
		client.Write([]byte{5, 1, 0, 5})
		f.until("the client to rest", func() bool { return f.resting() == 1 })
		c.end(client)
		if r := f.record(); r.Reason != c.want || r.Stage != StageGreet {
			t.Errorf("%s: %+v", name, r)
		}
	}
	client := f.client(0)
	client.Write([]byte{5, 1, 0, 5})
	f.until("the client to rest", func() bool { return f.resting() == 1 })
	f.cancel()
	if r := f.record(); r.Reason != ReasonShutdown {
		t.Errorf("the end of all: %+v", r)
	}
	wantReset(t, client)
}

// Whose time is up first is dropped first, however late it has said a word.
func TestAClientThatRestsKeepsItsPlace(t *testing.T) {
	parks(t)
	cfg := restingEgress()
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	f := serve(t, Options{}, cfg)
	first := f.client(0)
	f.until("the first to be waited for", func() bool { return f.parked() == 1 })
	f.client(0)
	f.until("both to be waited for", func() bool { return f.parked() == 2 })
	first.Write([]byte{5, 1, 0})
	if _, err := io.ReadFull(first, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	f.until("the first to rest", func() bool { return f.resting() == 1 })
	q := &f.listeners[0].route.Load().silence
	q.mu.Lock()
	next := q.all.Front().Value.(*session)
	q.mu.Unlock()
	if got := next.snapshot().Client; got != first.LocalAddr().String() {
		t.Errorf("the first to go is %s, want %s", got, first.LocalAddr())
	}
	if n := f.places(); n != 2 {
		t.Errorf("%d places, want 2", n)
	}
}

// Of too many that rest the oldest ends, as of those in a TLS handshake. A client that
// has said nothing is not one of them.
func TestCrowdOfClientsThatRestIsBounded(t *testing.T) {
	parks(t)
	cfg := restingEgress()
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	cfg.MaxMemory = 5 * restCost / 2
	f := serve(t, Options{}, cfg)
	for range 5 {
		f.client(0)
	}
	f.until("the silent ones to be waited for", func() bool { return f.parked() == 5 })
	var clients []*net.TCPConn
	for n := range 3 {
		c := f.client(0)
		c.Write([]byte{5, 1, 0, 5})
		clients = append(clients, c)
		f.until("the client to rest", func() bool { return f.resting() == min(n+1, 2) })
	}
	wantReset(t, clients[0])
	if r := f.record(); r.Reason != ReasonLimit || r.Limit != "limits.memory" || r.Client != clients[0].LocalAddr().String() {
		t.Errorf("record %+v", r)
	}
	if n := f.active(); n != 7 {
		t.Errorf("%d sessions are left, want 7", n)
	}
}

func TestAClientThatRestsTooLong(t *testing.T) {
	cfg := restingEgress()
	const patience = 200 * time.Millisecond
	cfg.Listeners[0].Timeouts.Handshake = patience
	f := serve(t, Options{}, cfg)
	client := f.client(0)
	client.Write([]byte{5, 1, 0, 5})
	if r := f.record(); r.Reason != ReasonHandshakeTimeout || time.Duration(r.Duration) < patience {
		t.Errorf("record %+v", r)
	}
}

// A runner that is woken before it rests goes on, and is not woken twice.
func TestARunnerIsWokenBeforeItRests(t *testing.T) {
	rs := &runners{}
	defer rs.close()
	r := newRunner(t.Context())
	steps := make(chan step, 3)
	r.next = func() (step, bool) {
		what := <-steps
		if what == stepRest && len(steps) == 1 {
			rs.wake(r) // of a loop that was faster
		}
		return what, true
	}
	steps <- stepRest
	steps <- stepOver
	rs.resume(r)
	if len(steps) != 0 || len(rs.idle) != 1 {
		t.Errorf("%d steps are left, %d runners idle", len(steps), len(rs.idle))
	}
	steps <- stepRest
	rs.resume(r)
	steps <- stepOver
	rs.wake(r)
	if len(steps) != 0 || r.resting.Load() != running {
		t.Errorf("%d steps are left, at rest %d", len(steps), r.resting.Load())
	}
}

// Whoever ends a server may be locked to a thread, as who has changed its namespace is.
func TestRunnersEndOnALockedThread(t *testing.T) {
	rs := &runners{}
	r := newRunner(t.Context())
	rs.giveBack(r)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rs.close()
}
