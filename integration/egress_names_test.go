package integration

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// zone is a name server whose answers a test makes up, over UDP and TCP.
type zone struct {
	addr   string
	reply  func(question) answer
	done   chan struct{}  // closed at the end
	served sync.WaitGroup // all its goroutines

	mu    sync.Mutex
	count map[string]int // guarded by mu; questions for IPv4 addresses, by name
}

// question is a query for the addresses of a name.
type question struct {
	name string // lower-case, without the last dot
	v6   bool
	nth  int // how often IPv4 addresses of the name were asked for, this one included
}

// answer is the answer to a query. The zero value: the name has no such address.
type answer struct {
	addrs   []string // those of the question's family are sent, in this order
	cname   string   // with the last dot; instead of addresses
	unknown bool     // there is no such name
	silent  bool     // no answer is sent at all
	delay   time.Duration
}

// startZone starts one that ends with the test.
func startZone(t testing.TB, reply func(question) answer) *zone {
	t.Helper()
	return startZoneAt(t, "127.0.0.1:0", reply)
}

// startZoneAt is startZone at an address.
func startZoneAt(t testing.TB, addr string, reply func(question) answer) *zone {
	t.Helper()
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		tcp.Close()
		t.Fatal(err)
	}
	z := &zone{addr: tcp.Addr().String(), reply: reply, done: make(chan struct{}), count: map[string]int{}}
	z.served.Go(func() { z.serveUDP(udp) }) // ends with the socket
	z.served.Go(func() { z.serveTCP(tcp) }) // ends with the socket
	t.Cleanup(func() {
		close(z.done)
		udp.Close()
		tcp.Close()
		z.served.Wait()
	})
	return z
}

// asked is how often IPv4 addresses of a name were asked for; of all names if it is
// empty.
func (z *zone) asked(name string) (n int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for asked, times := range z.count {
		if name == "" || name == asked {
			n += times
		}
	}
	return n
}

func (z *zone) serveUDP(conn net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		query := append([]byte{}, b[:n]...)
		z.served.Go(func() { // ends by the answer's delay, or with the zone
			if text := z.answer(query, 1232); text != nil {
				conn.WriteTo(text, from)
			}
		})
	}
}

func (z *zone) serveTCP(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		z.served.Go(func() { // ends by the deadline
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			size := make([]byte, 2)
			if _, err := io.ReadFull(c, size); err != nil {
				return
			}
			query := make([]byte, int(size[0])<<8|int(size[1]))
			if _, err := io.ReadFull(c, query); err != nil {
				return
			}
			text := z.answer(query, 1<<16)
			c.Write(append([]byte{byte(len(text) >> 8), byte(len(text))}, text...))
		})
	}
}

// answer is the message that answers a query, truncated to its head if it has more
// than max bytes; nil if there is none.
func (z *zone) answer(query []byte, max int) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil
	}
	asked, err := p.Question()
	if err != nil {
		return nil
	}
	q := question{name: strings.ToLower(strings.TrimSuffix(asked.Name.String(), ".")), v6: asked.Type == dnsmessage.TypeAAAA}
	z.mu.Lock()
	if asked.Type == dnsmessage.TypeA {
		z.count[q.name]++
	}
	q.nth = z.count[q.name]
	z.mu.Unlock()
	a := z.reply(q)
	select {
	case <-time.After(a.delay):
	case <-z.done:
		return nil
	}
	if a.silent {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: head.ID, Response: true, RecursionAvailable: true}, Questions: []dnsmessage.Question{asked}}
	if a.unknown {
		m.RCode = dnsmessage.RCodeNameError
	}
	m.Answers = a.records(asked.Name, q.v6)
	text, err := m.Pack()
	if err == nil && len(text) > max {
		m.Truncated, m.Answers = true, nil
		text, err = m.Pack()
	}
	if err != nil {
		panic(err) // the test's own answer is malformed
	}
	return text
}

func (a answer) records(name dnsmessage.Name, v6 bool) (out []dnsmessage.Resource) {
	add := func(kind dnsmessage.Type, body dnsmessage.ResourceBody) {
		out = append(out, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Type: kind, Class: dnsmessage.ClassINET, TTL: 1}, Body: body})
	}
	if a.cname != "" {
		add(dnsmessage.TypeCNAME, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(a.cname)})
		return out
	}
	for _, s := range a.addrs {
		switch addr := netip.MustParseAddr(s); {
		case addr.Is4() && !v6:
			add(dnsmessage.TypeA, &dnsmessage.AResource{A: addr.As4()})
		case addr.Is6() && v6:
			add(dnsmessage.TypeAAAA, &dnsmessage.AAAAResource{AAAA: addr.As16()})
		}
	}
	return out
}

// thousand is as many addresses of 127.0.0.0/8 at which nobody listens.
func thousand() (out []string) {
	for i := range 1000 {
		out = append(out, fmt.Sprintf("127.77.%d.%d", i/250, 1+i%250))
	}
	return out
}

