package starttls

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// mysqlPacket is a packet with its header.
func mysqlPacket(sequence byte, body string) string {
	n := len(body)
	return string([]byte{byte(n), byte(n >> 8), byte(n >> 16), sequence}) + body
}

// mariaHello is the body of MariaDB's greeting with those low capabilities.
func mariaHello(low string) string {
	return "\x0a5.5.5-10.11.19-MariaDB\x00\x07\x00\x00\x00abcdefgh\x00" + low + "\x2d\x02\x00\xff\x81\x15" +
		strings.Repeat("\x00", 6) + "\x1d\x00\x00\x00abcdefghijkl\x00mysql_native_password\x00"
}

// reply41 is a client's response with those low capabilities.
func reply41(low, rest string) string {
	return low + "\x0f\x00" + "\x00\x00\x00\x01\x2d" + strings.Repeat("\x00", 23) + rest
}

var (
	mariaGreets = mysqlPacket(0, mariaHello("\xfe\xff"))
	mariaStruck = mysqlPacket(0, mariaHello("\xfe\xf7"))
	mysqlLogin  = mysqlPacket(1, reply41("\x05\xa2", "app\x00\x14ssssssssssssssssssss"))
	mysqlLogin2 = mysqlPacket(2, reply41("\x05\xaa", "app\x00\x14ssssssssssssssssssss"))
	mysqlAsks   = "\x20\x00\x00\x01" + reply41("\x05\xaa", "")
)

const (
	mysqlFine = "\x00\x00\x00\x02\x00\x00\x00"
	mysqlBad  = "\xff\x15\x04#28000Access denied"
	toSHA256  = "\xfesha256_password\x00cccccccccccccccccccc\x00"
	switchTo  = "\xfeclient_ed25519\x00cccccccccccccccccccccccccccccccc\x00"
)

// mysqlRun runs the whole dialogue on wires; before TLS the server sends only its
// greeting.
func mysqlRun(t testing.TB, greeting string, down, up *wire) (*Dialogue, Result, error) {
	t.Helper()
	d, err := mysqlUpgrade(newWire(greeting))
	if err != nil {
		t.Fatal(err)
	}
	begun, err := d.Begin(down, up)
	if err != nil {
		return d, begun, err
	}
	d.Confidential = true
	out, err := d.Finish(down, up)
	out.Up, out.Down = out.Up+begun.Up, out.Down+begun.Down
	return d, out, err
}

