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
	"ambassador/l4/upstream"
)

const (
	pgHello  = "\x00\x00\x00\x12\x00\x03\x00\x00user\x00app\x00\x00"
	pgAuthOK = "R\x00\x00\x00\x08\x00\x00\x00\x00"

	xmppClient   = "<?xml version='1.0'?><stream:stream to='x' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
	xmppRequest  = xmppClient + "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
	xmppServer   = "<stream:stream from='x' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
	xmppFeatures = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>"
	xmppProceed  = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
)

// script is one protocol up to TLS: what the server sends, what it waits for, and how
// it answers. Then it has what the server does under TLS, what the client sends first,
// and what the client receives.
type script struct {
	protocol, hello, request, answer string
	serve                            func(*tls.Conn)
	client, hears                    string
}

// scripts are all protocols. A server may send early what it would send anyway.
func scripts() []script {
	answering := func(first, answer string) func(*tls.Conn) {
		return func(s *tls.Conn) {
			if _, err := io.ReadFull(s, make([]byte, len(first))); err == nil {
				io.WriteString(s, answer)
				io.Copy(s, s)
			}
		}
	}
	echoes := func(s *tls.Conn) { io.Copy(s, s) }
	return []script{
		{"postgres", "", strings.Repeat("x", 8), "S", answering(pgHello, pgAuthOK), pgHello, pgAuthOK},
		{"mysql", l4test.MySQLHello, strings.Repeat("x", 36), "", mysqlEcho, l4test.MySQLReply,
			strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1) + "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00"},
		{"ldap", "", strings.Repeat("x", 31), "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00", echoes, "bind", "bind"},
		{"smtp", "220 m\r\n250-m\r\n250 STARTTLS\r\n", "EHLO [127.0.0.1]\r\nSTARTTLS\r\n", "220 go\r\n", echoes, "EHLO me\r\n", "220 m\r\nEHLO me\r\n"},
		{"imap", "* OK m\r\n", "A1 STARTTLS\r\n", "A1 OK\r\n", echoes, "a NOOP\r\n", "* OK m\r\na NOOP\r\n"},
		{"pop3", "+OK m\r\n", "STLS\r\n", "+OK\r\n", echoes, "NOOP\r\n", "+OK m\r\nNOOP\r\n"},
		{"xmpp", xmppServer + xmppFeatures, xmppRequest, xmppProceed, answering(xmppClient, xmppServer), xmppClient, xmppServer},
	}
}

// slowly writes the bytes one at a time.
func slowly(c net.Conn, text string) {
	for _, b := range []byte(text) {
		c.Write([]byte{b})
	}
}

// Single bytes from either side are understood in every protocol. The client sends at
// once, before TLS. None of its bytes may be sent in plaintext: the server would take
// them for a request of its own peer, or for TLS.
func TestSingleBytes(t *testing.T) {
	for _, sc := range scripts() {
		t.Run(sc.protocol, func(t *testing.T) {
			f := serve(t, Options{}, starttlsUpstream(t, sc.protocol, func(cfg *tls.Config) string {
				return l4test.Backend(t, func(c *net.TCPConn) {
					c.SetDeadline(time.Now().Add(l4test.Bound))
					slowly(c, sc.hello)
					if _, err := io.ReadFull(c, make([]byte, len(sc.request))); err != nil {
						return
					}
					slowly(c, sc.answer)
					sc.serve(tls.Server(c, cfg))
				})
			}))
			c := f.client(0)
			slowly(c, sc.client)
			hear(t, c, sc.hears)
			ping(t, c)
		})
	}
}

