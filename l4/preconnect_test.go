package l4

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// tally counts the results of requests for preconnected connections.
type tally struct {
	mu sync.Mutex
	n  map[PreconnectResult]int
}

func (y *tally) observer() Observer {
	y.n = map[PreconnectResult]int{}
	return Observer{Preconnect: func(_ string, r PreconnectResult) {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.n[r]++
	}}
}

func (y *tally) get(r PreconnectResult) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.n[r]
}

// spareServer starts a TLS server that requires a client certificate, and calls handle
// for each accepted connection. Accepted counts those.
func spareServer(t *testing.T, handle func(*tls.Conn)) (addr string, client *tls.Config, accepted *atomic.Int64) {
	t.Helper()
	cert, pool := selfSigned(t)
	server := &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	accepted = &atomic.Int64{}
	addr = backend(t, func(c *net.TCPConn) {
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

func (f *fixture) awaitSpares(n int) {
	f.t.Helper()
	f.awaitAddress(func(a AddressStatus) bool { return a.Spares == n })
}

func TestSessionsGetSpares(t *testing.T) {
	addr, client, accepted := spareServer(t, echoTLS)
	cfg, y := tlsUpstream(addr, client), &tally{}
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 3, MaxAge: time.Hour}
	f := serve(t, Options{Observer: y.observer()}, cfg)
	f.awaitSpares(3) // with no traffic at all
	for range 10 {
		f.awaitSpares(3)
		c := f.client(0)
		ping(t, c)
		c.Close()
		if r := f.record(); r.Reason != outcome.Closed || r.Address != addr || r.Attempts != 1 {
			t.Errorf("record %+v", r)
		}
	}
	f.awaitSpares(3)
	await(t, "13 connections at the server", func() bool { return accepted.Load() == 13 })
	if hits := y.get(PreconnectHit); hits != 10 {
		t.Errorf("%d hits of 10", hits)
	}
	if n := f.upstreams[0].members()[0].places.Load(); n != 3 {
		t.Errorf("%d places are taken", n)
	}
}

func TestSparesKeepWhatTheServerSaysFirst(t *testing.T) {
	addr, client, _ := spareServer(t, func(s *tls.Conn) {
		io.WriteString(s, "220 hel")
		io.WriteString(s, "lo\r\n")
		echoTLS(s)
	})
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	f := serve(t, Options{}, cfg)
	for range 6 {
		f.awaitSpares(2)
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

func TestDeadSparesAreUnseen(t *testing.T) {
	var mu sync.Mutex
	var live []*tls.Conn
	addr, client, _ := spareServer(t, func(s *tls.Conn) {
		mu.Lock()
		live = append(live, s)
		mu.Unlock()
		echoTLS(s)
	})
	cfg, y := tlsUpstream(addr, client), &tally{}
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 4, MaxAge: time.Hour}
	f := serve(t, Options{Observer: y.observer()}, cfg)
	for i := range 4 {
		f.awaitSpares(4)
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
	t.Logf("hits %d, misses %d, stale %d", y.get(PreconnectHit), y.get(PreconnectMiss), y.get(PreconnectStale))
}

func TestSparesAgeAndRotate(t *testing.T) {
	addr, client, accepted := spareServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	var current atomic.Pointer[tls.Config]
	current.Store(client)
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) { return current.Load(), nil }
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	f := serve(t, Options{}, cfg)
	f.awaitSpares(2)
	current.Store(client.Clone()) // a new generation of the identity
	ping(t, f.client(0))
	f.awaitSpares(2)
	if n := accepted.Load(); n < 3 {
		t.Errorf("the server accepted %d: the client got a connection of the old identity", n)
	}

	addr, client, accepted = spareServer(t, echoTLS)
	cfg = tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 2, MaxAge: 100 * time.Millisecond}
	serve(t, Options{}, cfg)
	await(t, "spares that have aged", func() bool { return accepted.Load() >= 6 })
}

// await waits until is returns true; another goroutine makes it so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.After(bound)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("no %s within %v", what, bound)
		}
	}
}

