package preface

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// recorder is a client's connection on which nothing ever comes: it keeps the hello.
type recorder struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error)      { return r.sent.Write(b) }
func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) Close() error                     { return nil }

// helloOf is what a client of crypto/tls sends first.
func helloOf(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	c.InsecureSkipVerify = true
	var r recorder
	tls.Client(&r, c).Handshake() //nolint:errcheck // nobody answers
	if r.sent.Len() == 0 {
		t.Fatal("the client has said nothing")
	}
	return r.sent.Bytes()
}

// refragment puts the message of a hello into records of n bytes.
func refragment(hello []byte, n int) []byte {
	var out []byte
	for rest := hello[recordHeader:]; len(rest) > 0; {
		part := rest[:min(n, len(rest))]
		rest = rest[len(part):]
		out = append(append(out, hello[0], hello[1], hello[2], byte(len(part)>>8), byte(len(part))), part...)
	}
	return out
}

// withExtension puts an extension behind those of a hello of one record.
func withExtension(hello []byte, kind uint16, data string) []byte {
	b := bytes.Clone(hello)
	body := b[recordHeader+helloHeader+2+32:]
	at := 1 + int(body[0])                       // session
	at += 2 + int(body[at])<<8 + int(body[at+1]) // suites
	at += 1 + int(body[at])                      // compressions
	add := append([]byte{byte(kind >> 8), byte(kind), byte(len(data) >> 8), byte(len(data))}, data...)
	grow := func(b []byte) {
		n := int(b[0])<<8 + int(b[1]) + len(add)
		b[0], b[1] = byte(n>>8), byte(n)
	}
	grow(b[3:])
	grow(b[recordHeader+2:])
	grow(body[at:])
	return append(b, add...)
}

// serverNames is the content of the extension of the same name.
func serverNames(names ...string) string {
	var list string
	for _, n := range names {
		list += "\x00" + string([]byte{byte(len(n) >> 8), byte(len(n))}) + n
	}
	return string([]byte{byte(len(list) >> 8), byte(len(list))}) + list
}

// helloReaders are ways in which a hello may arrive.
var helloReaders = map[string]func(io.Reader) io.Reader{
	"at once": func(r io.Reader) io.Reader { return r }, "in bytes": iotest.OneByteReader, "with its end": iotest.DataErrReader,
}

// What real clients say, in however many segments and records, is what we read,
// and all of it is kept.
func TestReadClientHello(t *testing.T) {
	plain := &tls.Config{ServerName: "db.Example.com"}
	none := helloOf(t, &tls.Config{ServerName: "10.0.0.1"}) // crypto/tls sends no name then
	for _, tt := range []struct {
		name  string
		hello []byte
		want  string
		ech   bool
		why   string
	}{
		{"TLS 1.3", helloOf(t, plain), "db.example.com", false, ""},
		{"TLS 1.3 without a post-quantum key", helloOf(t, &tls.Config{ServerName: "a.b", CurvePreferences: []tls.CurveID{tls.X25519}}), "a.b", false, ""},
		{"TLS 1.2", helloOf(t, &tls.Config{ServerName: "a.b", MaxVersion: tls.VersionTLS12}), "a.b", false, ""},
		{"TLS 1.0", helloOf(t, &tls.Config{ServerName: "a.b", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}), "a.b", false, ""},
		{"many protocols", helloOf(t, &tls.Config{ServerName: "a.b", NextProtos: strings.Split(strings.Repeat("protocol,", 800)+"h2", ",")}), "a.b", false, ""},
		{"no name", none, "", false, "names no server"},
		{"an address", withExtension(none, extensionServerName, serverNames("10.0.0.1")), "", false, "is an address, 10.0.0.1"},
		{"an address in disguise", withExtension(none, extensionServerName, serverNames("127.1")), "", false, "name is none"},
		{"what is no name", withExtension(none, extensionServerName, serverNames("a b")), "", false, "name is none"},
		{"a dot at its end", withExtension(none, extensionServerName, serverNames("a.b.")), "a.b", false, ""},
		{"a name of another kind", withExtension(none, extensionServerName, "\x00\x04\x07\x00\x01x"), "", false, "names no server"},
		{"ECH", withExtension(helloOf(t, plain), extensionECH, "\x00grease"), "db.example.com", true, ""},
	} {
		for _, size := range []int{1 << 14, 100, 7, 1} {
			wire := refragment(tt.hello, size)
			for how, reader := range helloReaders {
				if size == 1 && len(wire) > 5000 {
					continue
				}
				rest := strings.NewReader("")
				got, raw, err := ReadClientHello(io.MultiReader(reader(bytes.NewReader(wire)), rest))
				if err != nil || got.ServerName != tt.want || got.ECH != tt.ech || !strings.Contains(got.why, tt.why) || (tt.why == "") != (got.why == "") {
					t.Errorf("%s, %s, records of %d: %+v, %v", tt.name, how, size, got, err)
				}
				if !bytes.Equal(raw, wire) {
					t.Errorf("%s, %s, records of %d: %d bytes kept of %d", tt.name, how, size, len(raw), len(wire))
				}
			}
		}
	}
}