func TestMySQL(t *testing.T) {
	for _, tt := range []struct {
		name             string
		client, toServer []string // behind the login, as sent and as forwarded
		server, toClient []string
	}{
		{"native password", nil, nil, []string{mysqlPacket(3, mysqlFine)}, []string{mysqlPacket(2, mysqlFine)}},
		{"wrong password", nil, nil, []string{mysqlPacket(3, mysqlBad)}, []string{mysqlPacket(2, mysqlBad)}},
		{"auth switch", []string{mysqlPacket(3, "signature")}, []string{mysqlPacket(4, "signature")},
			[]string{mysqlPacket(3, switchTo), mysqlPacket(5, mysqlFine)}, []string{mysqlPacket(2, switchTo), mysqlPacket(4, mysqlFine)}},
		{"old auth switch", []string{mysqlPacket(3, "12345678\x00")}, []string{mysqlPacket(4, "12345678\x00")},
			[]string{mysqlPacket(3, "\xfe"), mysqlPacket(5, mysqlFine)}, []string{mysqlPacket(2, "\xfe"), mysqlPacket(4, mysqlFine)}},
		{"caching_sha2_password from the cache", nil, nil,
			[]string{mysqlPacket(3, "\x01\x03"), mysqlPacket(4, mysqlFine)}, []string{mysqlPacket(2, "\x01\x03"), mysqlPacket(3, mysqlFine)}},
		{"caching_sha2_password in full, client on a unix socket", []string{mysqlPacket(3, "secret\x00")}, []string{mysqlPacket(4, "secret\x00")},
			[]string{mysqlPacket(3, "\x01\x04"), mysqlPacket(5, mysqlFine)}, []string{mysqlPacket(2, "\x01\x04"), mysqlPacket(4, mysqlFine)}},
		{"sha256_password, client that sends the password", []string{mysqlPacket(3, "secret\x00")}, []string{mysqlPacket(4, "secret\x00")},
			[]string{mysqlPacket(3, toSHA256), mysqlPacket(5, mysqlFine)}, []string{mysqlPacket(2, toSHA256), mysqlPacket(4, mysqlFine)}},
		{"sha256_password, no password", []string{mysqlPacket(3, "\x00")}, []string{mysqlPacket(4, "\x00")},
			[]string{mysqlPacket(3, toSHA256), mysqlPacket(5, mysqlFine)}, []string{mysqlPacket(2, toSHA256), mysqlPacket(4, mysqlFine)}},
		{"two questions, one empty answer", []string{mysqlPacket(3, "one"), mysqlPacket(5, "")}, []string{mysqlPacket(4, "one"), mysqlPacket(6, "")},
			[]string{mysqlPacket(3, "\x02Password: "), mysqlPacket(5, "\x02Code: "), mysqlPacket(7, mysqlFine)},
			[]string{mysqlPacket(2, "\x02Password: "), mysqlPacket(4, "\x02Code: "), mysqlPacket(6, mysqlFine)}},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			const behind = "\x01\x00\x00\x00\x0e" // a COM_PING; of the server it is noise
			down, up := open(mysqlLogin+strings.Join(tt.client, "")+behind), open(strings.Join(tt.server, "")+behind)
			_, out, err := mysqlRun(t, mariaGreets, down, up)
			if err != nil {
				t.Fatal(err)
			}
			wantServer, wantClient := mysqlAsks+mysqlLogin2+strings.Join(tt.toServer, ""), mariaStruck+strings.Join(tt.toClient, "")
			if up.out.String() != wantServer || down.out.String() != wantClient {
				t.Errorf("to the server %q\nwant          %q\nto the client %q\nwant          %q", up.out.String(), wantServer, down.out.String(), wantClient)
			}
			if down.unread() != behind || up.unread() != behind {
				t.Errorf("left unread %q of the client, %q of the server", down.unread(), up.unread())
			}
			if !out.Answered || out.Up != int64(len(wantServer)-len(mysqlAsks)) || out.Down != int64(len(wantClient)) {
				t.Errorf("Result %+v; sent %d and %d", out, len(wantServer), len(wantClient))
			}
		})
	}
}

// TestMySQLGreeting: a server's first packet, and the bytes behind it, which must
// not be read in plaintext (CVE-2021-23222 is this in another protocol).
func TestMySQLGreeting(t *testing.T) {
	blocked := mysqlPacket(0, "\xff\x69\x04Host 'h' is blocked")
	for _, tt := range []struct {
		name, server string
		words        []string
		reply        string
	}{
		{"no TLS", mysqlPacket(0, mariaHello("\xfe\xf7")), []string{"no TLS", "ssl_cert"}, ""},
		{"before 4.1", mysqlPacket(0, mariaHello("\xfe\xfd")), []string{"no TLS"}, ""},
		{"blocked", blocked, []string{"refused the connection", "1129", "is blocked"}, blocked},
		{"too short an error", mysqlPacket(0, "\xff"), []string{"without a number"}, mysqlPacket(0, "\xff")},
		{"protocol 9", mysqlPacket(0, "\x09abc"), []string{"greeted"}, ""},
		{"no end of the version", mysqlPacket(0, "\x0a5.5"), []string{"no capabilities"}, ""},
		{"nothing behind the version", mysqlPacket(0, "\x0a5.5\x00"), []string{"no capabilities"}, ""},
		{"empty", mysqlPacket(0, "") + "x", []string{"greeted"}, ""},
		{"second packet first", mysqlPacket(1, mariaHello("\xfe\xff")), []string{"greeted"}, ""},
		{"a MiB of greeting", mysqlPacket(0, "\x0a"+strings.Repeat("x", 1<<20)), []string{"greeted"}, ""},
		{"SMTP", smtpGreets, []string{"SMTP", "--starttls smtp"}, ""},
		{"IMAP", imapGreets, []string{"IMAP", "--starttls imap"}, ""},
		{"PostgreSQL", "E\x00\x00\x00\x85S", []string{"PostgreSQL", "--starttls postgres"}, ""},
		{"X protocol", "\x05\x00\x00\x00\x0b\x08\x05\x1a\x00", []string{"greeted"}, ""},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			_, err := mysqlUpgrade(open(tt.server))
			if refused := wantRefused(t, err, "mysql", tt.words); string(refused.Reply) != tt.reply {
				t.Errorf("Reply = %q, want %q", refused.Reply, tt.reply)
			}
		})
	}
	up := newWire(mariaGreets + mysqlPacket(1, mysqlFine))
	if _, err := mysqlUpgrade(up); err != nil || up.unread() != mysqlPacket(1, mysqlFine) || up.out.Len() != 0 {
		t.Errorf("%v, left %q, sent %q", err, up.unread(), up.out.String())
	}
	_, err := mysqlUpgrade(endingWire("", os.ErrDeadlineExceeded))
	wantWords(t, err.Error(), []string{"remove starttls"})
}

