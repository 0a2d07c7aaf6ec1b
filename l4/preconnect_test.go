package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// tally counts the results of requests for preconnected connections.
type tally struct {
	mu sync.Mutex
	n  map[upstream.PreconnectResult]int
}

func (y *tally) observer() upstream.Observer {
	y.n = map[upstream.PreconnectResult]int{}
	return upstream.Observer{Preconnect: func(_ string, r upstream.PreconnectResult) {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.n[r]++
	}}
}

func (y *tally) get(r upstream.PreconnectResult) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.n[r]
}

// preconnectServer starts a TLS server that requires a client certificate, and calls handle
// for each accepted connection. Accepted counts those.
func preconnectServer(t *testing.T, handle func(*tls.Conn)) (addr string, client *tls.Config, accepted *atomic.Int64) {
	t.Helper()
	cert, pool := l4test.SelfSigned(t)
	server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	accepted = &atomic.Int64{}
	addr = l4test.Backend(t, func(c *net.TCPConn) {
		s := tls.Server(c, server)
		if s.Handshake() == nil {
			accepted.Add(1)
			handle(s)
		}
	})
	return addr, &tls.Config{ServerName: "localhost", RootCAs: pool, Certificates: []tls.Certificate{cert}}, accepted
}

func echoTLS(s *tls.Conn) {
	io.Copy(s, s)
	s.CloseWrite()
}

func (f *fixture) awaitPreconnected(n int) {
	f.t.Helper()
	f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Preconnected == n })
}

func TestSessionsGetPreconnected(t *testing.T) {
	addr, client, accepted := preconnectServer(t, echoTLS)
	cfg, y := tlsUpstream(addr, client), &tally{}
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 3, MaxAge: time.Hour}
	f := serve(t, Options{Observer: Observer{Upstream: y.observer()}}, cfg)
	f.awaitPreconnected(3) // with no traffic at all
	for range 10 {
		f.awaitPreconnected(3)
		c := f.client(0)
		ping(t, c)
		c.Close()
		if r := f.record(); r.Reason != outcome.Closed || r.Address != addr || r.Attempts != 1 {
			t.Errorf("record %+v", r)
		}
	}
	f.awaitPreconnected(3)
	await(t, "13 connections at the server", func() bool { return accepted.Load() == 13 })
	if hits := y.get(upstream.PreconnectHit); hits != 10 {
		t.Errorf("%d hits of 10", hits)
	}
	if a := f.address(); a.Preconnected+a.Sessions != 3 {
		t.Errorf("%d connections are kept and %d in use", a.Preconnected, a.Sessions)
	}
}

func TestPreconnectedKeepWhatTheServerSaysFirst(t *testing.T) {
	addr, client, _ := preconnectServer(t, func(s *tls.Conn) {
		io.WriteString(s, "220 hel")
		io.WriteString(s, "lo\r\n")
		echoTLS(s)
	})
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	f := serve(t, Options{}, cfg)
	for range 6 {
		f.awaitPreconnected(2)
		c := f.client(0)
		io.WriteString(c, "EHLO\n")
		buf := make([]byte, 16)
		if _, err := io.ReadFull(c, buf[:16-1]); err != nil || string(buf[:15]) != "220 hello\r\nEHLO"[:15] {
			t.Fatalf("the client reads %q, %v", buf, err)
		}
		c.Close()
		f.record()
	}
}

func TestDeadPreconnectedAreUnseen(t *testing.T) {
	var mu sync.Mutex
	var live []*tls.Conn
	addr, client, _ := preconnectServer(t, func(s *tls.Conn) {
		mu.Lock()
		live = append(live, s)
		mu.Unlock()
		echoTLS(s)
	})
	cfg, y := tlsUpstream(addr, client), &tally{}
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 4, MaxAge: time.Hour}
	f := serve(t, Options{Observer: Observer{Upstream: y.observer()}}, cfg)
	for i := range 4 {
		f.awaitPreconnected(4)
		mu.Lock()
		for _, s := range live {
			if i%2 == 0 {
				s.NetConn().(*net.TCPConn).SetLinger(0)
				s.NetConn().Close()
			} else {
				s.Close()
			}
		}
		live = nil
		mu.Unlock()
		c := f.client(0) // at the same moment
		ping(t, c)
		c.Close()
		f.record()
	}
	t.Logf("hits %d, misses %d, stale %d", y.get(upstream.PreconnectHit), y.get(upstream.PreconnectMiss), y.get(upstream.PreconnectStale))
}