// What comes behind a hello is kept if it was read, and else left.
func TestBytesBehindAClientHello(t *testing.T) {
	wire := append(helloOf(t, &tls.Config{ServerName: "a.b"}), strings.Repeat("early", 10000)...)
	r := bytes.NewReader(wire)
	hello, raw, err := ReadClientHello(r)
	left, _ := io.ReadAll(r)
	if err != nil || hello.ServerName != "a.b" || !bytes.Equal(append(raw, left...), wire) {
		t.Errorf("%+v, %v; %d bytes read and %d left of %d", hello, err, len(raw), len(left), len(wire))
	}
}

// endless fails the test if more is read from it than it has.
type endless struct {
	t    *testing.T
	name string
	io.Reader
}

func (e endless) Read(b []byte) (int, error) {
	n, err := e.Reader.Read(b)
	if n == 0 {
		e.t.Errorf("%s: it waits for more", e.name)
	}
	return n, err
}

// Who sends no hello is known by what there is, and kept waiting for nothing.
func TestNoClientHello(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "a.b"})
	mangled := func(at int, to string) string {
		return string(hello[:at]) + to + string(hello[at+len(to):])
	}
	none := helloOf(t, &tls.Config{ServerName: "10.0.0.1"})
	for name, text := range map[string]string{
		"SSH":                      "S",
		"HTTP":                     "GET / HTTP/1.1\r\n",
		"MySQL's silence":          "\x00",
		"an alert":                 "\x15",
		"SSL 2":                    "\x80",
		"another major version":    "\x16\x02",
		"a ServerHello":            "\x16\x03\x03\x00\x10\x02",
		"an empty record":          "\x16\x03\x01\x00\x00",
		"a record that is too big": "\x16\x03\x01\x40\x01",
		"a message of 16 MiB":      "\x16\x03\x01\x00\x04\x01\xff\xff\xff",
		"a message of 64 KiB + 1":  "\x16\x03\x01\x00\x04\x01\x01\x00\x01",
		"an alert in between":      "\x16\x03\x01\x00\x04\x01\x00\x01\x00\x15",
		"a long session":           mangled(recordHeader+helloHeader+2+32, "\xff\xff\xff\xff"),
		"nothing in it":            "\x16\x03\x01\x00\x04\x01\x00\x00\x00",
		"two names":                string(withExtension(none, extensionServerName, serverNames("a.b", "c.d"))),
		"two extensions":           string(withExtension(hello, extensionServerName, serverNames("c.d"))),
		"an empty name":            string(withExtension(none, extensionServerName, serverNames(""))),
		"an empty list":            string(withExtension(none, extensionServerName, "\x00\x00")),
		"a cut list":               string(withExtension(none, extensionServerName, "\x00\x09\x00")),
		"more behind a list":       string(withExtension(none, extensionServerName, serverNames("a.b")+"x")),
		"records of a byte each":   string(refragment([]byte("\x16\x03\x01\x00\x00\x01\x00\xff\xff"+strings.Repeat("\x00", 1<<14)), 1)),
	} {
		_, raw, err := ReadClientHello(endless{t, name, strings.NewReader(text)})
		var no *Error
		if !errors.As(err, &no) || !strings.HasPrefix(text, string(raw)) {
			t.Errorf("%s: %v, %q kept", name, err, raw[:min(len(raw), 20)])
		}
	}
}

