package starttls

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// Messages of clients and Prosody 0.12.
const (
	xmppOpens   = "<?xml version='1.0'?><stream:stream to='x.test' from='me@x.test' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
	xmppOpens2  = "<s:stream\n xmlns:s=\"http://etherx.jabber.org/streams\" xmlns=\"jabber:server\" version=\"1.0\" to=\"x.test\" from=\"y.test\" xmlns:db='jabber:server:dialback' a='>'>"
	xmppHello   = "<?xml version='1.0'?><stream:stream to='x.test' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
	xmppHello2  = "<?xml version='1.0'?><stream:stream to='x.test' from='y.test' version='1.0' xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams'>"
	prosodyOpen = "<?xml version='1.0'?><stream:stream id='a' from='x.test' version='1.0' xml:lang='en' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
	prosodyTLS  = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>"
	prosodyBoth = "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\n<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>"
	prosodyGoes = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
)

// xmppRun runs both parts; up2 is the server under TLS.
func xmppRun(t testing.TB, down, up, up2 *wire) (*Dialogue, Result, error) {
	t.Helper()
	d, err := xmppUpgrade(up)
	if err != nil || up.out.Len() > 0 {
		t.Fatalf("Upgrade: %v, sent %q", err, up.out.String())
	}
	if out, err := d.Begin(down, up); err != nil {
		return d, out, err
	}
	out, err := d.Finish(down, up2)
	return d, out, err
}

func TestXMPP(t *testing.T) {
	const behind = "<message/>"
	for _, tt := range []struct{ name, client, server, hello string }{
		{"prosody", xmppOpens, prosodyOpen + prosodyTLS + prosodyGoes, xmppHello},
		{"features with mechanisms", xmppOpens, prosodyOpen + prosodyBoth + prosodyGoes, xmppHello},
		{"between servers, other quotes and prefix", xmppOpens2, prosodyOpen + "\n" + prosodyTLS + "\n<proceed xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"></proceed>", xmppHello2},
		{"whitespace", "\n <?xml version=\"1.0\" encoding='UTF-8'?>\n" + strings.TrimPrefix(xmppOpens, "<?xml version='1.0'?>"), prosodyOpen + prosodyTLS + prosodyGoes, xmppHello},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			down, up, up2 := open(tt.client+behind), open(tt.server+behind), newWire(behind)
			_, out, err := xmppRun(t, down, up, up2)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := up.out.String(), tt.hello+xmppRequest; got != want {
				t.Errorf("before TLS\n%s, want\n%s", got, want)
			}
			if strings.Contains(up.out.String(), "me@x.test") {
				t.Error("the client's name went out in plaintext")
			}
			if got := up2.out.String(); got != tt.client || down.out.Len() != 0 {
				t.Errorf("under TLS %q, want %q; the client got %q", got, tt.client, down.out.String())
			}
			if down.unread() != behind || up.unread() != behind || up2.unread() != behind {
				t.Errorf("left unread %q, %q, %q", down.unread(), up.unread(), up2.unread())
			}
			if out.Up != int64(len(tt.client)) || out.Down != 0 || out.Answered {
				t.Errorf("Result %+v", out)
			}
		})
	}
}

