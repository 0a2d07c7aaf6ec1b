package l4

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ambassador/l4/htpasswd"
	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// change applies the configuration with one listener changed.
func (f *fixture) change(cfg Config, change func(*ListenerConfig)) {
	f.t.Helper()
	cfg.Listeners = slices.Clone(cfg.Listeners)
	change(&cfg.Listeners[0])
	if err := f.Apply(cfg); err != nil {
		f.t.Fatal(err)
	}
}

// toLocalhost is a complete SOCKS5 request without a login, for the port of at.
func toLocalhost(t *testing.T, at string) string {
	t.Helper()
	ap := netip.MustParseAddrPort(at)
	return "\x05\x01\x00" + "\x05\x01\x00\x03\x09localhost" + string([]byte{byte(ap.Port() >> 8), byte(ap.Port())})
}

// A client that is still in its greeting at a reload is judged by the configuration in
// use when the greeting is complete. The configuration in use when it connected does
// not count.
func TestAReloadCountsForClientsThatAreWaitedFor(t *testing.T) {
	parks(t)
	one := l4test.Backend(t, l4test.Echo)
	two := l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, "two\n"); io.Copy(io.Discard, c) })
	here := policy.Rule{Name: "here", Hosts: []string{"localhost"}, Upstream: "out"}
	cfg := egress(here)
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	cfg.Listeners[0].Greeting = "SOCKS5"
	cfg.Upstreams = append(cfg.Upstreams, upstream.Config{Name: "fixed", Endpoints: endpointsAt(two)})
	for _, tt := range []struct {
		name   string
		change func(*ListenerConfig)
		reply  byte
		reason outcome.Reason
		rule   string
		cause  string
	}{
		{"the same again", func(c *ListenerConfig) { c.Rules = policy.NewRules([]policy.Rule{here}) }, 0, outcome.Closed, "here", ""},
		{"a rule that denies", func(c *ListenerConfig) {
			c.Rules = policy.NewRules([]policy.Rule{{Name: "no", Deny: "not any more"}})
		}, 2, outcome.Denied, "no", "not any more"},
		{"another upstream", func(c *ListenerConfig) { c.Rules, c.Upstream = nil, "fixed" }, 0, outcome.Closed, "", ""},
		{"another greeting", func(c *ListenerConfig) { c.Greeting = "SOCKS5 in TLS" }, 2, outcome.NoRoute, "", "a reload has changed listener in since the client connected"},
		{"users", func(c *ListenerConfig) { c.Users = userNamed(t, "a") }, 2, outcome.NoRoute, "", "a reload has changed listener in"},
		{"another address", func(c *ListenerConfig) { c.Addresses = []string{"127.0.0.2:0"} }, 2, outcome.NoRoute, "", "a reload has removed listener in"},
		{"another name", func(c *ListenerConfig) { c.Name = "renamed" }, 2, outcome.NoRoute, "", "a reload has removed listener in"}, // its port is chosen by the system
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, Options{}, cfg)
			silent, begun := f.client(0), f.client(0)
			silent.SetDeadline(time.Now().Add(l4test.Bound))
			begun.SetDeadline(time.Now().Add(l4test.Bound))
			text := toLocalhost(t, one)
			begun.Write([]byte(text[:5]))
			f.until("both to be parked", func() bool { return f.parked() == 2 && f.suspended() == 1 })
			f.change(cfg, tt.change)
			for c, rest := range map[*net.TCPConn]string{silent: text, begun: text[5:]} {
				c.Write([]byte(rest))
				reply := make([]byte, 2+10)
				if _, err := io.ReadFull(c, reply); err != nil || reply[3] != tt.reply {
					t.Errorf("reply %x, %v; want %d", reply, err, tt.reply)
				}
				switch {
				case tt.reply != 0:
				case tt.name == "another upstream":
					if line, err := io.ReadAll(io.LimitReader(c, 4)); string(line) != "two\n" {
						t.Errorf("it is connected to %q, %v", line, err)
					}
				default:
					ping(t, c)
				}
				c.Close()
				r := f.record()
				if r.Reason != tt.reason || r.Rule != tt.rule || !strings.Contains(r.Cause, tt.cause) || r.Listener != "in" {
					t.Errorf("record %+v; want %s by rule %q, %q", r, tt.reason, tt.rule, tt.cause)
				}
			}
			for _, traffic := range f.Traffic() {
				if traffic.Active != 0 || tt.name == "another upstream" && traffic.Down > 0 != (traffic.Upstream == "fixed") {
					t.Errorf("traffic %+v: a session is counted elsewhere", traffic)
				}
			}
		})
	}
}

