package starttls

import (
	"strings"
	"testing"
)

// TestOptions: each option changes what the protocol that has it sends, and is an error
// for the others.
func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		protocol string
		options  Options
		server   string
		sent     string
		err      string
	}{
		{"smtp", Options{}, smtpGreets + smtpLists + smtpGoes, smtpEHLO + "STARTTLS\r\n", ""},
		{"smtp", Options{EHLOName: "mail.example.com"}, smtpGreets + smtpLists + smtpGoes, "EHLO mail.example.com\r\nSTARTTLS\r\n", ""},
		{"lmtp", Options{EHLOName: "[IPv6:2001:db8::1]"}, smtpGreets + lmtpLists + smtpGoes, "LHLO [IPv6:2001:db8::1]\r\nSTARTTLS\r\n", ""},
		{"smtp", Options{EHLOName: "a b"}, "", "", "no host name"},
		{"smtp", Options{EHLOName: "a\r\nMAIL FROM:<>"}, "", "", "no host name"},
		{"smtp", Options{EHLOName: strings.Repeat("a", 256)}, "", "", "the most is 255"},
		{"smtp", Options{Direct: true}, "", "", "remove starttls if the server speaks TLS at once"},
		{"postgres", Options{Direct: true}, "", "", ""},
		{"postgres", Options{EHLOName: "x"}, "", "", "it sends no EHLO"},
		{"nats", Options{Direct: true}, "", "", ""},
		{"nats", Options{EHLOName: "x"}, "", "", "it sends no EHLO"},
		{"imap", Options{Direct: true}, "", "", "imap has no options"},
		{"gopher", Options{}, "", "", "unknown"},
	} {
		p, err := New(tt.protocol, tt.options)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s %+v: %v, want %q", tt.protocol, tt.options, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		up := newWire(tt.server)
		if _, err := p.Upgrade(up); err != nil || up.out.String() != tt.sent {
			t.Errorf("%s %+v: sent %q, %v, want %q", tt.protocol, tt.options, up.out.String(), err, tt.sent)
		}
	}
}

// TestDirect: the part under TLS is the same as after a request for TLS.
func TestDirect(t *testing.T) {
	for _, tt := range []struct{ protocol, client, server, up, down string }{
		{"postgres", startup, saslBoth, startup, "R"},
		{"postgres", sslRequest + startup, authOK, startup, "N" + authOK},
		{"nats", "", natsBanner, "", natsPlain},
	} {
		p, err := New(tt.protocol, Options{Direct: true})
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Upgrade(newWire(""))
		if err != nil || p.IfNoTLS == "" {
			t.Fatalf("%s: %v, hint %q", tt.protocol, err, p.IfNoTLS)
		}
		down, up := newWire(tt.client), newWire(tt.server)
		out, err := d.Finish(down, up)
		if err != nil || up.out.String() != tt.up || !strings.HasPrefix(down.out.String(), tt.down) || strings.Contains(down.out.String(), pgPlus) || !out.Answered {
			t.Errorf("%s: %+v, %v; the server got %q, the client %q", tt.protocol, out, err, up.out.String(), down.out.String())
		}
	}
}

// TestNATSErrorBehindInfo: a server that is full says so in place of its TLS handshake.
func TestNATSErrorBehindInfo(t *testing.T) {
	d, err := mustLookup(t, "nats").Upgrade(newWire(natsBanner))
	if err != nil {
		t.Fatal(err)
	}
	refused := wantRefused(t, d.NotTLS([]byte("-ERR ")), "nats", []string{"instead of TLS", "max_connections"})
	if !refused.Busy {
		t.Error("it is not told apart from a server that does not work")
	}
	if err := d.NotTLS([]byte("+OK x")); err != nil {
		t.Errorf("another answer: %v", err)
	}
}
