package starttls

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
)

// flood is a peer that never stops: it sends first, and then unit again and again.
// At intervals it measures how much memory the dialogue holds.
type flood struct {
	first, unit string
	read        int    // how many bytes were taken
	before      uint64 // bytes of memory in use
	held        uint64 // the maximum added to that
	out         bytes.Buffer
}

func (f *flood) Read(b []byte) (int, error) {
	for i := range b {
		if n := f.read + i; n < len(f.first) {
			b[i] = f.first[n]
		} else {
			b[i] = f.unit[(n-len(f.first))%len(f.unit)]
		}
	}
	if (f.read+len(b))>>12 > f.read>>12 {
		now := inUse()
		f.held = max(f.held, now-min(f.before, now))
	}
	f.read += len(b)
	return len(b), nil
}

// inUse returns the size of live memory.
func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func (f *flood) Write(b []byte) (int, error) { return f.out.Write(b) }

// play runs a protocol's dialogue; tls is the server behind TLS.
func play(p *Protocol, down, up, tls io.ReadWriter) error {
	d, err := p.Upgrade(up)
	if err == nil && d.Begin != nil {
		_, err = d.Begin(down, up)
	}
	if err == nil && d.Finish != nil {
		_, err = d.Finish(down, tls)
	}
	return err
}

const (
	mostRead = 100 << 10 // bytes of a flood: MySQL's longest packet, and the rest
	mostHeld = 160 << 10 // bytes of memory: the promised 128 KiB, and the test's own
)

// drowned runs one flood, and fails the test if more than the bounds was read or
// kept.
func drowned(t *testing.T, f *flood, play func() error) error {
	t.Helper()
	f.before = inUse()
	err := play()
	if f.read > mostRead || f.held > mostHeld {
		t.Errorf("%d bytes were read, and %d held; want %d and %d at most", f.read, f.held, mostRead, mostHeld)
	}
	return err
}

// TestServerWithoutEnd: a server of any protocol that sends without end before TLS
// is refused, in bounded memory, and its client receives nothing of it.
func TestServerWithoutEnd(t *testing.T) {
	line := strings.Repeat("x", 500) + "\r\n"
	for _, tt := range []struct{ protocol, name, first, unit string }{
		{"postgres", "no TLS", "", "N"},
		{"postgres", "an error", "", "E\xff\xff\xff\xff"},
		{"mysql", "the longest greeting", "\xff\xff\xff\x00\x0a", "x"},
		{"mysql", "a greeting at the bound", "\x00\x10\x00\x00\x0a", "x"},
		{"mysql", "an error at the bound", "\x00\x10\x00\x00\xff", "x"},
		{"ldap", "the longest message", "\x30\x84\x7f\xff\xff\xff", "x"},
		{"ldap", "a message at the bound", "\x30\x83\x01\x00\x00", "x"},
		{"ldap", "a length of many bytes", "\x30\xff", "\xff"},
		{"smtp", "a line", "220 ", "x"},
		{"smtp", "a banner", "", "220-" + line},
		{"smtp", "capabilities", smtpGreets, "250-" + line},
		{"smtp", "an answer", smtpGreets + smtpLists, "220-" + line},
		{"imap", "a line", "* OK ", "x"},
		{"imap", "capabilities in the greeting", "* OK [CAPABILITY", " X"},
		{"imap", "capabilities", imapGreets, "* CAPABILITY " + line},
		{"imap", "an answer", imapGreets, "A1 OK"},
		{"pop3", "a line", "+OK ", "x"},
		{"pop3", "an answer", pop3Greets + "+OK", "x"},
		{"lmtp", "capabilities", smtpGreets, "250-" + line},
		{"sieve", "capabilities", "", "\"" + line},
		{"sieve", "a literal", "\"X\" {999999999}\r\n", "x"},
		{"sieve", "literals in one line", "\"X\" {9}\r\n", "xxxxxxxxx{9}\r\n"},
		{"nntp", "a line", "200 ", "x"},
		{"nats", "an INFO", "INFO {", "\"x\":1,"},
		{"nats", "brackets", "INFO ", "["},
		{"xmpp", "an attribute", "<stream:stream a='", "x"},
		{"xmpp", "a space", "", " "},
		{"xmpp", "features", prosodyOpen + "<stream:features>", "<x xmlns='urn:x'/>"},
		{"xmpp", "features in each other", prosodyOpen + "<stream:features>", "<x>"},
		{"xmpp", "an answer", prosodyOpen + prosodyTLS + "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'>", "<x/>"},
	} {
		t.Run(tt.protocol+" "+tt.name, func(t *testing.T) {
			up, down, tls := &flood{first: tt.first, unit: tt.unit}, newWire(xmppOpens), newWire("")
			err := drowned(t, up, func() error { return play(mustLookup(t, tt.protocol), down, up, tls) })
			var refused *RefusedError
			if !errors.As(err, &refused) || len(err.Error()) > 1000 {
				t.Errorf("err = %v, want a *RefusedError", err)
			}
			if down.out.Len() > 0 || tls.out.Len() > 0 {
				t.Errorf("the client hears %q, the server under TLS %q", down.out.String(), tls.out.String())
			}
		})
	}
}

