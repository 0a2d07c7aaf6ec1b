package l4

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
)

// parked is how many sessions wait for their clients without a goroutine.
func (f *fixture) parked() (n int) {
	for _, s := range f.live() {
		s.mu.Lock()
		if s.parked {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

// places is how many sessions are in the first listener's list of parked sessions.
func (f *fixture) places() int {
	return f.listeners[0].route.Load().parked.Len()
}

// parks skips a test on systems where waiting sessions have goroutines.
func parks(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" || os.Getenv("AMBASSADOR_TEST_RELAY") != "" {
		t.Skip("only the engine waits without goroutines")
	}
}

// Clients that send nothing hold no goroutine. They are served, distinguished and ended
// like all other clients.
func TestSilentClientsHoldNoGoroutine(t *testing.T) {
	parks(t)
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	f := serve(t, Options{}, cfg)
	client := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
	ping(t, tls.Client(f.client(0), client))
	f.until("the first to be relayed", func() bool { return f.active() == 1 && f.places() == 0 })
	before := runtime.NumGoroutine()
	const many = 300
	for range many {
		f.client(0)
	}
	speaks, leaves, resets, killed := f.client(0), f.client(0), f.client(0), f.client(0)
	f.until("all to wait", func() bool { return f.parked() == many+4 })
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("%d goroutines for %d silent clients", n, many)
	}
	if n := f.waiting(); n != 0 {
		t.Errorf("%d silent clients count as in a handshake", n)
	}

	ping(t, tls.Client(speaks, client))
	wantEnd := func(what string, reason outcome.Reason) {
		t.Helper()
		if r := f.record(); r.Reason != reason || r.Stage != outcome.StageGreet {
			t.Errorf("%s: %+v", what, r)
		}
	}
	leaves.CloseWrite()
	wantEnd("who leaves", outcome.Probe)
	resets.SetLinger(0)
	resets.Close()
	wantEnd("who resets", outcome.Probe)
	for _, s := range f.live() {
		if s.snapshot().Client == killed.LocalAddr().String() {
			s.stop(errKilled(""))
		}
	}
	wantEnd("who is killed", outcome.Killed)
	wantReset(t, killed)

	f.cancel()
	for range many + 2 {
		if r := f.record(); r.Reason != outcome.Shutdown {
			t.Errorf("at the end: %+v", r)
		}
	}
}

// A session whose client sends nothing ends at its handshake deadline and leaves
// nothing behind.
func TestSilentClientsAreDropped(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	const patience = 300 * time.Millisecond
	cfg.Listeners[0].Timeouts.Handshake = patience
	f := serve(t, Options{}, cfg)
	const many = 200
	var last net.Conn
	for range many {
		last = f.client(0)
	}
	for range many {
		if r := f.record(); r.Reason != outcome.HandshakeTimeout || r.Stage != outcome.StageGreet || time.Duration(r.Duration) < patience {
			t.Fatalf("record: %+v", r)
		}
	}
	wantReset(t, last)
	if n := f.places(); n != 0 || f.active() != 0 {
		t.Errorf("%d are still waited for, %d sessions", n, f.active())
	}
}

// A client's first bytes do not extend its handshake deadline.
func TestPatienceIsForTheWholeGreeting(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	const patience = 400 * time.Millisecond
	cfg.Listeners[0].Timeouts.Handshake = patience
	f := serve(t, Options{}, cfg)
	c := f.client(0)
	start := time.Now()
	time.AfterFunc(patience/2, func() { io.WriteString(c, "\x16") })
	r := f.record()
	if r.Reason != outcome.HandshakeTimeout || time.Since(start) > patience*7/4 {
		t.Errorf("after %v: %+v", time.Since(start), r)
	}
}

// Silent clients count for the limits, and release their slot.
func TestSilentClientsCount(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.MaxSessions = 2
	f := serve(t, Options{}, cfg)
	first := f.client(0)
	f.client(0)
	f.until("two to wait", func() bool { return f.active() == 2 })
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Limit || !strings.Contains(r.Limit, "limits.connections") {
		t.Errorf("the third: %+v", r)
	}
	first.Close()
	if r := f.record(); r.Reason != outcome.Probe {
		t.Errorf("the first: %+v", r)
	}
	f.client(0)
	f.until("another to wait", func() bool { return f.active() == 2 })
}

// A drain does not wait for clients that send nothing.
func TestDrainEndsSilentClients(t *testing.T) {
	parks(t)
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	f := serve(t, Options{}, cfg)
	c := f.client(0)
	f.until("the client to be waited for", func() bool { return f.parked() == 1 })
	f.Shutdown(t.Context(), Drain{Timeout: time.Hour})
	if r := f.record(); r.Reason != outcome.Drained {
		t.Errorf("record %+v", r)
	}
	wantReset(t, c)
}