// userNamed returns users with one name, whose password is pw.
func userNamed(t *testing.T, name string) *htpasswd.Users {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("pw"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	list, err := htpasswd.Parse(append([]byte(name+":"), hash...))
	if err != nil {
		t.Fatal(err)
	}
	return htpasswd.New(list)
}

// The users in use when the client logs in decide. A reload that changes them
// invalidates a login before it.
func TestAReloadOfUsersCountsForClientsThatAreWaitedFor(t *testing.T) {
	parks(t)
	at := l4test.Backend(t, l4test.Echo)
	cfg := egress(policy.Rule{Hosts: []string{"localhost"}, Upstream: "out"})
	cfg.Listeners[0].Timeouts.Handshake = time.Hour
	cfg.Listeners[0].Users = userNamed(t, "old")
	login := func(name string) string { return "\x01" + string(rune(len(name))) + name + "\x02pw" }
	hear := func(c net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("heard %q, %v; want %q", got, err, want)
		}
	}
	f := serve(t, Options{}, cfg)
	request := toLocalhost(t, at)[3:]
	var clients []*net.TCPConn
	for range 3 {
		c := f.client(0)
		c.SetDeadline(time.Now().Add(l4test.Bound))
		c.Write([]byte("\x05\x01\x02"))
		hear(c, "\x05\x02")
		clients = append(clients, c)
	}
	gone, old, fresh := clients[0], clients[1], clients[2]
	gone.Write([]byte(login("old")))
	hear(gone, "\x01\x00") // before the reload
	f.change(cfg, func(c *ListenerConfig) { c.Users = userNamed(t, "new") })

	gone.Write([]byte(request))
	hear(gone, "\x05\x02")
	if r := f.record(); r.Reason != outcome.NoRoute || r.User != "old" {
		t.Errorf("who logged in by the old users: %+v", r)
	}
	old.Write([]byte(login("old")))
	hear(old, "\x01\x01")
	if r := f.record(); r.Reason != outcome.AuthFailed {
		t.Errorf("a user who is gone: %+v", r)
	}
	fresh.Write([]byte(login("new")))
	hear(fresh, "\x01\x00")
	fresh.Write([]byte(request))
	hear(fresh, "\x05\x00\x00\x01")
	if _, err := io.ReadFull(fresh, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	fresh.Close()
	if r := f.record(); r.Stage != outcome.StageRelay || r.User != "new" {
		t.Errorf("a new user: %+v", r)
	}
}

// A reload during a lookup for the old rules is not missed.
func TestAReloadDuringALookup(t *testing.T) {
	z := &l4test.Zone{Hosts: map[string][]string{"db.test": {"127.0.0.1"}}}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	asked, answer := make(chan bool, 100), make(chan struct{})
	go func() { // ends with conn; answers nothing before it may
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			asked <- true
			<-answer
			if reply, err := z.Answer(buf[:n]); err == nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	open := policy.Rule{Name: "open", IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "out"}
	cfg := egress(open)
	cfg.Listeners[0].DNSServers = []string{conn.LocalAddr().String()}
	f := serve(t, Options{}, cfg)
	c := f.client(0)
	c.SetDeadline(time.Now().Add(l4test.Bound))
	c.Write([]byte("\x05\x01\x00" + "\x05\x01\x00\x03\x07db.test\x00\x01"))
	select {
	case <-asked:
	case <-time.After(l4test.Bound):
		t.Fatal("nobody asks for the name")
	}
	f.change(cfg, func(c *ListenerConfig) {
		c.Rules = policy.NewRules([]policy.Rule{{Name: "no", Deny: "not any more"}, open})
	})
	close(answer)
	reply := make([]byte, 2+10)
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if r := f.record(); reply[3] != 2 || r.Reason != outcome.Denied || r.Rule != "no" {
		t.Errorf("reply %x, record %+v; want it denied by the new rules", reply, r)
	}
}