func TestPreconnectedAgeAndRotate(t *testing.T) {
	addr, client, accepted := preconnectServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	var current atomic.Pointer[tls.Config]
	current.Store(client)
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) { return current.Load(), nil }
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	f := serve(t, Options{}, cfg)
	f.awaitPreconnected(2)
	current.Store(client.Clone()) // a new generation of the identity
	ping(t, f.client(0))
	f.awaitPreconnected(2)
	if n := accepted.Load(); n < 3 {
		t.Errorf("the server accepted %d: the client got a connection of the old identity", n)
	}

	addr, client, accepted = preconnectServer(t, echoTLS)
	cfg = tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 2, MaxAge: 100 * time.Millisecond}
	serve(t, Options{}, cfg)
	await(t, "spares that have aged", func() bool { return accepted.Load() >= 6 })
}

// await waits until is returns true; another goroutine makes it so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.After(l4test.Bound)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("no %s within %v", what, l4test.Bound)
		}
	}
}

func TestPreconnectedRespectLimits(t *testing.T) {
	addr, client, _ := preconnectServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 8, MaxAge: time.Hour}
	cfg.Upstreams[0].MaxConnections = 3
	f := serve(t, Options{}, cfg)
	f.awaitPreconnected(3)
	var clients []net.Conn
	for i := range 3 {
		c := f.client(0)
		ping(t, c)
		clients = append(clients, c)
		st := f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Sessions == i+1 })
		if st.Preconnected+st.Sessions > 3 {
			t.Errorf("%d spares and %d sessions", st.Preconnected, st.Sessions)
		}
	}
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Limit {
		t.Errorf("record %+v", r)
	}
	for _, c := range clients {
		c.Close()
	}
	f.awaitPreconnected(3)
}

func TestPreconnectedOfAServerThatRefusesUs(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	var tries atomic.Int64
	addr := l4test.Backend(t, func(c *net.TCPConn) {
		tries.Add(1)
		tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}).Handshake()
	})
	cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool}) // without our certificate
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 4, MaxAge: time.Hour}
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 3, Open: time.Minute}
	f := serve(t, Options{}, cfg)
	f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Breaker == "open" && a.Preconnected == 0 })
	if n := tries.Load(); n > 12 {
		t.Errorf("%d tries until it was left alone", n)
	}
}

// A preconnected connection is a trial like a session: it closes a half-open breaker.
func TestPreconnectedAreTrials(t *testing.T) {
	addr := l4test.RefusedAddress(t)
	cfg := oneUpstream(addr)
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 1, Open: 50 * time.Millisecond}
	f := serve(t, Options{}, cfg)
	f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Breaker == "open" })
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // ends with ln
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }() // ends with its client
		}
	}()
	f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Breaker == "closed" && a.Preconnected == 2 })
	ping(t, f.client(0))
}

func TestPreconnectedOfAnAddressThatIsDownAreDropped(t *testing.T) {
	var ill atomic.Bool
	addr, client, _ := preconnectServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	cfg.Upstreams[0].Health = upstream.HealthConfig{Interval: 10 * time.Millisecond, Check: func(context.Context, netip.Addr) error {
		if ill.Load() {
			return errors.New("as the test wants it")
		}
		return nil
	}}
	f := serve(t, Options{}, cfg)
	f.awaitPreconnected(2)
	ill.Store(true)
	f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Health == policy.Unhealthy })
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.NoEndpoint {
		t.Errorf("record %+v", r)
	}
	f.awaitPreconnected(0)
	ill.Store(false)
	f.awaitPreconnected(2)
}

func TestReloadKeepsWhatIsKnownOfAnUnchangedUpstream(t *testing.T) {
	addr, client, accepted := preconnectServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = upstream.PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	cfg.Upstreams[0].Key = "the same"
	f := serve(t, Options{}, cfg)
	f.awaitPreconnected(2)
	await(t, "two connections", func() bool { return accepted.Load() == 2 })
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	ping(t, f.client(0))
	f.awaitPreconnected(2)
	await(t, "a third connection", func() bool { return accepted.Load() == 3 })
	cfg.Upstreams[0].Key = "another"
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	f.awaitPreconnected(2)
	await(t, "two new connections", func() bool { return accepted.Load() == 5 })
}
