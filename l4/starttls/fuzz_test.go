package starttls

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func FuzzPostgresUpgrade(f *testing.F) {
	for _, seed := range []string{"", "S", "N", "E", "Sx", "\x15\x03", "HTTP", "\x4a\x00\x00\x00\x0a", "\xff"} {
		f.Add(seed)
	}
	p := mustLookup(f, "postgres")
	f.Fuzz(func(t *testing.T, server string) {
		up := newWire(server)
		_, err := p.Upgrade(up)
		if up.out.String() != sslRequest {
			t.Fatalf("sent %q", up.out.String())
		}
		if read := len(server) - len(up.unread()); read > 1 {
			t.Fatalf("read %d bytes", read)
		}
		var refused *RefusedError
		var side *SideError
		switch {
		case server == "":
			if !errors.As(err, &side) || side.Side != Upstream || !side.Clean {
				t.Fatalf("err = %v for a server that closes", err)
			}
		case server[0] == 'S':
			if err != nil {
				t.Fatalf("err = %v for S", err)
			}
		case !errors.As(err, &refused) || refused.Advice == "" || refused.Error() == "":
			t.Fatalf("err = %v for %q", err, server[0])
		}
	})
}

func FuzzPostgresDialogue(f *testing.F) {
	for _, client := range []string{"", startup, startup32 + "x", sslRequest + startup, gssRequest + sslRequest + cancel, longCancel(256), "\x16\x03\x01\x02", "GET / HTTP"} {
		for _, server := range []string{"", authOK + "Z", saslBoth, saslTurned, saslOAuth, saslPlus, saslNone, notice + negotiate + fatal, "Z", "R\x00\x00\x00\x04"} {
			f.Add(client, server)
		}
	}
	f.Fuzz(func(t *testing.T, client, server string) {
		down, up := newWire(client), newWire(server)
		out, err := pgFinish(down, up, false)
		if err != nil {
			checkDialogueError(t, err)
		}
		said, received := client[:len(client)-len(down.unread())], server[:len(server)-len(up.unread())]
		answers, packet := splitClient(said)
		toClient := checkAnswers(t, down.out.String(), answers)
		switch {
		case out.Cancel != nil:
			if err != nil || string(out.Cancel) != packet || up.out.Len() != 0 || received != "" || toClient != "" {
				t.Fatalf("cancel %q of %q; sent %q, read %q of the server; err %v", out.Cancel, packet, up.out.String(), received, err)
			}
		case up.out.Len() == 0:
			if err == nil || received != "" || toClient != "" {
				t.Fatalf("without a startup: err %v, read %q, sent %q", err, received, toClient)
			}
		default:
			if up.out.String() != packet {
				t.Fatalf("sent %q to the server, the client's startup is %q", up.out.String(), packet)
			}
			checkServer(t, received, toClient, err)
		}
		if out.Up != int64(up.out.Len()) || out.Down != int64(len(toClient)) {
			t.Fatalf("Result %+v; sent %d and %d", out, up.out.Len(), len(toClient))
		}
	})
}