// TestClientWithoutEnd: a client that sends without end is refused, in bounded
// memory, and the server receives nothing of it; where no byte of the client is
// needed, none is read.
func TestClientWithoutEnd(t *testing.T) {
	var refused *GreetingError
	for _, tt := range []struct{ protocol, name, server, first, unit string }{
		{"postgres", "the longest startup", "S", "\x7f\xff\xff\xff", "x"},
		{"postgres", "requests for TLS", "S", "", sslRequest},
		{"postgres", "requests for GSSAPI", "S", "", gssRequest},
		{"postgres", "the longest cancel request", "S", "\x7f\xff\xff\xff\x04\xd2\x16\x2e", "x"},
		{"mysql", "the longest packet", mariaGreets, "\xff\xff\xff\x01", "x"},
		{"mysql", "a request for TLS at the bound", mariaGreets, "\x00\x80\x01\x01\xff\xff", "x"},
		{"xmpp", "an attribute", prosodyOpen + prosodyTLS + prosodyGoes, "<stream:stream a='", "x"},
		{"xmpp", "a space", prosodyOpen + prosodyTLS + prosodyGoes, "", " "},
		{"smtp", "commands", smtpGreets + smtpLists + smtpGoes, "", "RSET\r\n"},
		{"imap", "commands", imapGreets + imapGoes, "", "a NOOP\r\n"},
		{"lmtp", "commands", smtpGreets + lmtpLists + smtpGoes, "", "RSET\r\n"},
		{"sieve", "commands", sieveBanner + sieveGoes, "", "NOOP\r\n"},
		{"nntp", "commands", nntpBanner + nntpGoes, "", "DATE\r\n"},
		{"nats", "commands", natsBanner, "", "PING\r\n"},
		{"pop3", "commands", pop3Greets + pop3Goes, "", "NOOP\r\n"},
		{"ldap", "requests", ldapGoes, "", "\x30\x05\x02\x01\x01\x42\x00"},
	} {
		t.Run(tt.protocol+" "+tt.name, func(t *testing.T) {
			down, up, tls := &flood{first: tt.first, unit: tt.unit}, newWire(tt.server), newWire("")
			err := drowned(t, down, func() error { return play(mustLookup(t, tt.protocol), down, up, tls) })
			switch tt.protocol {
			case "postgres", "mysql", "xmpp":
				if !errors.As(err, &refused) || len(err.Error()) > 1000 {
					t.Errorf("err = %v, want a *GreetingError", err)
				}
			default:
				if err != nil || down.read > 0 {
					t.Errorf("err = %v, %d bytes were read", err, down.read)
				}
			}
			if tls.out.Len() > 0 || strings.Contains(up.out.String(), "xxxx") {
				t.Errorf("the server hears %q, under TLS %q", up.out.String(), tls.out.String())
			}
		})
	}
	for _, tt := range []struct{ protocol, first, unit string }{
		{"ldap", "\x30\x84\x7f\xff\xff\xff", "x"}, {"ldap", "\x30\x83\x01\x00\x00\x02\x01\x01", "\x60"}, {"postgres", "", sslRequest}, {"postgres", "\x7f\xff\xff\xff", "x"}, {"xmpp", "", "<"},
	} {
		down := &flood{first: tt.first, unit: tt.unit}
		if err := drowned(t, down, func() error { return mustLookup(t, tt.protocol).Refuse(down, errors.New("no")) }); err != nil && !errors.As(err, &refused) {
			t.Errorf("%s: Refuse: %v", tt.protocol, err)
		}
	}
}
