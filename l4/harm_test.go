package l4

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// nonsense is the first byte of clients whose server closes because of what they send.
const nonsense = 'x'

// closesOnNonsense echoes, unless the client's first byte is nonsense.
func closesOnNonsense(c io.ReadWriter) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err == nil && first[0] != nonsense {
		c.Write(first)
		io.Copy(c, c)
	}
}

// pgStartupOf is a client's first message, with a user name of one letter.
func pgStartupOf(user byte) string {
	return "\x00\x00\x00\x10\x00\x03\x00\x00user\x00" + string(user) + "\x00\x00"
}

// What a client sends must not affect other clients: a server that closes because of it
// is healthy. The same holds for health without a breaker.
func TestWhatAClientSaysOpensNoBreaker(t *testing.T) {
	plainTLS := func(t *testing.T) Config {
		cert, pool := l4test.SelfSigned(t)
		return tlsUpstream(l4test.Backend(t, func(c *net.TCPConn) {
			closesOnNonsense(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}))
		}),
			&tls.Config{ServerName: "localhost", RootCAs: pool})
	}
	postgres := func(t *testing.T) Config {
		return starttlsUpstream(t, "postgres", func(cfg *tls.Config) string {
			return starttlsBackend(t, "", 8, "S", cfg, func(s *tls.Conn) {
				startup := make([]byte, len(pgStartupOf('a')))
				if _, err := io.ReadFull(s, startup); err == nil && !strings.Contains(string(startup), "x\x00\x00") {
					io.WriteString(s, "R\x00\x00\x00\x08\x00\x00\x00\x00")
					io.Copy(s, s)
				}
			})
		})
	}
	mysql := func(t *testing.T) Config {
		return starttlsUpstream(t, "mysql", func(cfg *tls.Config) string {
			return l4test.Backend(t, func(c *net.TCPConn) {
				io.WriteString(c, l4test.MySQLHello)
				request := make([]byte, 36)
				if _, err := io.ReadFull(c, request); err != nil || request[12] == nonsense { // the character set
					return
				}
				if s := tls.Server(c, cfg); s.Handshake() == nil {
					mysqlEcho(s)
				}
			})
		})
	}
	struck := strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1)
	for _, tt := range []struct {
		name      string
		cfg       func(*testing.T) Config
		bad, good func(t *testing.T, f *fixture)
	}{
		{"a server that closes", func(t *testing.T) Config {
			return oneUpstream(l4test.Backend(t, func(c *net.TCPConn) { closesOnNonsense(c) }))
		}, says1(string(nonsense)), pings},
		{"a server that resets", func(t *testing.T) Config {
			return oneUpstream(l4test.Backend(t, func(c *net.TCPConn) { closesOnNonsense(c); c.SetLinger(0) }))
		}, says1(string(nonsense)), pings},
		{"a server with TLS", plainTLS, says1(string(nonsense)), pings},
		{"a postgres server", postgres, says1(pgStartupOf(nonsense)), func(t *testing.T, f *fixture) {
			c := f.client(0)
			io.WriteString(c, pgStartupOf('a'))
			hear(t, c, "R\x00\x00\x00\x08\x00\x00\x00\x00")
		}},
		{"a mysql server that ends within TLS", mysql, says1(strings.Replace(l4test.MySQLReply, "\x01\x21", "\x01"+string(nonsense), 1)), func(t *testing.T, f *fixture) {
			c := f.client(0)
			hear(t, c, struck)
			io.WriteString(c, l4test.MySQLReply)
			hear(t, c, "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg(t)
			cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
			f := serve(t, Options{}, cfg)
			for range 6 {
				tt.bad(t, f)
				if r := f.record(); r.Stage == outcome.StagePermit {
					t.Fatalf("refused: %+v", r)
				}
				if a := f.address(); a.LastError != "" {
					t.Fatalf("the address failed: %s", a.LastError)
				}
			}
			tt.good(t, f)
			if a := f.address(); a.Breaker != "closed" {
				t.Errorf("the breaker is %s", a.Breaker)
			}
		})
	}
	t.Run("a destination", func(t *testing.T) {
		cfg := egress(policy.Rule{Hosts: []string{"localhost"}, Upstream: "out"})
		cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
		f := serve(t, Options{}, cfg)
		_, port, _ := net.SplitHostPort(l4test.Backend(t, func(c *net.TCPConn) { closesOnNonsense(c) }))
		for range 6 {
			c, reply := f.socks("localhost:" + port)
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			c.Write([]byte{nonsense})
			io.Copy(io.Discard, c)
			c.Close()
		}
		c, reply := f.socks("localhost:" + port)
		if reply != 0 {
			t.Fatalf("an honest client gets reply %d", reply)
		}
		ping(t, c)
	})
}

// says1 is a client that sends text and reads until the server closes.
func says1(text string) func(*testing.T, *fixture) {
	return func(t *testing.T, f *fixture) {
		c := f.client(0)
		io.WriteString(c, text)
		io.Copy(io.Discard, c)
		c.Close()
	}
}

func pings(t *testing.T, f *fixture) { ping(t, f.client(0)) }

// A server that reports that it is at its limit is healthy, and its message reaches the
// client every time.
func TestAFullServerOpensNoBreaker(t *testing.T) {
	full := func(code string) string { return "\x17\x00\x00\x00\xff" + code + "Too many connections" }
	for protocol, reply := range map[string]string{"mysql": full("\x10\x04"), "smtp": "421 4.7.0 too many connections\r\n"} {
		t.Run(protocol, func(t *testing.T) {
			addr := l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, reply) })
			cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost"})
			cfg.Upstreams[0].StartTLS = protocol
			cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
			f := serve(t, Options{}, cfg)
			for range 6 {
				if text, err := io.ReadAll(f.client(0)); err != nil || string(text) != reply {
					t.Fatalf("the client is told %q, %v", text, err)
				}
			}
			if r := f.record(); r.Reason != outcome.StartTLSRefused {
				t.Errorf("record: %+v", r)
			}
			if a := f.address(); a.LastError != "" || a.Breaker != "closed" {
				t.Errorf("the address failed: %s; the breaker is %s", a.LastError, a.Breaker)
			}
		})
	}
}