// FuzzUpgrade: for every protocol, no byte behind the end of an answer is read, an
// answer without its last byte is not accepted, and errors have the documented
// types.
func FuzzUpgrade(f *testing.F) {
	for _, server := range []string{"", "S", smtpGreets + smtpLists + smtpGoes, "220-a\r\n220 b\r\n250 STARTTLS\r\n", "421 x\r\n",
		imapGreets + imapGoes, "* PREAUTH\r\n", "* BYE\r\n", "* OK [CAPABILITY\r\nA1 OK\r\n", pop3Greets + pop3Goes, "-ERR\r\n",
		smtpGreets + lmtpLists + smtpGoes, sieveBanner + sieveGoes, "\"X\" {2}\r\nab\r\nOK\r\n", nntpBanner + nntpGoes, "200 a\r\n500 b\r\n201 c\r\n382 d\r\n", natsBanner, "-ERR 'x'\r\n",
		ldapGoes, ldapGoesAD, "\x30\x84\xff\xff\xff\xff", "\x15\x03\x01\x00\x02", "\x4a\x00\x00\x00\x0a"} {
		for i := range protocols() {
			f.Add(byte(i), server)
		}
	}
	f.Fuzz(func(t *testing.T, i byte, server string) {
		p := protocols()[int(i)%len(protocols())]
		up := newWire(server)
		d, err := p.Upgrade(up)
		if (d == nil) != (err != nil) {
			t.Fatalf("%v and %v", d, err)
		}
		if err != nil {
			checkDialogueError(t, err)
			down := newWire("")
			if err := p.Refuse(down, err); err == nil && down.out.Len() == 0 || down.out.Len() > 64<<10 {
				t.Fatalf("Refuse: %v, %d bytes", err, down.out.Len())
			}
			return
		}
		n := len(server) - len(up.unread())
		exact := newWire(server[:n])
		if _, err := p.Upgrade(exact); err != nil || exact.out.String() != up.out.String() {
			t.Fatalf("without what is behind: %v, sent %q and %q", err, exact.out.String(), up.out.String())
		}
		if n == 0 {
			return // xmpp reads nothing here
		}
		var side *SideError
		if _, err := p.Upgrade(newWire(server[:n-1])); !errors.As(err, &side) || side.Side != Upstream {
			t.Fatalf("without its last byte: %v", err)
		}
	})
}

// FuzzRefuse: with any input of a client, the answer is bounded and the error has
// a documented type.
func FuzzRefuse(f *testing.F) {
	for _, client := range []string{"", startup, sslRequest + cancel, "\x30\x0c\x02\x01\x07\x60\x07\x02\x01\x03\x04\x00\x80\x00", "\x30\x05\x02\x01\x01\x42\x00", "\x30\x84\xff\xff\xff\xff", xmppOpens, xmppOpens2, "<a>"} {
		for i := range protocols() {
			f.Add(byte(i), client, "no way\r\n\x00")
		}
	}
	f.Fuzz(func(t *testing.T, i byte, client, why string) {
		p := protocols()[int(i)%len(protocols())]
		down := newWire(client)
		err := p.Refuse(down, errors.New(why))
		if err != nil && err != ErrNoAnswer {
			checkDialogueError(t, err)
		}
		ofLines := p.Name == "smtp" || p.Name == "imap" || p.Name == "pop3"
		if out := down.out.String(); err == nil && out == "" || len(out) > 8<<10 || ofLines && strings.Count(out, "\n") != 1 {
			t.Fatalf("%s: %v, the client got %q", p.Name, err, out)
		}
	})
}

// checkDialogueError: the error has one of the three types, and its text and bytes
// are bounded.
func checkDialogueError(t *testing.T, err error) {
	t.Helper()
	var refused *RefusedError
	var greeting *GreetingError
	var side *SideError
	if !errors.As(err, &refused) && !errors.As(err, &greeting) && !errors.As(err, &side) {
		t.Fatalf("err = %T %v", err, err)
	}
	if refused != nil && len(refused.Got) > gotMax || len(err.Error()) > 1000 {
		t.Fatalf("err is too long: %v", err)
	}
}

// splitClient cuts the encryption requests off the bytes read from a client.
func splitClient(said string) (answers int, packet string) {
	for answers < pgRequestsMax && (strings.HasPrefix(said, sslRequest) || strings.HasPrefix(said, gssRequest)) {
		said = said[8:]
		answers++
	}
	return answers, said
}

// checkAnswers cuts the dialogue's own answers off the bytes sent to the client.
func checkAnswers(t *testing.T, got string, answers int) (forwarded string) {
	t.Helper()
	if !strings.HasPrefix(got, strings.Repeat("N", answers)) {
		t.Fatalf("the client got %q, want %d answers first", got, answers)
	}
	return got[answers:]
}

