package starttls

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

const (
	sslRequest = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	gssRequest = "\x00\x00\x00\x08\x04\xd2\x16\x30"
	startup    = "\x00\x00\x00\x15\x00\x03\x00\x00user\x00orders\x00\x00"
	startup32  = "\x00\x00\x00\x15\x00\x03\x00\x02user\x00orders\x00\x00"
	cancel     = "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x12\x34\xde\xad\xbe\xef"

	authOK     = "R\x00\x00\x00\x08\x00\x00\x00\x00"
	authMD5    = "R\x00\x00\x00\x0c\x00\x00\x00\x05salt"
	saslBoth   = "R\x00\x00\x00\x2a\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00"
	saslTurned = "R\x00\x00\x00\x2a\x00\x00\x00\x0aSCRAM-SHA-256\x00SCRAM-SHA-256-PLUS\x00\x00"
	saslPlain  = "R\x00\x00\x00\x17\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"
	saslPlus   = "R\x00\x00\x00\x1c\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00\x00"
	saslOAuth  = "R\x00\x00\x00\x36\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00OAUTHBEARER\x00\x00"
	saslOAuth2 = "R\x00\x00\x00\x23\x00\x00\x00\x0aSCRAM-SHA-256\x00OAUTHBEARER\x00\x00"
	saslLike   = "R\x00\x00\x00\x1d\x00\x00\x00\x0aSCRAM-SHA-256-PLUSS\x00\x00"
	saslNone   = "R\x00\x00\x00\x09\x00\x00\x00\x0a\x00"
	fatal      = "E\x00\x00\x00\x13SFATAL\x00C28000\x00\x00"
	negotiate  = "v\x00\x00\x00\x0c\x00\x03\x00\x00\x00\x00\x00\x00"
	notice     = "N\x00\x00\x00\x0bSINFO\x00\x00"
)

// longCancel is a CancelRequest with a secret key of n bytes.
func longCancel(n int) string {
	return string([]byte{0, 0, byte((12 + n) >> 8), byte(12 + n)}) + "\x04\xd2\x16\x2e\x00\x00\x12\x34" + strings.Repeat("\xaa", n)
}

// startupOf is a startup message of n bytes.
func startupOf(n int) string {
	return string([]byte{0, 0, byte(n >> 8), byte(n)}) + "\x00\x03\x00\x00" + strings.Repeat("x", n-8)
}

// messageOf is a server's message whose length field says n.
func messageOf(kind byte, n int) string {
	return string([]byte{kind, 0, byte(n >> 16), byte(n >> 8), byte(n)}) + strings.Repeat("\x00", n-4)
}

func mustLookup(t testing.TB, name string) *Protocol {
	t.Helper()
	p, ok := Lookup(name)
	if !ok {
		t.Fatalf("Lookup(%q) found nothing", name)
	}
	return p
}

func TestLookup(t *testing.T) {
	if got, want := Names(), []string{"postgres", "mysql", "ldap", "smtp", "lmtp", "imap", "pop3", "sieve", "nntp", "nats", "xmpp"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Names() = %q, want %q", got, want)
	}
	for _, name := range Names() {
		if p := mustLookup(t, name); p.Name != name || p.Upgrade == nil {
			t.Errorf("Lookup(%q) = %+v", name, p)
		}
	}
	for _, name := range []string{"", "none", "gopher", "Postgres"} {
		if p, ok := Lookup(name); ok || p != nil {
			t.Errorf("Lookup(%q) = %v, %v, want nothing", name, p, ok)
		}
	}
}