// Plaintext after the server's last answer before TLS never counts as sent under TLS
// (CVE-2011-0411, CVE-2021-23214): TLS fails.
func TestBytesBehindTheAnswer(t *testing.T) {
	const injected = "250 injected\r\n"
	for _, sc := range scripts() {
		t.Run(sc.protocol, func(t *testing.T) {
			f := serve(t, Options{}, starttlsUpstream(t, sc.protocol, func(cfg *tls.Config) string {
				return starttlsBackend(t, sc.hello, len(sc.request), sc.answer+injected, cfg, func(s *tls.Conn) {})
			}))
			c := f.client(0)
			io.WriteString(c, sc.client)
			c.CloseWrite()
			if text, _ := io.ReadAll(c); strings.Contains(string(text), "injected") && !strings.Contains(string(text), "ambassador: ") {
				t.Errorf("the client got %q", text)
			}
			if r := f.record(); r.Stage != outcome.StageTLS || r.Reason != outcome.UpstreamTLS {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// A server that withholds the last byte before TLS ends the attempt at its timeout.
// That is the attempt's own timeout, or that of the handshake if the server waits for
// the client.
func TestLateServers(t *testing.T) {
	for _, sc := range scripts() {
		t.Run(sc.protocol, func(t *testing.T) {
			t.Parallel()
			said := sc.hello + sc.answer
			cfg := starttlsUpstream(t, sc.protocol, func(*tls.Config) string {
				return l4test.Backend(t, func(c *net.TCPConn) { io.WriteString(c, said[:len(said)-1]); io.Copy(io.Discard, c) })
			})
			cfg.Upstreams[0].Connect = upstream.ConnectConfig{Attempts: 1, AttemptTimeout: 500 * time.Millisecond}
			cfg.Listeners[0].Timeouts.Handshake = 500 * time.Millisecond
			f := serve(t, Options{}, cfg)
			c := f.client(0)
			io.WriteString(c, sc.client)
			c.CloseWrite()
			io.Copy(io.Discard, c)
			want := outcome.StageStartTLS
			if sc.protocol == "xmpp" {
				want = outcome.StageDialogue
			}
			if r := f.record(); r.Stage != want || r.Reason != outcome.Timeout {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// If the protocol needs the client's message, a client that sends nothing, half of it,
// or too much ends only its own session, and the server is not blamed.
func TestHostileClientsOfOthers(t *testing.T) {
	for _, tt := range []struct {
		protocol, name, says string
		reason               outcome.Reason
		public               string
	}{
		{"postgres", "silent", "", outcome.HandshakeTimeout, ""},
		{"postgres", "half a message", pgHello[:9], outcome.HandshakeTimeout, ""},
		{"postgres", "a MiB", "\x7f\xff\xff\xff" + strings.Repeat("x", 1<<20), outcome.BadGreeting, "ambassador: postgres: the client sent"},
		{"xmpp", "silent", "", outcome.HandshakeTimeout, ""},
		{"xmpp", "half a header", xmppClient[:40], outcome.HandshakeTimeout, ""},
		{"xmpp", "a MiB", "<stream:stream to='" + strings.Repeat("x", 1<<20), outcome.BadGreeting, "ambassador: xmpp: the client sent"},
	} {
		t.Run(tt.protocol+" "+tt.name, func(t *testing.T) {
			reasons := make(chan outcome.Reason, 9)
			var cfg Config
			for _, sc := range scripts() {
				if sc.protocol == tt.protocol {
					cfg = starttlsUpstream(t, sc.protocol, func(cfg *tls.Config) string {
						return starttlsBackend(t, sc.hello, len(sc.request), sc.answer, cfg, sc.serve)
					})
				}
			}
			if tt.reason == outcome.HandshakeTimeout {
				cfg.Listeners[0].Timeouts.Handshake = 200 * time.Millisecond
			}
			f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}}, cfg)
			c := f.client(0)
			go io.WriteString(c, tt.says) // ends with c
			text, _ := io.ReadAll(c)
			if !strings.Contains(string(text), tt.public) {
				t.Errorf("the client is told %q, want %q", text, tt.public)
			}
			if r := f.record(); r.Reason != tt.reason || r.Stage != outcome.StageDialogue {
				t.Errorf("record %+v", r)
			}
			if len(reasons) > 0 {
				t.Errorf("the attempt settled as %s, want nothing of it", <-reasons)
			}
		})
	}
}