func TestMySQLClient(t *testing.T) {
	long := mysqlPacket(1, reply41("\x05\xa2", strings.Repeat("x", mysqlPacketMax)))
	for _, tt := range []struct {
		name, client string
		words        []string
		sequence     byte // of our answer
	}{
		{"wants TLS", mysqlPacket(1, reply41("\x05\xaa", "")), []string{"request for TLS", "--skip-ssl", "--ssl-mode"}, 2},
		{"wants TLS and says more", mysqlPacket(1, reply41("\x05\xaa", "app\x00")), []string{"request for TLS"}, 2},
		{"before 4.1", mysqlPacket(1, reply41("\x05\x80", "app\x00")), []string{"before 4.1"}, 2},
		{"too short", mysqlPacket(1, "abc"), []string{"no response"}, 2},
		{"wrong number", mysqlPacket(2, reply41("\x05\xa2", "app\x00")), []string{"no response"}, 1},
		{"too long", long, []string{"no response"}, 1},
		{"HTTP", "GET / HTTP/1.1\r\n", []string{`"GET "`}, 1},
		{"TLS", "\x16\x03\x01\x02\x00\x01", []string{"no response"}, 1},
	} {
		bothSpeeds(t, tt.name, func(t *testing.T, open func(string) *wire) {
			up := newWire("")
			d, out, err := mysqlRun(t, mariaGreets, open(tt.client), up)
			var greeting *GreetingError
			if !errors.As(err, &greeting) {
				t.Fatalf("err = %v, want a *GreetingError", err)
			}
			wantWords(t, err.Error(), tt.words)
			if up.out.Len() != 0 || out.Up != 0 || out.Down != int64(len(mariaStruck)) {
				t.Errorf("sent %q upstream, %+v", up.out.String(), out)
			}
			if got, want := string(d.Refuse(errors.New("no"))), mysqlPacket(tt.sequence, "\xff\x13\x04#08S01ambassador: no"); got != want {
				t.Errorf("the client is told %q, want %q", got, want)
			}
		})
	}
	_, _, err := mysqlRun(t, mariaGreets, newWire(""), newWire(""))
	wantSide(t, err, SideError{Downstream, "read", io.EOF, true, mysqlHintTLS})
}

// TestMySQLFullAuthentication: if the server asks for the password and the client
// does not send it without its own TLS, the error says what to do.
func TestMySQLFullAuthentication(t *testing.T) {
	wants := mysqlPacket(3, "\x01\x04")
	up := newWire(wants)
	d, _, err := mysqlRun(t, mariaGreets, newWire(mysqlLogin+mysqlPacket(3, "\x02")), up)
	var greeting *GreetingError
	if !errors.As(err, &greeting) {
		t.Fatalf("err = %v, want a *GreetingError", err)
	}
	wantWords(t, err.Error(), []string{"caching_sha2_password", "unix-socket listener"})
	if up.out.String() != mysqlAsks+mysqlLogin2 {
		t.Errorf("the server got %q", up.out.String())
	}
	text := string(d.Refuse(err))
	if text[3] != 4 || !strings.Contains(text, "unix-socket listener") || len(text) > 4+512 {
		t.Errorf("the client is told %q", text)
	}
	_, _, err = mysqlRun(t, mariaGreets, newWire(mysqlLogin), newWire(wants))
	wantSide(t, err, SideError{Downstream, "read", io.EOF, false, mysqlHintFull})
}

// TestMySQLFullAuthenticationByTCP: a client that would not send the password gets
// an error instead of the request for it.
func TestMySQLFullAuthenticationByTCP(t *testing.T) {
	d, err := mysqlUpgrade(newWire(mariaGreets))
	if err != nil {
		t.Fatal(err)
	}
	down, up := newWire(mysqlLogin), newWire(mysqlPacket(3, "\x01\x04"))
	if _, err := d.Begin(down, up); err != nil {
		t.Fatal(err)
	}
	_, err = d.Finish(down, up)
	var greeting *GreetingError
	if !errors.As(err, &greeting) || down.out.String() != mariaStruck {
		t.Fatalf("err = %v, the client got %q", err, down.out.String())
	}
	text := string(d.Refuse(err))
	if text[3] != 2 || !strings.Contains(text, "unix-socket listener") {
		t.Errorf("the client is told %q", text)
	}
}