func TestPostgresUpgrade(t *testing.T) {
	p := mustLookup(t, "postgres")
	for _, tt := range []struct {
		answer string
		words  []string // of the RefusedError; nil: TLS begins
		unread string
	}{
		{"S", nil, ""},
		{"S\x16\x03\x03early", nil, "\x16\x03\x03early"},
		{"SSH-2.0-x", nil, "SH-2.0-x"},
		{"N", []string{"no TLS", "ssl = on"}, ""},
		{"Nmore", []string{"no TLS", "ssl = on"}, "more"},
		{"Ecould not fork\n\x00", []string{"error", "log"}, "could not fork\n\x00"},
		{"\x15\x03\x01\x00\x02\x02\x46", []string{"TLS alert", "remove starttls"}, "\x03\x01\x00\x02\x02\x46"},
		{"HTTP/1.1 400", []string{"HTTP", "remove starttls", "--plain"}, "TTP/1.1 400"},
		{"220 mail", []string{"SMTP", "set starttls: smtp", "--starttls smtp"}, "20 mail"},
		{"* OK", []string{"IMAP", "starttls: imap"}, " OK"},
		{"+OK", []string{"POP3", "starttls: pop3"}, "OK"},
		{"-ERR", []string{"Redis", "TLS port"}, "ERR"},
		{"<?xml", []string{"XMPP", "starttls: xmpp"}, "?xml"},
		{"0\x0c", []string{"LDAP", "starttls: ldap"}, "\x0c"},
		{"\x4a\x00\x00\x00\x0a8.0.36", []string{"perhaps", "MySQL", "set starttls: mysql", "--starttls mysql"}, "\x00\x00\x00\x0a8.0.36"},
		{"G", []string{`'G'`}, ""},
		{"\x00", []string{`'\x00'`, "check that the endpoint"}, ""},
		{"\xff", []string{`'ÿ'`}, ""},
	} {
		bothSpeeds(t, fmt.Sprintf("%.8q", tt.answer), func(t *testing.T, open func(string) *wire) {
			up := open(tt.answer)
			_, err := p.Upgrade(up)
			if got := up.out.String(); got != sslRequest {
				t.Errorf("sent %x, want %x", got, sslRequest)
			}
			if got := up.unread(); got != tt.unread {
				t.Errorf("left %q unread, want %q", got, tt.unread)
			}
			if tt.words == nil {
				if err != nil {
					t.Errorf("err = %v, want none", err)
				}
				return
			}
			if refused := wantRefused(t, err, "postgres", tt.words); string(refused.Got) != tt.answer[:1] {
				t.Errorf("Got = %q, want %q", refused.Got, tt.answer[:1])
			}
		})
	}
}

func wantRefused(t *testing.T, err error, protocol string, words []string) *RefusedError {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("err = %v, want a *RefusedError", err)
	}
	if refused.Protocol != protocol {
		t.Errorf("Protocol = %q, want %q", refused.Protocol, protocol)
	}
	wantWords(t, err.Error(), words)
	return refused
}

func wantWords(t *testing.T, text string, words []string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("text %q does not say %q", text, w)
		}
	}
}

func TestPostgresUpgradeSideErrors(t *testing.T) {
	p := mustLookup(t, "postgres")
	broken, alert := &os.SyscallError{Syscall: "write", Err: syscall.EPIPE}, errors.New("remote error: tls: certificate required")
	said := endingWire("", alert)
	said.writeErr = broken
	mute := newWire("")
	mute.writeErr = broken
	late := endingWire("", alert)
	late.writeErr = os.ErrDeadlineExceeded
	for _, tt := range []struct {
		name string
		up   *wire
		want SideError
		also error
	}{
		{"closes", newWire(""), SideError{Upstream, "read", io.EOF, true, pgHintUpgrade}, nil},
		{"resets", endingWire("", syscall.ECONNRESET), SideError{Upstream, "read", syscall.ECONNRESET, true, pgHintUpgrade}, nil},
		{"is silent", endingWire("", os.ErrDeadlineExceeded), SideError{Upstream, "read", os.ErrDeadlineExceeded, true, ""}, nil},
		{"cannot be written to", mute, SideError{Upstream, "write", broken, true, ""}, nil},
		{"cannot be written to in time", late, SideError{Upstream, "write", os.ErrDeadlineExceeded, true, ""}, nil},
		{"cannot be written to and said why", said, SideError{Upstream, "write", broken, true, ""}, alert},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := p.Upgrade(tt.up)
			wantSide(t, err, tt.want)
			if tt.also != nil && !errors.Is(err, tt.also) {
				t.Errorf("err = %v, want also %v", err, tt.also)
			}
			if many, ok := errors.Unwrap(err).(interface{ Unwrap() []error }); tt.also != nil && (!ok || many.Unwrap()[0] != tt.also) {
				t.Errorf("err = %v, want %v first: errors.As takes the first that fits", err, tt.also)
			}
		})
	}
}