// TestNamesThatClientsAsk proves that a name is looked up once per session, for a rule
// that needs its addresses or for the dial; that only the addresses which the rule
// keeps are dialled; and that for any failure of a name server the client gets an
// answer in time.
func TestNamesThatClientsAsk(t *testing.T) {
	t.Parallel()
	srv := startServer(t, nil, echoLines)
	port := hostPort(srv.addr)
	many := thousand()
	many[500] = "127.0.0.1"
	public := thousand()
	for i := range public {
		public[i] = strings.Replace(public[i], "127.77.", "198.41.", 1)
	}
	public[999] = "127.0.0.1"
	z := startZone(t, func(q question) answer {
		switch q.name {
		case "here.test", "twice.test":
			return answer{addrs: []string{"127.0.0.1"}}
		case "both.test":
			return answer{addrs: []string{"198.41.0.4", "127.0.0.1"}}
		case "dead.test":
			return answer{addrs: thousand()}
		case "public.test":
			return answer{addrs: public}
		case "slow.test":
			return answer{addrs: []string{"127.0.0.1"}, delay: 300 * time.Millisecond}
		case "silent.test":
			return answer{silent: true}
		case "loop.test":
			return answer{cname: "pool.test."}
		case "pool.test":
			return answer{cname: "loop.test."}
		}
		return answer{unknown: true}
	})
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
upstreams:
  internet: {dynamic: true, connect: {timeout: 1500ms, attempts: 3, backoff: 1ms}, breaker: {failures: 0}}
listeners:
  socks:
    listen: "127.0.0.1:0"
    socks5: {}
    rules:
      - {deny: "no such port", port: 1}
      - {host: [silent.test, loop.test, unknown.test], upstream: internet}
      - {deny: "that is here", host: both.test, ip: [127.0.0.0/8]}
      - {host: nowhere.test, ip: [10.0.0.0/8], upstream: internet}
      - {host: "*.test", ip: [127.0.0.0/8], upstream: internet}
`, z.addr)))
	a.reaches("socks", "", "here.test:"+port)
	if n := z.asked("here.test"); n != 1 {
		t.Errorf("for one session the name was looked up %d times", n)
	}
	a.refusal("socks", "", "twice.test:1", socksNotAllowed, "denied")
	if n := z.asked("twice.test"); n != 0 {
		t.Errorf("it was looked up %d times for a rule that did not need it", n)
	}
	a.reaches("socks", "", "slow.test:"+port)
	a.reaches("socks", "", "public.test:"+port) // the answer comes over TCP, and one address of it is kept
	if rec := a.refusal("socks", "", "dead.test:"+port, socksRefused, "refused"); rec.Attempts != 16 {
		t.Errorf("%d attempts at 1,000 dead addresses, want 16", rec.Attempts)
	}
	a.refusal("socks", "", "both.test:"+port, socksNotAllowed, "denied")
	if n := z.asked("dead.test") + z.asked("both.test"); n != 2+1 { // the long answer is asked for again, over TCP
		t.Errorf("two sessions asked %d times", n)
	}
	for _, c := range []struct {
		name   string
		within time.Duration
	}{{"unknown.test", time.Second}, {"loop.test", time.Second}, {"silent.test", 3 * time.Second}} {
		start := time.Now()
		a.refusal("socks", "", c.name+":"+port, socksHostUnknown, "dns")
		if took := time.Since(start); took > c.within {
			t.Errorf("%s: the reply took %v", c.name, took)
		}
	}
}

// TestRebinding proves that a name which resolves to a public address now and to this
// host the next moment never leads to this host: not in any order of its addresses,
// not if the public one is dead, and not by another family.
func TestRebinding(t *testing.T) {
	t.Parallel()
	inNamespace(t)
	const port, dead = "7000", "7001"
	shop := serverAt(t, net.JoinHostPort(publicIPv4, port), echoLines)
	secrets := []*server{serverAt(t, "127.0.0.1:"+port, echoLines), serverAt(t, "127.0.0.1:"+dead, echoLines), serverAt(t, "[::1]:"+port, echoLines), serverAt(t, "[::1]:"+dead, echoLines)}
	z := startZone(t, func(q question) answer {
		here, there := []string{"127.0.0.1", "::1"}, []string{publicIPv4}
		switch {
		case strings.HasPrefix(q.name, "turn"): // with every question
			if q.nth%2 == 0 {
				return answer{addrs: here}
			}
			return answer{addrs: there}
		case strings.HasPrefix(q.name, "first"):
			return answer{addrs: append(here, there...)}
		}
		return answer{addrs: append(there, here...)}
	})
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
upstreams:
  internet: {dynamic: true, connect: {timeout: 2s, attempts: 3, backoff: 1ms}, breaker: {failures: 0}}
listeners:
  byhost: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: "*.rebind.test", upstream: internet}]}
  byname: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: turn.whole.test, upstream: internet}]}
  byip: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: [0.0.0.0/0, "::/0"], upstream: internet}]}
  any: {listen: "127.0.0.1:0", socks5: {}, rules: [{upstream: internet}]}
`, z.addr)))
	asked := 0
	for _, listener := range []string{"byhost", "byname", "byip", "any"} {
		for _, name := range []string{"turn.rebind.test", "first.rebind.test", "last.rebind.test", "turn.whole.test"} {
			for range 6 {
				for _, p := range []string{port, dead, port} { // an odd number: each port sees each turn
					c, reply := a.socks(listener, "", name+":"+p)
					if asked++; reply == socksOK {
						line(t, c, "to "+name)
					}
					c.Close()
				}
			}
		}
	}
	if err := shop.received("to turn.rebind.test", patience); err != nil {
		t.Error(err) // else the test has proved nothing
	}
	a.await(`"destination":"turn.rebind.test:7000".*"reason":"special_address"`)
	for _, s := range secrets {
		if seen := s.reports(); seen != "" {
			t.Errorf("%s was reached: %s", s.addr, seen)
		}
	}
	t.Logf("%d sessions, %d look-ups", asked, z.asked(""))
}
