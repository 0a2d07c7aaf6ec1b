package admin

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func newTestGate(limit int) *Gate {
	return &Gate{What: "test", Max: limit, Log: slog.New(slog.DiscardHandler)}
}

// fakeConn is a connection from an address.
type fakeConn struct {
	net.Conn
	name, from string
	closed     bool
}

func (c *fakeConn) RemoteAddr() net.Addr {
	addr, err := net.ResolveTCPAddr("tcp", c.from)
	if err != nil {
		return &net.UnixAddr{Name: c.from, Net: "unix"}
	}
	return addr
}

func (c *fakeConn) Close() error { c.closed = true; return nil }

// The source with most connections loses one: the one that has been idle longest, or,
// if all are being answered, the oldest.
func TestGateClosesWhatIsWorthLeast(t *testing.T) {
	const one, other, third = "192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"
	for _, tt := range []struct {
		what  string
		conns []string // "NAME SOURCE", in the order of their arrival
		then  []string // "NAME busy", "NAME idle"
		next  string   // the source of one more
		want  string   // the one that is closed
	}{
		{"there is room", []string{"a " + one, "b " + one}, nil, one, ""},
		{"the oldest", []string{"a " + one, "b " + one, "c " + one}, nil, one, "a"},
		{"the one that is idle longest", []string{"a " + one, "b " + one, "c " + one}, []string{"a busy", "a idle"}, one, "b"},
		{"not one that is being answered", []string{"a " + one, "b " + one, "c " + one}, []string{"a busy", "b busy"}, one, "c"},
		{"all are being answered", []string{"a " + one, "b " + one, "c " + one}, []string{"a busy", "b busy", "c busy"}, one, "a"},
		{"of the source with most", []string{"a " + one, "b " + other, "c " + other}, nil, one, "a"}, // each has two then
		{"of the source with most, though another is idle longer", []string{"a " + one, "b " + other, "c " + other}, nil, other, "b"},
		{"of the source with most, though all are being answered", []string{"a " + one, "b " + other, "c " + other}, []string{"b busy", "c busy"}, other, "b"},
		{"all have one", []string{"a " + one, "b " + other, "c " + third}, []string{"a busy"}, "192.0.2.4:1", "b"},
		{"a host has a /64", []string{"a [2001:db8:0:1::1]:1", "b [2001:db8::1]:1", "c [2001:db8::2]:1"}, nil, "[2001:db8::3]:1", "b"},
		{"IPv4 in IPv6 is IPv4", []string{"a [::ffff:192.0.2.1]:1", "b " + other, "c [::ffff:192.0.2.2]:1"}, nil, other, "b"},
		{"a unix socket is one source", []string{"a @", "b @", "c @"}, nil, "@", "a"},
	} {
		g := newTestGate(3)
		byName := map[string]*gatedConn{}
		for _, s := range tt.conns {
			name, from, _ := strings.Cut(s, " ")
			byName[name] = g.admit(&fakeConn{name: name, from: from})
		}
		for _, s := range tt.then {
			name, state, _ := strings.Cut(s, " ")
			g.State(byName[name], map[string]http.ConnState{"busy": http.StateActive, "idle": http.StateIdle}[state])
		}
		last := g.admit(&fakeConn{name: "next", from: tt.next})
		var closed []string
		for name, c := range byName {
			if c.Conn.(*fakeConn).closed {
				closed = append(closed, name)
			}
		}
		if got := strings.Join(closed, " "); got != tt.want {
			t.Errorf("%s: closed %q, want %q", tt.what, got, tt.want)
		}
		if last.Conn.(*fakeConn).closed || len(g.conns) != 3 || g.conns[2] != last {
			t.Errorf("%s: %d connections are counted, the new one is closed: %v", tt.what, len(g.conns), last.Conn.(*fakeConn).closed)
		}
		for _, c := range slices.Clone(g.conns) {
			c.Close()
		}
		if len(g.conns) != 0 {
			t.Errorf("%s: %d connections are counted, and all are closed", tt.what, len(g.conns))
		}
	}
}

// The state of a TLS connection is that of the one below it.
func TestGateKnowsConnectionsBelowTLS(t *testing.T) {
	g := newTestGate(2)
	first, _ := g.admit(&fakeConn{name: "first", from: "192.0.2.1:1"}), g.admit(&fakeConn{name: "second", from: "192.0.2.1:1"})
	g.State(tls.Server(first, &tls.Config{}), http.StateActive)
	g.admit(&fakeConn{name: "third", from: "192.0.2.1:1"})
	if first.Conn.(*fakeConn).closed {
		t.Error("a connection that is being answered was closed")
	}
}

func TestGateSaysOnceAMinuteWhatItCloses(t *testing.T) {
	var log strings.Builder
	g := newTestGate(1)
	g.Log = slog.New(slog.NewTextHandler(&log, nil))
	now := time.Unix(1e9, 0)
	for _, after := range []time.Duration{0, 0, time.Second, 2 * time.Second, gateLogInterval + time.Second} {
		g.enter(&gatedConn{}, now.Add(after))
	}
	if got := log.String(); strings.Count(got, "too many connections") != 2 || !strings.Contains(got, "closed=1") || !strings.Contains(got, "closed=3") {
		t.Errorf("the log:\n%s", got)
	}
}

// webClient is one keep-alive connection from a local address.
type webClient struct {
	http http.Client
}

func newWebClient(t *testing.T, from string) *webClient {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	tr := &http.Transport{DialContext: d.DialContext, MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	return &webClient{http.Client{Transport: tr, Timeout: 10 * time.Second}}
}

// get asks for a path, and says from which port.
func (c *webClient) get(addr, path string) (string, error) {
	resp, err := c.http.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return string(b), err
}

// Idle connections of one client keep nobody out, and do not cost another client
// the one that it has.
func TestIdleConnectionsKeepNobodyOut(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })
	gate := newTestGate(8)
	serveGated(t, ln, gate, h)
	scraper := newWebClient(t, "127.0.0.2")
	first, err := scraper.get(addr, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, err := newWebClient(t, "127.0.0.1").get(addr, "/metrics"); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	again, err := scraper.get(addr, "/metrics")
	if err != nil || again != first {
		t.Errorf("the scraper's connection was %s, and is %s, %v", first, again, err)
	}
	gate.mu.Lock()
	defer gate.mu.Unlock()
	if len(gate.conns) > 8 {
		t.Errorf("%d connections are open", len(gate.conns))
	}
}

// serveOn serves h on ln until the test ends.
func serveOn(t *testing.T, ln net.Listener, addr string, h http.Handler) string {
	t.Helper()
	serveGated(t, ln, newTestGate(32), h)
	return addr
}

// serveGated serves as endpoints do, until the test ends.
func serveGated(t *testing.T, ln net.Listener, gate *Gate, h http.Handler) {
	t.Helper()
	s := newHTTPServer(h, gate, requestTimeout, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(gate.Listen(ln)) }() // the cleanup waits for it
	t.Cleanup(func() { s.Close(); <-done })
}