// wantSide compares a SideError, except for the wrapping of its Err.
func wantSide(t *testing.T, err error, want SideError) {
	t.Helper()
	var side *SideError
	if !errors.As(err, &side) {
		t.Fatalf("err = %v, want a *SideError", err)
	}
	if !errors.Is(err, want.Err) {
		t.Errorf("err = %v, want %v", err, want.Err)
	}
	got := *side
	got.Err = want.Err
	if got != want {
		t.Errorf("err = %+v, want %+v", got, want)
	}
}

func TestPostgresDialogue(t *testing.T) {
	bigNotice, bigError := messageOf('N', pgMessageMax), messageOf('E', pgMessageMax)
	for _, tt := range []struct {
		name, client, server string
		toServer, toClient   string
		clientLeft           string // sent by the client, not read
		serverLeft           string
		cancel               string
	}{
		{name: "trust", client: startup, server: authOK, toServer: startup, toClient: authOK},
		{name: "protocol 3.2", client: startup32, server: negotiate + authOK, toServer: startup32, toClient: negotiate + authOK},
		{name: "md5", client: startup, server: authMD5, toServer: startup, toClient: authMD5},
		{name: "prefer", client: sslRequest + startup, server: authOK, toServer: startup, toClient: "N" + authOK},
		{name: "gss then tls", client: gssRequest + sslRequest + startup, server: authOK, toServer: startup, toClient: "NN" + authOK},
		{name: "three requests", client: gssRequest + sslRequest + sslRequest + startup, server: authOK, toServer: startup, toClient: "NNN" + authOK},
		{name: "shortest startup", client: startupOf(8), server: fatal, toServer: startupOf(8), toClient: fatal},
		{name: "longest startup", client: startupOf(pgStartupMax), server: fatal, toServer: startupOf(pgStartupMax), toClient: fatal},
		{name: "refused", client: startup, server: fatal + "more", toServer: startup, toClient: fatal, serverLeft: "more"},
		{name: "notices", client: startup, server: notice + negotiate + notice + authOK, toServer: startup, toClient: notice + negotiate + notice + authOK},
		{name: "large", client: startup, server: bigNotice + bigError, toServer: startup, toClient: bigNotice + bigError},
		{name: "as many notices as may be", client: startup, server: strings.Repeat(notice, 31) + authOK, toServer: startup, toClient: strings.Repeat(notice, 31) + authOK},

		{name: "scram", client: startup, server: saslBoth, toServer: startup, toClient: saslPlain},
		{name: "scram after notices", client: startup, server: notice + negotiate + saslBoth, toServer: startup, toClient: notice + negotiate + saslPlain},
		{name: "scram in another order", client: startup, server: saslTurned, toServer: startup, toClient: saslPlain},
		{name: "scram without plus", client: startup, server: saslPlain, toServer: startup, toClient: saslPlain},
		{name: "scram and oauth", client: startup, server: saslOAuth, toServer: startup, toClient: saslOAuth2},
		{name: "a name that begins like plus", client: startup, server: saslLike, toServer: startup, toClient: saslLike},
		{name: "no mechanism at all", client: startup, server: saslNone, toServer: startup, toClient: saslNone},
		{name: "a second R is not parsed", client: startup, server: saslPlain + saslBoth, toServer: startup, toClient: saslPlain, serverLeft: saslBoth},
		{name: "both sides pipeline", client: startup + "p\x00\x00", server: authOK + "Z\x00", toServer: startup, toClient: authOK, clientLeft: "p\x00\x00", serverLeft: "Z\x00"},

		{name: "cancel", client: cancel, cancel: cancel},
		{name: "cancel after tls", client: sslRequest + cancel + "x", toClient: "N", cancel: cancel, clientLeft: "x"},
		{name: "cancel, 32 byte key", client: longCancel(32), cancel: longCancel(32)},
		{name: "cancel, 256 byte key", client: longCancel(256), cancel: longCancel(256)},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			down, up := open(tt.client), open(tt.server)
			out, err := pgFinish(down, up, false)
			if err != nil {
				t.Fatalf("err = %v", err)
			}
			for _, c := range []struct{ what, got, want string }{
				{"to the server", up.out.String(), tt.toServer},
				{"to the client", down.out.String(), tt.toClient},
				{"left of the client's", down.unread(), tt.clientLeft},
				{"left of the server's", up.unread(), tt.serverLeft},
				{"cancel", string(out.Cancel), tt.cancel},
			} {
				if c.got != c.want {
					t.Errorf("%s: %.200q, want %.200q", c.what, c.got, c.want)
				}
			}
			answers := int64(len(tt.toClient) - len(strings.TrimLeft(tt.toClient, "N")))
			if strings.HasPrefix(tt.toClient, "N\x00") { // a notice, not an answer
				answers = 0
			}
			if out.Up != int64(len(tt.toServer)) || out.Down != int64(len(tt.toClient))-answers {
				t.Errorf("Up, Down = %d, %d, want %d, %d", out.Up, out.Down, len(tt.toServer), int64(len(tt.toClient))-answers)
			}
			if (out.Cancel != nil) != (tt.cancel != "") {
				t.Errorf("Cancel = %v", out.Cancel)
			}
		})
	}
}