func TestXMPPServerRefused(t *testing.T) {
	for _, tt := range []struct {
		name, server string
		words        []string
	}{
		{"no STARTTLS", prosodyOpen + "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>", []string{"without STARTTLS", "certificate", "5223"}},
		{"no features", prosodyOpen + "<stream:features/>", []string{"without STARTTLS"}},
		{"another namespace", prosodyOpen + "<stream:features><starttls xmlns='urn:x'/></stream:features>", []string{"without STARTTLS"}},
		{"starttls deeper inside", prosodyOpen + "<stream:features><x xmlns='urn:x'><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></x></stream:features>", []string{"without STARTTLS"}},
		{"unknown host", prosodyOpen + "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>", []string{"error", "host-unknown"}},
		{"failure", prosodyOpen + prosodyTLS + "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", []string{"failure", "instead of proceed"}},
		{"proceed of another namespace", prosodyOpen + prosodyTLS + "<proceed xmlns='urn:x'/>", []string{"instead of proceed"}},
		{"a comment", prosodyOpen + "<!-- > <starttls/> -->", []string{"no XMPP"}},
		{"a declaration", "<!DOCTYPE x>" + prosodyOpen, []string{"no XMPP"}},
		{"CDATA", prosodyOpen + "<![CDATA[>]]>", []string{"no XMPP"}},
		{"an end too early", prosodyOpen + "</stream:stream>", []string{"out of place"}},
		{"another root", "<html>", []string{"opens no XMPP stream"}},
		{"a MiB of features", prosodyOpen + "<stream:features>" + strings.Repeat("<x xmlns='urn:x'/>", 60000), []string{"more than 64 elements"}},
		{"a MiB within a feature", prosodyOpen + "<stream:features><y>" + strings.Repeat("<x xmlns='urn:x'/>", 60000), []string{"more than 32768"}},
		{"IMAP", imapGreets, []string{"IMAP", "--starttls imap"}},
		{"TLS", "\x15\x03\x01\x00\x02\x02\x46", []string{"TLS alert", "remove starttls"}},
		{"LDAP", ldapGoes, []string{"LDAP", "--starttls ldap"}},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			up2 := newWire("")
			_, _, err := xmppRun(t, newWire(xmppOpens), open(tt.server), up2)
			wantRefused(t, err, "xmpp", tt.words)
			if up2.out.Len() > 0 || len(err.Error()) > 1000 {
				t.Errorf("sent %q; %v", up2.out.String(), err)
			}
		})
	}
}

func TestXMPPCutShort(t *testing.T) {
	server := prosodyOpen + prosodyTLS + prosodyGoes
	for n := range server {
		_, _, err := xmppRun(t, newWire(xmppOpens), newWire(server[:n]), newWire(""))
		var side *SideError
		if !errors.As(err, &side) || side.Side != Upstream || n == 0 && side.Hint == "" {
			t.Fatalf("%d bytes of the server: %v", n, err)
		}
	}
	for n := range xmppOpens {
		_, _, err := xmppRun(t, newWire(xmppOpens[:n]), newWire(server), newWire(""))
		var side *SideError
		if !errors.As(err, &side) || side.Side != Downstream || side.Clean != (n == 0) {
			t.Fatalf("%d bytes of the client: %v", n, err)
		}
	}
	_, _, err := xmppRun(t, newWire(xmppOpens), endingWire("", os.ErrDeadlineExceeded), newWire(""))
	wantWords(t, err.Error(), []string{"remove starttls"})
}

func TestXMPPClient(t *testing.T) {
	for _, tt := range []struct {
		name, client string
		words        []string
	}{
		{"TLS", "\x16\x03\x01\x02\x00\x01", []string{"ClientHello"}},
		{"HTTP", "GET / HTTP/1.1\r\n", []string{"begins no XML"}},
		{"no version", strings.Replace(xmppOpens, "version='1.0' xmlns", "xmlns", 1), []string{"without a version"}},
		{"no to", strings.Replace(xmppOpens, "to='x.test'", "", 1), []string{"without to"}},
		{"components", strings.Replace(xmppOpens, "jabber:client", "jabber:component:accept", 1), []string{"jabber:component:accept"}},
		{"another document", "<?xml version='1.0'?><html>", []string{"opens no XMPP stream"}},
		{"stream of another namespace", "<stream:stream to='x' xmlns:stream='urn:x'>", []string{"opens no XMPP stream"}},
		{"a comment", "<!-- -->" + xmppOpens, []string{"no XMPP"}},
		{"a MiB", "<stream:stream to='" + strings.Repeat("x", 1<<20), []string{"more than 8192"}},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			up := newWire("")
			d, _, err := xmppRun(t, open(tt.client), up, newWire(""))
			var greeting *GreetingError
			if !errors.As(err, &greeting) {
				t.Fatalf("err = %v, want a *GreetingError", err)
			}
			wantWords(t, err.Error(), tt.words)
			if up.out.Len() != 0 {
				t.Errorf("sent %q upstream", up.out.String())
			}
			checkStream(t, d.Refuse(err), "")
		})
	}
}