// TestMySQLSHA256: a client that cannot send the password is told what to do, instead of
// that its password is wrong.
func TestMySQLSHA256(t *testing.T) {
	first := func(flags, data, rest string) string {
		return mysqlPacket(1, flags+"\x00\x00\x00\x01\x2d"+strings.Repeat("\x00", 23)+"app\x00"+data+rest)
	}
	const plain, withDB, lenenc = "\x05\xa2\x08\x00", "\x0d\xa2\x08\x00", "\x05\xa2\x28\x00"
	encrypted := strings.Repeat("e", 256)
	for _, tt := range []struct {
		name, client, server string
		told                 string // empty: the client gets the server's packets
		number               byte
	}{
		{"asks for the key", mysqlLogin + mysqlPacket(3, "\x01"), mysqlPacket(3, toSHA256), "sha256_password wants", 4},
		{"has the key", mysqlLogin + mysqlPacket(3, encrypted), mysqlPacket(3, toSHA256), "sha256_password wants", 4},
		{"asks at once", first(plain, "\x01\x01", "sha256_password\x00"), mysqlPacket(3, mysqlBad), "the server said 1045", 2},
		{"asks at once, with a database", first(withDB, "\x01\x01", "orders\x00sha256_password\x00"), mysqlPacket(3, mysqlBad), "the server said 1045", 2},
		{"has the key, at once", first(lenenc, "\xfc\x00\x01"+encrypted, "sha256_password\x00"), mysqlPacket(3, mysqlBad), "the server said 1045", 2},
		{"no password, at once", first(plain, "\x01\x00", "sha256_password\x00"), mysqlPacket(3, mysqlBad), "", 0},
		{"asks at once, and the user has another plugin", first(plain, "\x01\x01", "sha256_password\x00") + mysqlPacket(3, "proof"),
			mysqlPacket(3, "\xfemysql_native_password\x00cccccccccccccccccccc\x00") + mysqlPacket(5, mysqlBad), "", 0},
		{"data that is cut short", first(plain, "\x09\x01", ""), mysqlPacket(3, mysqlBad), "", 0},
	} {
		down, up := newWire(tt.client), newWire(tt.server)
		d, _, err := mysqlRun(t, mariaGreets, down, up)
		if tt.told == "" {
			if err != nil || !strings.HasSuffix(down.out.String(), mysqlBad) {
				t.Errorf("%s: %v, the client got %q", tt.name, err, down.out.String())
			}
			continue
		}
		var greeting *GreetingError
		if !errors.As(err, &greeting) {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if text := string(d.Refuse(err)); text[3] != tt.number || !strings.Contains(text, tt.told) || strings.Contains(down.out.String(), mysqlBad) {
			t.Errorf("%s: the client is told %q, after %q", tt.name, text, down.out.String())
		}
	}
}

func TestMySQLServerRefused(t *testing.T) {
	for _, tt := range []struct {
		name, client, server string
		words                []string
	}{
		{"wrong number", mysqlLogin, mysqlPacket(2, mysqlFine), []string{"packet 2", "3 is due"}},
		{"too long", mysqlLogin, "\xff\xff\xff\x03", []string{"16777215"}},
		{"endless", mysqlLogin, endlessQuestions(), []string{"64 packets"}},
	} {
		client := tt.client
		if tt.name == "endless" {
			client += endlessAnswers()
		}
		_, _, err := mysqlRun(t, mariaGreets, newWire(client), newWire(tt.server))
		wantRefused(t, err, "mysql", tt.words)
	}
	_, _, err := mysqlRun(t, mariaGreets, newWire(mysqlLogin), newWire(""))
	var side *SideError
	if !errors.As(err, &side) || side.Side != Upstream || !side.Clean || side.Hint == "" {
		t.Errorf("a server that closes: %v", err)
	}
}

func endlessQuestions() string {
	var b strings.Builder
	for i := range 100 {
		b.WriteString(mysqlPacket(byte(3+2*i), "\x02more"))
	}
	return b.String()
}

func endlessAnswers() string {
	var b strings.Builder
	for i := range 100 {
		b.WriteString(mysqlPacket(byte(3+2*i), "x"))
	}
	return b.String()
}

func TestMySQLRefuse(t *testing.T) {
	down := newWire("")
	if err := mysqlRefuse(down, errors.New("no")); err != nil || down.out.String() != mysqlPacket(0, "\xff\x13\x04ambassador: no") {
		t.Errorf("%v, %q", err, down.out.String())
	}
	blocked := mysqlPacket(0, "\xff\x10\x04Too many connections")
	_, err := mysqlUpgrade(newWire(blocked))
	down = newWire("")
	if err := mysqlRefuse(down, err); err != nil || down.out.String() != blocked {
		t.Errorf("%v, %q, want the server's own", err, down.out.String())
	}
}

func TestMySQLBeginProbe(t *testing.T) {
	d, err := mysqlUpgrade(newWire(mariaGreets))
	if err != nil {
		t.Fatal(err)
	}
	up := newWire("")
	if err := d.BeginProbe(up, "db"); err != nil {
		t.Fatal(err)
	}
	if want := mysqlPacket(1, "\x00\x8a\x08\x00\x00\x00\x00\x01\x21"+strings.Repeat("\x00", 23)); up.out.String() != want {
		t.Errorf("sent %q, want %q", up.out.String(), want)
	}
}

// FuzzMySQL: each side receives the other's packets that are in order, whole and
// renumbered; nothing behind the verdict is read.
func FuzzMySQL(f *testing.F) {
	for _, client := range []string{"", mysqlLogin, mysqlLogin + mysqlPacket(3, "sig") + "\x01\x00\x00\x00\x0e", mysqlLogin + mysqlPacket(3, "\x02"), mysqlAsks, "GET / HTTP"} {
		for _, server := range []string{"", mysqlPacket(3, mysqlFine) + "x", mysqlPacket(3, switchTo) + mysqlPacket(5, mysqlBad), mysqlPacket(3, "\x01\x03") + mysqlPacket(4, mysqlFine), mysqlPacket(3, "\x01\x04"), mysqlPacket(3, toSHA256), mysqlPacket(3, "")} {
			f.Add(mariaGreets, client, server)
		}
	}
	f.Add(mysqlPacket(0, mysqlBad), "", "")
	f.Fuzz(func(t *testing.T, greeting, client, server string) {
		d, err := mysqlUpgrade(newWire(greeting))
		if err != nil {
			checkDialogueError(t, err)
			return
		}
		down, up := newWire(client), newWire(server)
		begun, err := d.Begin(down, up)
		if err != nil {
			checkDialogueError(t, err)
			if up.out.Len() != 0 || len(d.Refuse(err)) > 516 {
				t.Fatalf("sent %q, and tells %q", up.out.String(), d.Refuse(err))
			}
			return
		}
		if asked := up.out.String(); len(asked) != 36 || asked[5]&0x08 == 0 || asked[3] != 1 {
			t.Fatalf("asked for TLS with %q", asked)
		}
		d.Confidential = len(client)%2 == 0
		hello := down.out.Len()
		out, err := d.Finish(down, up)
		if err != nil {
			checkDialogueError(t, err)
		}
		if begun.Down != int64(hello) || out.Down != int64(down.out.Len()-hello) || out.Up != int64(up.out.Len()-36) {
			t.Fatalf("Outcomes %+v, %+v; sent %d, %d", begun, out, up.out.Len(), down.out.Len())
		}
		received := server[:len(server)-len(up.unread())]
		checkRenumbered(t, received, down.out.String()[hello:], 0xff, err == nil)
		toServer := []byte(up.out.String()[36:])
		if len(toServer) > 5 {
			toServer[5] = client[5] // its CLIENT_SSL
		}
		checkRenumbered(t, client[:len(client)-len(down.unread())], string(toServer), 1, err == nil)
	})
}

// checkRenumbered: the forwarded bytes are packets of those read, each with step
// added to its number; after success, all of them.
func checkRenumbered(t *testing.T, read, forwarded string, step byte, all bool) {
	t.Helper()
	for forwarded != "" {
		n := 4 + mysqlSize([]byte(forwarded))
		if n > len(forwarded) || n > len(read) || forwarded[:3]+forwarded[4:n] != read[:3]+read[4:n] || forwarded[3] != read[3]+step {
			t.Fatalf("forwarded %.80q of %.80q", forwarded, read)
		}
		forwarded, read = forwarded[n:], read[n:]
	}
	if all && read != "" {
		t.Fatalf("read %q and did not forward it", read)
	}
}