func TestPostgresGreetingErrors(t *testing.T) {
	for _, tt := range []struct {
		name, client string
		words        []string
		read         int // bytes read of what the client sent
	}{
		{"TLS at once", "\x16\x03\x01\x02\x00\x01", []string{"ClientHello", "sslmode=disable"}, 4},
		{"HTTP", "GET / HTTP/1.1\r\n", []string{"HTTP request"}, 4},
		{"CONNECT", "CONNECT a:1 HTTP/1.1\r\n", []string{"CONNECT", "no proxy"}, 4},
		{"SOCKS5", "\x05\x01\x00\x05\x01", []string{"SOCKS5"}, 4},
		{"PROXY v1", "PROXY TCP4 ", []string{"PROXY"}, 4},
		{"PROXY v2", "\r\n\r\n\x00\r\nQUIT\n", []string{"PROXY"}, 4},
		{"text", "hello\n", []string{`"hell"`}, 4},
		{"zero", "\x00\x00\x00\x00more", []string{`"\x00\x00\x00\x00"`}, 4},
		{"length 7", "\x00\x00\x00\x07\x00\x03\x00\x00", []string{"no PostgreSQL startup"}, 4},
		{"length too large", "\x00\x00\x27\x15\x00\x03\x00\x00", []string{"no PostgreSQL startup"}, 4},
		{"length negative", "\xff\xff\xff\xff\x00\x03\x00\x00", []string{"no PostgreSQL startup"}, 4},
		{"protocol 2", "\x00\x00\x01\x28\x00\x02\x00\x00rest", []string{"2.0", "update"}, 8},
		{"protocol 18.3, of a Kafka client", "\x00\x00\x00\x23\x00\x12\x00\x03rest", []string{"18.3"}, 8},
		{"protocol 4", "\x00\x00\x00\x09\x00\x04\x00\x00x", []string{"4.0"}, 8},
		{"unknown request", "\x00\x00\x00\x08\x04\xd2\x16\x31", []string{"1234.5681"}, 8},
		{"long SSLRequest", "\x00\x00\x00\x09\x04\xd2\x16\x2fx", []string{"9 bytes"}, 8},
		{"long GSSENCRequest", "\x00\x00\x00\x10\x04\xd2\x16\x30x", []string{"16 bytes"}, 8},
		{"short cancel", "\x00\x00\x00\x0f\x04\xd2\x16\x2ex", []string{"CancelRequest of 15 bytes"}, 8},
		{"long cancel", "\x00\x00\x01\x0d\x04\xd2\x16\x2ex", []string{"CancelRequest of 269 bytes"}, 8},
		{"fourth request", strings.Repeat(sslRequest, 5), []string{"more than 3"}, 32},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			down, up := open(tt.client), open("")
			out, err := pgFinish(down, up, false)
			var greeting *GreetingError
			if !errors.As(err, &greeting) || greeting.Protocol != "postgres" {
				t.Fatalf("err = %v, want a *GreetingError", err)
			}
			wantWords(t, err.Error(), tt.words)
			if got := len(tt.client) - len(down.unread()); got != tt.read {
				t.Errorf("read %d bytes of the client, want %d", got, tt.read)
			}
			if up.out.Len() != 0 || !reflect.DeepEqual(out, Result{}) {
				t.Errorf("sent %q upstream, Result %+v, want nothing", up.out.String(), out)
			}
			if n := strings.Count(down.out.String(), "N"); n != down.out.Len() || n > 3 {
				t.Errorf("sent %q to the client", down.out.String())
			}
		})
	}
}