func TestSparesRespectLimits(t *testing.T) {
	addr, client, _ := spareServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 8, MaxAge: time.Hour}
	cfg.Upstreams[0].MaxConnections = 3
	f := serve(t, Options{}, cfg)
	f.awaitSpares(3)
	var clients []net.Conn
	for i := range 3 {
		c := f.client(0)
		ping(t, c)
		clients = append(clients, c)
		st := f.awaitAddress(func(a AddressStatus) bool { return a.Sessions == i+1 })
		if st.Spares+st.Sessions > 3 {
			t.Errorf("%d spares and %d sessions", st.Spares, st.Sessions)
		}
	}
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Limit {
		t.Errorf("record %+v", r)
	}
	for _, c := range clients {
		c.Close()
	}
	f.awaitSpares(3)
}

func TestSparesOfAServerThatRefusesUs(t *testing.T) {
	cert, pool := selfSigned(t)
	var tries atomic.Int64
	addr := backend(t, func(c *net.TCPConn) {
		tries.Add(1)
		tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}).Handshake()
	})
	cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool}) // without our certificate
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 4, MaxAge: time.Hour}
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 3, Open: time.Minute}
	f := serve(t, Options{}, cfg)
	f.awaitAddress(func(a AddressStatus) bool { return a.Breaker == "open" && a.Spares == 0 })
	if n := tries.Load(); n > 12 {
		t.Errorf("%d tries until it was left alone", n)
	}
}

// A preconnected connection is a trial like a session: it closes a half-open breaker.
func TestSparesAreTrials(t *testing.T) {
	addr := refusedAddress(t)
	cfg := oneUpstream(addr)
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 1, Open: 50 * time.Millisecond}
	f := serve(t, Options{}, cfg)
	f.awaitAddress(func(a AddressStatus) bool { return a.Breaker == "open" })
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
	f.awaitAddress(func(a AddressStatus) bool { return a.Breaker == "closed" && a.Spares == 2 })
	ping(t, f.client(0))
}

func TestSparesOfAnAddressThatIsDownAreDropped(t *testing.T) {
	addr, client, _ := spareServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	f := serve(t, Options{}, cfg)
	f.awaitSpares(2)
	u := f.upstreams[0]
	u.judge(u.members()[0].address, false, "as the test wants it", time.Now())
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.NoEndpoint {
		t.Errorf("record %+v", r)
	}
	f.awaitSpares(0)
	u.judge(u.members()[0].address, true, "", time.Now())
	f.awaitSpares(2)
}

func TestReloadKeepsWhatIsKnownOfAnUnchangedUpstream(t *testing.T) {
	addr, client, accepted := spareServer(t, echoTLS)
	cfg := tlsUpstream(addr, client)
	cfg.Upstreams[0].Preconnect = PreconnectConfig{Connections: 2, MaxAge: time.Hour}
	cfg.Upstreams[0].Key = "the same"
	f := serve(t, Options{}, cfg)
	f.awaitSpares(2)
	await(t, "two connections", func() bool { return accepted.Load() == 2 })
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	ping(t, f.client(0))
	f.awaitSpares(2)
	await(t, "a third connection", func() bool { return accepted.Load() == 3 })
	cfg.Upstreams[0].Key = "another"
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	f.awaitSpares(2)
	await(t, "two new connections", func() bool { return accepted.Load() == 5 })
}

// A MySQL server counts an unused preconnected connection as a failed client. Without
// sessions at most maxGreetings are made, and more only after a session.
func TestUnusedSparesOfMySQL(t *testing.T) {
	for greeting, endless := range map[string]bool{mysqlHello: false, "220 mail\r\n": true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": says(greeting)}}
			cfg := UpstreamConfig{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Preconnect: PreconnectConfig{Connections: 4, MaxAge: 10 * time.Second}}
			u, err := newUpstream(cfg, upstreamDeps{dial: f.dial})
			if err != nil {
				t.Fatal(err)
			}
			u.spares = newSpares(u, func() bool { return true })
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); u.run(ctx) }()
			defer func() { cancel(); <-done }()
			p := &proved{u, f, t}
			for range 2 {
				before := p.dials()
				time.Sleep(time.Hour)
				if n := p.dials() - before; endless != (n > maxGreetings) || n < 4 {
					t.Errorf("%q: %d spares in an hour without a session", greeting, n)
				}
				p.session(outcome.OK)
			}
		})
	}
}
