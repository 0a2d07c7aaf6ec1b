package l4

import (
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// A client's handshake is bounded before it is parsed.
func TestHandshakesAreBounded(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	f := serve(t, Options{}, cfg)
	const record = 16 << 10
	hello := "\x16\x03\x01\x40\x00\x01\x00\xff\xff" + strings.Repeat("x", record-4) + "\x16\x03\x01\x40\x00" + strings.Repeat("x", record)
	c := f.client(0)
	io.WriteString(c, hello+hello)
	io.Copy(io.Discard, c)
	if r := f.record(); r.Reason != outcome.DownstreamTLS || !strings.Contains(r.Cause, "ClientHello of more than 32768 bytes") {
		t.Errorf("a hello of 64 KiB: %+v", r)
	}
	long := cert
	for len(long.Certificate) < 500 { // about 400 bytes each
		long.Certificate = append(long.Certificate, cert.Certificate[0])
	}
	conn := tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{long}})
	conn.Handshake()
	io.Copy(io.Discard, conn)
	if r := f.record(); r.Reason != outcome.DownstreamTLS || !strings.Contains(r.Cause, "more than 135168 bytes") {
		t.Errorf("a list of %d certificates: %+v", len(long.Certificate), r)
	}
	ping(t, tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}))
}

// pour writes as long as the client accepts bytes.
func pour(c *net.TCPConn) {
	for b := make([]byte, 64<<10); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// Clients that do not read hold no more than the bound in total. The sessions that have
// moved no byte for the longest time end; others continue.
func TestSlowReadersAreBounded(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			addr := l4test.Backend(t, func(c *net.TCPConn) {
				first := make([]byte, 1)
				if _, err := io.ReadFull(c, first); err == nil && first[0] == 'f' {
					pour(c)
				}
				c.Write(first)
				l4test.Echo(c)
			})
			cfg := oneUpstream(addr)
			dial := func(f *fixture) net.Conn { return f.client(0) }
			if secure {
				var cert tls.Certificate
				cfg, cert, _ = tlsListener(t, addr)
				dial = func(f *fixture) net.Conn {
					return tls.Client(f.client(0), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
				}
			}
			cfg.MaxMemory = 1 << 17
			f := serve(t, Options{}, cfg)
			honest := dial(f)
			ping(t, honest)
			for range 40 {
				c := dial(f)
				io.WriteString(c, "f")
				io.ReadFull(c, make([]byte, 1)) // it is relayed, or has ended; a crowd that is not relayed yet has a bound of its own
			}
			r := f.record()
			if r.Reason != outcome.Limit || r.Limit != "limits.memory" || r.Stage != outcome.StageRelay {
				t.Errorf("record: %+v", r)
			}
			f.until("the bound to hold", func() bool { return f.HeldBytes() <= cfg.MaxMemory })
			ping(t, honest)
			ping(t, dial(f))
			f.stopAll(errKilled(""))
			f.until("all to be given back", func() bool { return f.active() == 0 && f.HeldBytes() == 0 })
		})
	}
}

// Many handshakes end no relayed session, even if that holds more than each of them.
func TestCrowdOfHandshakesEndsNoSlowReader(t *testing.T) {
	cfg, _, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "plain", Addresses: []string{"127.0.0.1:0"}, Upstream: "flood"})
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "flood", Endpoints: endpointsAt(l4test.Backend(t, pour))})
	cfg.MaxMemory = 4 << 20
	f := serve(t, Options{}, cfg)
	f.client(1)
	f.until("a slow reader to hold something", func() bool { return f.HeldBytes() > 0 })
	for range 400 {
		io.WriteString(f.client(0), "\x16")
	}
	for range 100 {
		if r := f.record(); r.Listener != "in" || r.Reason != outcome.Limit {
			t.Fatalf("record: %+v", r)
		}
	}
	if !slices.ContainsFunc(f.live(), func(s *session) bool { return s.route.limiter == f.listeners[1].limiter }) {
		t.Error("the slow reader has ended")
	}
}

// The bytes that a client sends before it names its destination are bounded as well.
func TestRequestsCountAsHeld(t *testing.T) {
	for name, cfg := range map[string]Config{
		"connect": {Listeners: []ListenerConfig{{Name: "in", Addresses: []string{"127.0.0.1:0"}, Request: RequestConnect, Upstream: "up"}}},
		"sni":     {Listeners: []ListenerConfig{{Name: "in", Addresses: []string{"127.0.0.1:0"}, SNI: true, Upstream: "up"}}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Upstreams = oneUpstream(l4test.Backend(t, l4test.Echo)).Upstreams
			cfg.Upstreams[0].Dynamic, cfg.Upstreams[0].Endpoints = name == "connect", nil
			if name == "sni" {
				cfg.Upstreams = oneUpstream(l4test.Backend(t, l4test.Echo)).Upstreams
			}
			f := serve(t, Options{}, cfg)
			text := "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nX: " + strings.Repeat("x", 12<<10)
			if name == "sni" {
				text = "\x16\x03\x01\x40\x00\x01\x00\x7f\xff" + strings.Repeat("x", 12<<10)
			}
			io.WriteString(f.client(0), text)
			f.until("the request to be held", func() bool { return f.HeldBytes() > 20<<10 })
			f.stopAll(errKilled(""))
			f.until("it to be given back", func() bool { return f.HeldBytes() == 0 })
		})
	}
}

// Sessions that reach the relay while others are ended for memory end no other session,
// and no session waits for another.
func TestMemoryIsRelievedWhileSessionsAreRelayed(t *testing.T) {
	cfg, cert, _ := tlsListener(t, l4test.Backend(t, l4test.Echo))
	cfg.MaxMemory = 6 * leaveCost
	f := serve(t, Options{}, cfg)
	client := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 25 {
				c, err := net.Dial("tcp", f.Listening()[0].Addr)
				if err != nil {
					continue // ended before it was connected
				}
				c.SetDeadline(time.Now().Add(l4test.Bound))
				tls.Client(c, client).Write([]byte("x")) // served, or ended for memory
				c.Close()
			}
		})
	}
	all.Wait()
	f.until("all sessions to end", func() bool { return f.active() == 0 && f.HeldBytes() == 0 })
	if !slices.ContainsFunc(f.Recent(math.MaxInt), func(r outcome.Record) bool { return r.Reason == outcome.Limit }) {
		t.Error("no session was ended for memory")
	}
}