func TestPostgresServerRefused(t *testing.T) {
	tooLong := "\x00\x01\x00\x01" // 64 KiB and one
	for _, tt := range []struct {
		name, server string
		toClient     string
		read         int
		words        []string
	}{
		{"only plus", saslPlus + "more", "", len(saslPlus), []string{"only SCRAM-SHA-256-PLUS", "SCRAM-SHA-256 too"}},
		{"plus twice", "R\x00\x00\x00\x2f\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00SCRAM-SHA-256-PLUS\x00\x00", "", 48, []string{"only SCRAM-SHA-256-PLUS"}},
		{"list without end", "R\x00\x00\x00\x1b\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00", "", 28, []string{"not well formed"}},
		{"name without end", "R\x00\x00\x00\x0d\x00\x00\x00\x0aSCRAM", "", 14, []string{"not well formed"}},
		{"empty list without end", "R\x00\x00\x00\x08\x00\x00\x00\x0a", "", 9, []string{"not well formed"}},
		{"plus behind the list's end", "R\x00\x00\x00\x1d\x00\x00\x00\x0a\x00SCRAM-SHA-256-PLUS\x00\x00", "", 30, []string{"not well formed"}},
		{"R without code", "R\x00\x00\x00\x04", "", 5, []string{"'R' of 4 bytes"}},
		{"R of half a code", "R\x00\x00\x00\x07\x00\x00\x00", "", 5, []string{"'R' of 7 bytes"}},
		{"R too long", "R" + tooLong + "x", "", 5, []string{"65537 bytes"}},
		{"E too long", "E" + tooLong + "x", "", 5, []string{"65537 bytes"}},
		{"E of an old server", "Ecould not fork", "", 5, []string{"check the endpoint"}},
		{"N too long after a notice", notice + "N" + tooLong, notice, len(notice) + 5, []string{"65537 bytes"}},
		{"v too short", "v\x00\x00\x00\x03", "", 5, []string{"'v' of 3 bytes"}},
		{"length negative", "N\xff\xff\xff\xff", "", 5, []string{"4294967295 bytes"}},
		{"ready without authentication", "Z\x00\x00\x00\x05I", "", 1, []string{"type 'Z'", "check the endpoint"}},
		{"HTTP", "HTTP/1.1 400", "", 1, []string{"type 'H'"}},
		{"notices without end", strings.Repeat(notice, 40), strings.Repeat(notice, 32), 32 * len(notice), []string{"32 messages"}},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			down, up := open(startup), open(tt.server)
			out, err := pgFinish(down, up, false)
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Protocol != "postgres" || len(refused.Got) > gotMax {
				t.Fatalf("err = %v, want a *RefusedError", err)
			}
			wantWords(t, err.Error(), tt.words)
			if got := down.out.String(); got != tt.toClient {
				t.Errorf("sent %q to the client, want %q", got, tt.toClient)
			}
			if got := len(tt.server) - len(up.unread()); got != tt.read {
				t.Errorf("read %d bytes of the server, want %d", got, tt.read)
			}
			if out.Up != int64(len(startup)) || out.Down != int64(len(tt.toClient)) || out.Cancel != nil {
				t.Errorf("Result %+v", out)
			}
		})
	}
}