// A client that stops in the middle, or whose time is up, loses nothing.
func TestCutClientHello(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "a.b", CurvePreferences: []tls.CurveID{tls.X25519}})
	for _, want := range []error{io.EOF, os.ErrDeadlineExceeded} {
		for n := range hello {
			_, raw, err := ReadClientHello(io.MultiReader(bytes.NewReader(hello[:n]), iotest.ErrReader(want)))
			if err != want || !bytes.Equal(raw, hello[:n]) {
				t.Fatalf("after %d bytes: %v, %d kept", n, err, len(raw))
			}
		}
	}
}

// What OpenSSL's client says is read as well, if there is one.
func TestClientHelloOfOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client := exec.CommandContext(t.Context(), openssl, "s_client", version, "-connect", l.Addr().String(), "-servername", "OpenSSL.example")
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		hello, _, err := ReadClientHello(conn)
		conn.Close()
		client.Wait() //nolint:errcheck // we have closed
		if err != nil || hello.ServerName != "openssl.example" {
			t.Errorf("%s: %+v, %v", version, hello, err)
		}
	}
}

// seen is what crypto/tls sees of a client, and stops there.
func seen(wire []byte) (name string, ok bool) {
	errSeen := errors.New("seen")
	conn := &scripted{in: bytes.NewReader(wire)}
	tls.Server(conn, &tls.Config{MinVersion: tls.VersionTLS10, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, errSeen
	}}).Handshake() //nolint:errcheck // it ends there
	return name, ok
}

// scripted is a connection that says what it was given, and forgets what it hears.
type scripted struct {
	recorder
	in io.Reader
}

func (s *scripted) Read(b []byte) (int, error) { return s.in.Read(b) }

// What we and crypto/tls both take for a hello has the same name, and nothing that
// was read is lost.
func FuzzReadClientHello(f *testing.F) {
	hello := helloOf(f, &tls.Config{ServerName: "a.b", CurvePreferences: []tls.CurveID{tls.X25519}})
	none := helloOf(f, &tls.Config{ServerName: "10.0.0.1", MaxVersion: tls.VersionTLS12})
	for _, s := range [][]byte{hello, none, refragment(hello, 50), helloOf(f, &tls.Config{ServerName: "db.example.com"}), hello[:60],
		withExtension(hello, extensionECH, "\x00"), withExtension(none, extensionServerName, serverNames("B.C")), []byte("GET / HTTP/1.1\r\n"),
		[]byte("\x16\x03\x01\x00\x04\x01\x00\x00\x00"), withExtension(none, extensionServerName, serverNames("a", "b"))} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := bytes.NewReader(wire)
		got, raw, err := ReadClientHello(r)
		slow, rawSlow, errSlow := ReadClientHello(iotest.OneByteReader(bytes.NewReader(wire)))
		if got != slow || (err == nil) != (errSlow == nil) {
			t.Errorf("at once %+v, %v; in bytes %+v, %v", got, err, slow, errSlow)
		}
		if left := wire[len(wire)-r.Len():]; !bytes.Equal(append(bytes.Clone(raw), left...), wire) || !bytes.HasPrefix(wire, rawSlow) || len(raw) > maxHelloRaw {
			t.Errorf("%d bytes kept and %d left of %d", len(raw), len(left), len(wire))
		}
		name, ok := seen(wire)
		if err != nil || !ok {
			return
		}
		if want, _ := canonicalServerName([]byte(name)); name != "" && got.ServerName != want || name == "" && got.ServerName != "" {
			t.Errorf("we read %+v, crypto/tls %q", got, name)
		}
	})
}

func BenchmarkReadClientHello(b *testing.B) {
	hello := helloOf(b, &tls.Config{ServerName: "db.example.com"})
	r := bytes.NewReader(hello)
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(hello)
		if got, _, err := ReadClientHello(r); err != nil || got.ServerName != "db.example.com" {
			b.Fatal(got, err)
		}
	}
}