// checkServer: the client received each allowed message of the server, whole and
// unchanged except for the removed mechanism; after success reading ended exactly
// where an R or E ends.
func checkServer(t *testing.T, received, toClient string, err error) {
	t.Helper()
	for {
		n := messageSize(received)
		if n == 0 || toClient == "" {
			break
		}
		msg := received[:n]
		received = received[n:]
		if msg[0] == 'R' {
			msg = struckSlowly(msg)
		}
		if !strings.HasPrefix(toClient, msg) {
			t.Fatalf("the client got %q, want %q", toClient, msg)
		}
		toClient = toClient[len(msg):]
		if msg[0] == 'R' || msg[0] == 'E' {
			if err != nil || received != "" || toClient != "" {
				t.Fatalf("after the last message: err %v, read %q, sent %q", err, received, toClient)
			}
			return
		}
	}
	if err == nil || toClient != "" {
		t.Fatalf("ended without R or E: err %v, sent %q", err, toClient)
	}
}

// messageSize returns the size of the message that s begins with; 0 if it is not
// complete.
func messageSize(s string) int {
	if len(s) < 5 {
		return 0
	}
	n := 1 + int(binary.BigEndian.Uint32([]byte(s[1:5])))
	if n < 5 || n > len(s) {
		return 0
	}
	return n
}

// struckSlowly is a second implementation of pgStripPlus.
func struckSlowly(msg string) string {
	if !strings.HasPrefix(msg[5:], "\x00\x00\x00\x0a") {
		return msg
	}
	var kept []string
	for _, name := range strings.Split(msg[9:], "\x00") {
		if name != pgPlus {
			kept = append(kept, name)
		}
	}
	body := msg[5:9] + strings.Join(kept, "\x00")
	return "R" + string(binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))) + body
}

func FuzzIdentify(f *testing.F) {
	for _, seed := range []string{"", "\x4a\x00\x00\x00\x0a", "E\x00\x00\x00\x6c", "0\x0c\x02\x01\x00", "220 m", "* OK ", "-ERR ", "HTTP/", "\x15\x03\x03\x00\x02", "\xff\xff"} {
		f.Add([]byte(seed), uint16(5432))
	}
	f.Fuzz(func(t *testing.T, first []byte, port uint16) {
		before := bytes.Clone(first)
		what, advice := Identify(first, port)
		if !bytes.Equal(first, before) {
			t.Fatalf("Identify changed its argument")
		}
		if (what == "") != (len(first) == 0) || len(what)+len(advice) > 500 {
			t.Fatalf("Identify(%q, %d) = %q, %q", first, port, what, advice)
		}
	})
}

// FuzzNATSInfo: the INFO for the client is the server's but for what it says of TLS, of
// which a client sees nothing, however it reads the keys.
func FuzzNATSInfo(f *testing.F) {
	for _, text := range []string{natsBanner[5:], `{"tls_required": true, "TLS_AVAILABLE":true}`, `{"tls\u005frequired":true}`, `{"tls_required":false,"tls_required":true}`, `{"tls_required":"true"}`, `{}`, `[true]`, `{"a":{"tls_required":true}}x`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		info, offered, err := natsStripTLS([]byte("INFO " + text))
		if err != nil {
			checkDialogueError(t, err)
			return
		}
		var seen struct {
			Required  any `json:"tls_required"`
			Available any `json:"tls_available"`
			Verify    any `json:"tls_verify"`
		}
		var before, after map[string]json.RawMessage
		read := func(text string, into any) error { return json.NewDecoder(strings.NewReader(text)).Decode(into) }
		if err := read(string(info[5:]), &seen); err != nil || seen.Required == true || seen.Available == true || seen.Verify == true {
			t.Fatalf("%q of %q: %+v, %v", info, text, seen, err)
		}
		if read(text, &before) != nil || read(string(info[5:]), &after) != nil || len(before) != len(after) || !offered && string(info[5:]) != text && !strings.Contains(strings.ToLower(text), "verify") {
			t.Fatalf("%q of %q, offered %v", info, text, offered)
		}
		for key, value := range before {
			if !natsIsTLS(key) && string(after[key]) != string(value) {
				t.Fatalf("%s is %s, and was %s", key, after[key], value)
			}
		}
	})
}