func TestPostgresDialogueSideErrors(t *testing.T) {
	deaf := func(peer string) *wire {
		w := newWire(peer)
		w.writeErr = syscall.EPIPE
		return w
	}
	for _, tt := range []struct {
		name     string
		down, up *wire
		want     SideError
	}{
		{"client closes without a byte", newWire(""), newWire(""), SideError{Downstream, "read", io.EOF, true, ""}},
		{"client says nothing", endingWire("", os.ErrDeadlineExceeded), newWire(""), SideError{Downstream, "read", os.ErrDeadlineExceeded, true, ""}},
		{"client resets without a byte", endingWire("", syscall.ECONNRESET), newWire(""), SideError{Downstream, "read", syscall.ECONNRESET, true, ""}},
		{"client closes in the length", newWire("\x00\x00"), newWire(""), SideError{Downstream, "read", io.ErrUnexpectedEOF, false, hintCut}},
		{"client closes after the length", newWire(startup[:4]), newWire(""), SideError{Downstream, "read", io.ErrUnexpectedEOF, false, hintCut}},
		{"client closes after the version", newWire(startup[:8]), newWire(""), SideError{Downstream, "read", io.ErrUnexpectedEOF, false, hintCut}},
		{"client closes in the startup", newWire(startup[:12]), newWire(""), SideError{Downstream, "read", io.ErrUnexpectedEOF, false, hintCut}},
		{"sslmode=require", newWire(sslRequest), newWire(""), SideError{Downstream, "read", io.EOF, false, pgHintTLS}},
		{"sslmode=require after GSSAPI", newWire(gssRequest + sslRequest), newWire(""), SideError{Downstream, "read", io.EOF, false, pgHintTLS}},
		{"gssencmode=require", newWire(gssRequest), newWire(""), SideError{Downstream, "read", io.EOF, false, pgHintGSS}},
		{"client silent after N", endingWire(sslRequest, os.ErrDeadlineExceeded), newWire(""), SideError{Downstream, "read", os.ErrDeadlineExceeded, false, ""}},
		{"N cannot be written", deaf(sslRequest), newWire(""), SideError{Downstream, "write", syscall.EPIPE, false, ""}},
		{"startup cannot be written", newWire(startup), deaf(""), SideError{Upstream, "write", syscall.EPIPE, true, ""}},
		{"server closes without a byte", newWire(startup), newWire(""), SideError{Upstream, "read", io.EOF, true, pgHintStartup}},
		{"server resets", newWire(startup), endingWire("", syscall.ECONNRESET), SideError{Upstream, "read", syscall.ECONNRESET, true, pgHintStartup}},
		{"server closes in the length", newWire(startup), newWire("R\x00"), SideError{Upstream, "read", io.ErrUnexpectedEOF, false, ""}},
		{"server closes after the type", newWire(startup), newWire("R"), SideError{Upstream, "read", io.ErrUnexpectedEOF, false, ""}},
		{"server closes after the header", newWire(startup), newWire(authOK[:5]), SideError{Upstream, "read", io.ErrUnexpectedEOF, false, ""}},
		{"server closes in a message", newWire(startup), newWire(saslBoth[:20]), SideError{Upstream, "read", io.ErrUnexpectedEOF, false, ""}},
		{"answer cannot be written", deaf(startup), newWire(authOK), SideError{Downstream, "write", syscall.EPIPE, false, ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := pgFinish(tt.down, tt.up, false)
			wantSide(t, err, tt.want)
			if out.Cancel != nil || out.Up != int64(tt.up.out.Len()) || out.Down != 0 {
				t.Errorf("Result %+v", out)
			}
		})
	}
}