// checkStream: a refused client receives a well-formed stream.
func checkStream(t *testing.T, text []byte, from string) {
	t.Helper()
	var stream struct {
		From  string `xml:"from,attr"`
		Error struct {
			Text string `xml:"text"`
		} `xml:"http://etherx.jabber.org/streams error"`
	}
	if err := xml.Unmarshal(text, &stream); err != nil || stream.From != from && from != "" || !strings.HasPrefix(stream.Error.Text, "ambassador: ") {
		t.Errorf("the client is told %q: %v", text, err)
	}
}

func TestXMPPRefuse(t *testing.T) {
	down := newWire(xmppOpens)
	if err := xmppRefuse(down, errors.New("no <way>")); err != nil {
		t.Fatal(err)
	}
	checkStream(t, down.out.Bytes(), "x.test")
	err := xmppRefuse(newWire(""), errors.New("no"))
	wantSide(t, err, SideError{Downstream, "read", io.EOF, true, ""})
}

func TestXMPPBeginProbe(t *testing.T) {
	up := newWire(prosodyOpen + prosodyTLS + prosodyGoes)
	if err := xmppBeginProbe(up, "x.test"); err != nil || up.out.String() != xmppHello+xmppRequest {
		t.Errorf("%v, sent %q", err, up.out.String())
	}
	wantRefused(t, xmppBeginProbe(newWire(""), ""), "xmpp", []string{"server_name"})
}

// FuzzXMPP: under TLS the server receives exactly what the client sent; before it,
// only our own stream; nothing behind the last byte of either is read.
func FuzzXMPP(f *testing.F) {
	for _, client := range []string{"", xmppOpens + "<x/>", xmppOpens2, "\x16\x03\x01", "<a b='>'>", "<!-- -->"} {
		for _, server := range []string{"", prosodyOpen + prosodyTLS + prosodyGoes + "x", prosodyOpen + prosodyBoth + prosodyGoes, prosodyOpen + "<stream:error/>", prosodyOpen + "<a><b></a>", "\x15\x03\x01\x00\x02"} {
			f.Add(client, server)
		}
	}
	f.Fuzz(func(t *testing.T, client, server string) {
		down, up, up2 := newWire(client), newWire(server), newWire("")
		d, out, err := xmppRun(t, down, up, up2)
		said, received := client[:len(client)-len(down.unread())], server[:len(server)-len(up.unread())]
		if len(said) > xmppHeaderMax || len(received) > xmppFeaturesMax+identifyBytes || down.out.Len() > 0 {
			t.Fatalf("read %d and %d bytes, told the client %q", len(said), len(received), down.out.String())
		}
		if n := strings.Count(up.out.String(), "<"); n > 3 {
			t.Fatalf("%d tags before TLS: %q", n, up.out.String())
		}
		if err != nil {
			checkDialogueError(t, err)
			if err := xml.Unmarshal(d.Refuse(err), new(struct{})); err != nil {
				t.Fatalf("Refuse is no XML: %v, %q", err, d.Refuse(err))
			}
			return
		}
		if up2.out.String() != said || out.Up != int64(len(said)) {
			t.Fatalf("under TLS %q of %q", up2.out.String(), said)
		}
		var side *SideError
		if _, _, err := xmppRun(t, newWire(said), newWire(received[:len(received)-1]), newWire("")); !errors.As(err, &side) || side.Side != Upstream {
			t.Fatalf("without the server's last byte: %v", err)
		}
		if _, _, err := xmppRun(t, newWire(said[:len(said)-1]), newWire(received), newWire("")); !errors.As(err, &side) || side.Side != Downstream {
			t.Fatalf("without the client's last byte: %v", err)
		}
	})
}