// TestPostgresDeafClient: nothing is read after a write to the client has failed.
func TestPostgresDeafClient(t *testing.T) {
	down := newWire(sslRequest + startup)
	down.writeErr = syscall.EPIPE
	_, err := pgFinish(down, newWire(""), false)
	wantSide(t, err, SideError{Downstream, "write", syscall.EPIPE, false, ""})
	if got := down.unread(); got != startup {
		t.Errorf("left %q unread, want %q", got, startup)
	}
}

// TestPostgresShortWrite: a writer that breaks its contract is an error, and the
// bytes that it accepted are counted.
func TestPostgresShortWrite(t *testing.T) {
	up := struct {
		io.Reader
		io.Writer
	}{strings.NewReader(authOK), shortWriter{}}
	out, err := pgFinish(newWire(startup), up, false)
	wantSide(t, err, SideError{Upstream, "write", io.ErrShortWrite, true, ""})
	if out.Up != 3 {
		t.Errorf("Up = %d, want 3", out.Up)
	}
}

type shortWriter struct{}

func (shortWriter) Write([]byte) (int, error) { return 3, nil }

func TestPostgresError(t *testing.T) {
	want := "E\x00\x00\x00\x2eSFATAL\x00VFATAL\x00C08006\x00Mambassador: no way\x00\x00"
	for _, reason := range []string{"no way", "no\x00way", "no\nway", "no way\xff"} {
		if got := string(pgError(errors.New(reason))); got != want {
			t.Errorf("pgError(%q) = %q, want %q", reason, got, want)
		}
	}
	long := pgError(errors.New(strings.Repeat("ä", pgReasonMax)))
	if n := int(long[3])<<8 | int(long[4]); n != len(long)-1 || n > pgReasonMax+100 {
		t.Errorf("a long reason makes %d bytes, its length says %d", len(long), n)
	}
	// The dialogue itself accepts our own ErrorResponse as a server's.
	down := newWire(startup)
	if _, err := pgFinish(down, newWire(string(long)), false); err != nil || down.out.String() != string(long) {
		t.Errorf("our ErrorResponse does not pass the dialogue: %v", err)
	}
}

func TestPostgresRefuse(t *testing.T) {
	why := errors.New("no way")
	for _, tt := range []struct {
		name, client, want string
		err                error
	}{
		{"disable", startup, string(pgError(why)), nil},
		{"prefer", sslRequest + startup, "N" + string(pgError(why)), nil},
		{"cancel", cancel, "", ErrNoAnswer},
	} {
		down := newWire(tt.client)
		if err := pgRefuse(down, why); err != tt.err || down.out.String() != tt.want {
			t.Errorf("%s: %v, the client got %q, want %q", tt.name, err, down.out.String(), tt.want)
		}
	}
	var greeting *GreetingError
	if err := pgRefuse(newWire("GET / HTTP"), why); !errors.As(err, &greeting) {
		t.Errorf("another protocol: %v, want a *GreetingError", err)
	}
}

func TestErrorTexts(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&RefusedError{}, `: the server answered ""`},
		{&RefusedError{Protocol: "p", Got: []byte("x\x00")}, `p: the server answered "x\x00"`},
		{&RefusedError{Protocol: "p", What: "it fell", Advice: "lift it"}, "p: it fell; lift it"},
		{&GreetingError{Protocol: "p", Detail: "a cat"}, "p: the client sent a cat"},
		{&SideError{Side: Upstream, Op: "read", Err: io.EOF}, "read upstream: EOF"},
		{&SideError{Side: Downstream, Op: "write", Err: io.EOF, Hint: "h"}, "write downstream: EOF; h"},
		{&SideError{}, "  side 0: <nil>"},
	} {
		if got := tt.err.Error(); strings.TrimSpace(got) != strings.TrimSpace(tt.want) {
			t.Errorf("text = %q, want %q", got, tt.want)
		}
	}
}
