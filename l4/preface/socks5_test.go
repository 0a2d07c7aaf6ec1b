package preface

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

const (
	socksHello    = "\x05\x01\x00" // nc -X 5
	socksAskUser  = "\x05\x02\x00\x02"
	socksUser     = "\x01\x05batch\x02pw"
	socksToName   = "\x05\x01\x00\x03\x0bexample.com\x00\x50"
	socksToFour   = "\x05\x01\x00\x01\x0a\x00\x00\x07\x15\x38"
	socksToSix    = "\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\xbb"
	socksToMapped = "\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01\x00\x50"
	socksTold1    = "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"
)

// toName is a request for a name.
func toName(name string) string {
	return "\x05\x01\x00\x03" + string(rune(len(name))) + name + "\x00\x50"
}

func TestSOCKS5Requests(t *testing.T) {
	testGood(t, readSOCKS, []goodRequest{
		{name: "a name", says: socksHello + socksToName, hears: "\x05\x00", to: "example.com:80"},
		{name: "curl", says: "\x05\x02\x00\x01" + socksToName, hears: "\x05\x00", to: "example.com:80"},
		{name: "curl with a user", says: "\x05\x03\x00\x01\x02" + socksUser + socksToName, auth: batch, hears: "\x05\x02\x01\x00", to: "example.com:80", user: "batch"},
		{name: "a user for nobody", says: "\x05\x03\x02\x01\x00" + socksToName, hears: "\x05\x00", to: "example.com:80"},
		{name: "all methods", says: "\x05\xff" + strings.Repeat("\x09", 254) + "\x00" + socksToName, hears: "\x05\x00", to: "example.com:80"},
		{name: "another spelling", says: socksHello + toName("Example.COM."), hears: "\x05\x00", to: "example.com.:80"},
		{name: "IPv4", says: socksHello + socksToFour, hears: "\x05\x00", to: "10.0.0.7:5432"},
		{name: "IPv6", says: socksHello + socksToSix, hears: "\x05\x00", to: "[2001:db8::1]:443"},
		{name: "IPv4 in IPv6", says: socksHello + socksToMapped, hears: "\x05\x00", to: "127.0.0.1:80"},
		{name: "IPv4 for a name", says: socksHello + toName("127.0.0.1"), hears: "\x05\x00", to: "127.0.0.1:80"},
		{name: "IPv6 for a name", says: socksHello + toName("::1"), hears: "\x05\x00", to: "[::1]:80"},
		{name: "IPv6 in brackets", says: socksHello + toName("[::1]"), hears: "\x05\x00", to: "[::1]:80"},
		{name: "disguised IPv4 for a name", says: socksHello + toName("::ffff:127.0.0.1"), hears: "\x05\x00", to: "127.0.0.1:80"},
		{name: "a user", says: socksAskUser + socksUser + socksToFour, auth: batch, hears: "\x05\x02\x01\x00", to: "10.0.0.7:5432", user: "batch"},
		{name: "a user with a context", says: socksAskUser + "\x01\x1bbatch+attempts=1+timeout=2s\x02pw" + socksToFour, auth: batch, hints: true,
			hears: "\x05\x02\x01\x00", to: "10.0.0.7:5432", user: "batch", tells: "attempts=1+timeout=2s"},
		{name: "a user without a context", says: socksAskUser + socksUser + socksToFour, auth: batch, hints: true, hears: "\x05\x02\x01\x00", to: "10.0.0.7:5432", user: "batch"},
		{name: "a user with a plus", says: socksAskUser + "\x01\x07batch+x\x02pw" + socksToFour, auth: func(user, _ string) error {
			if user != "batch+x" {
				return passwordError{user}
			}
			return nil
		},
			hears: "\x05\x02\x01\x00", to: "10.0.0.7:5432", user: "batch+x"},
	})
}

func TestBadSOCKS5Requests(t *testing.T) {
	testBad(t, readSOCKS, []badRequest{
		{name: "no name", says: socksHello + toName(""), hears: "\x05\x00" + socksTold1, kind: wrong, cause: "empty"},
		{name: "a line break", says: socksHello + toName("a\r\nb"), hears: "\x05\x00" + socksTold1, kind: wrong, cause: `'\r'`},
		{name: "a NUL", says: socksHello + toName("a\x00b"), hears: "\x05\x00" + socksTold1, kind: wrong, cause: `'\x00'`},
		{name: "a space", says: socksHello + toName("a b"), hears: "\x05\x00" + socksTold1, kind: wrong, cause: `' '`},
		{name: "an address in disguise", says: socksHello + toName("127.1"), hears: "\x05\x00" + socksTold1, kind: wrong, cause: "127.0.0.1"},
		{name: "an address with a zone", says: socksHello + toName("fe80::1%lo"), hears: "\x05\x00" + socksTold1, kind: wrong, cause: "zone"},
		{name: "port 0", says: socksHello + "\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x00", hears: "\x05\x00" + socksTold1, kind: wrong, cause: "port 0"},
		{name: "port 0 of a name", says: socksHello + "\x05\x01\x00\x03\x01a\x00\x00", hears: "\x05\x00" + socksTold1, kind: wrong, cause: "port 0"},
		{name: "BIND", says: socksHello + "\x05\x02\x00\x01\x0a\x00\x00\x07\x15\x38", hears: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", kind: wrong, cause: "BIND"},
		{name: "UDP ASSOCIATE", says: socksHello + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", hears: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", kind: wrong, cause: "UDP ASSOCIATE"},
		{name: "Tor's RESOLVE", says: socksHello + "\x05\xf0\x00\x03\x01a\x00\x00", hears: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", kind: wrong, cause: "CONNECT"},
		{name: "an address of another kind", says: socksHello + "\x05\x01\x00\x02\x0a\x00\x00\x07\x15\x38", hears: "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00", kind: wrong, cause: "none of IPv4, IPv6"},
		{name: "another version in the request", says: socksHello + "\x04\x01\x00\x01\x0a\x00\x00\x07\x15\x38", hears: "\x05\x00" + socksTold1, kind: wrong, cause: "version"},
		{name: "SOCKS4", says: "\x04\x01\x00\x50\x7f\x00\x00\x01user\x00", kind: wrong, cause: "SOCKS4, which has no passwords"},
		{name: "HTTP", says: "GET http://example.com/ HTTP/1.1\r\n\r\n", kind: wrong, cause: "give the listener http_connect instead (curl -x http://…)"},
		{name: "HTTP CONNECT", says: "CONNECT example.com:443 HTTP/1.1\r\n\r\n", kind: wrong, cause: `("C`},
		{name: "TLS", says: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc", kind: wrong, cause: "begins with TLS"},
		{name: "something else", says: "\x00\x00\x00\x08\x04\xd2\x16\x2f", kind: wrong, cause: `begins with "\x00`},
		{name: "no method", says: "\x05\x00", hears: "\x05\xff", kind: wrong, cause: "no users_file"},
		{name: "a method that nobody asks for", says: "\x05\x02\x01\x02", hears: "\x05\xff", kind: wrong, cause: "no users_file"},
		{name: "no user", says: socksHello + socksToFour, auth: batch, hears: "\x05\xff", kind: noLogin, cause: "offers no user name"},
		{name: "a wrong password", says: socksAskUser + "\x01\x05batch\x03pw2" + socksToFour, auth: batch, hears: "\x05\x02\x01\x01", kind: password, cause: `"batch" is no user`},
		{name: "an empty user", says: socksAskUser + "\x01\x00\x00" + socksToFour, auth: batch, hears: "\x05\x02\x01\x01", kind: password, cause: `"" is no user`},
		{name: "a context that is not wanted", says: socksAskUser + "\x01\x07batch+x\x02pw" + socksToFour, auth: batch, hears: "\x05\x02\x01\x01", kind: password, cause: `"batch+x"`},
		{name: "another version of the user", says: socksAskUser + "\x05\x05batch\x02pw", auth: batch, hears: "\x05\x02\x01\x01", kind: wrong, cause: "version"},
	})
}

func TestSOCKS5ClientsThatEnd(t *testing.T) {
	testEndings(t, readSOCKS, socksHello+socksToName[:8])
	_, err := ReadSOCKS5(&deaf{tape: tape{in: strings.NewReader(socksHello + socksToName)}}, nil, false)
	if !errors.Is(err, syscall.EPIPE) || kindOf(err) != "" {
		t.Errorf("a client that has gone: %v", err)
	}
}

// A client that guesses a password and leaves without waiting for the answer has guessed
// a password.
func TestSOCKS5GuessIsNamed(t *testing.T) {
	c := &deaf{tape{in: strings.NewReader(socksAskUser + "\x01\x05batch\x03pw2")}, 1}
	if _, err := ReadSOCKS5(c, batch, false); kindOf(err) != password {
		t.Errorf("a client that has gone after a wrong password: %v", err)
	}
}

func TestSilentSOCKS5Clients(t *testing.T) {
	testSilence(t, readSOCKS, nil, []string{"\x05"}, []string{socksAskUser}, []string{socksAskUser, "\x05\x02"},
		[]string{socksAskUser, "\x05\x02", "\x01\x05bat"}, []string{socksAskUser, "\x05\x02", socksUser, "\x01\x00"},
		[]string{socksAskUser, "\x05\x02", socksUser, "\x01\x00", socksToName[:9]})
}

func TestPipelinedSOCKS5(t *testing.T) { testPipelined(t, readSOCKS, socksHello+socksToName) }

// A message of the client costs one read, and what is not its request is left.
func TestSOCKS5ReadsOncePerMessage(t *testing.T) {
	c := &tape{in: &messages{socksAskUser, socksUser, socksToName, "own bytes"}}
	r, err := ReadSOCKS5(c, batch, false)
	if err != nil || c.reads != 3 || len(r.Early) != 0 {
		t.Errorf("%d reads, early %q, %v", c.reads, r.Early, err)
	}
}

func TestSOCKS5Accepts(t *testing.T) {
	for bound, want := range map[string]string{
		"10.0.0.7:51200":           "\x05\x00\x00\x01\x0a\x00\x00\x07\xc8\x00",
		"[::ffff:10.0.0.7]:51200":  "\x05\x00\x00\x01\x0a\x00\x00\x07\xc8\x00",
		"[2001:db8::1%eth0]:51200": "\x05\x00\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xc8\x00",
		"":                         "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00",
	} {
		var at netip.AddrPort
		if bound != "" {
			at = netip.MustParseAddrPort(bound)
		}
		c := &tape{}
		if err := SOCKSSucceeded.Write(c, at); err != nil || c.out.String() != want {
			t.Errorf("%s: %q, %v", bound, c.out.String(), err)
		}
	}
}

// What is read is what RFC 1928 says, and what is not part of it is kept.
func FuzzReadSOCKS5(f *testing.F) {
	for _, s := range []string{socksHello + socksToName + "rest", socksHello + socksToFour, socksHello + socksToSix, socksHello + socksToMapped, socksHello + toName("[::1]"),
		socksAskUser + socksUser + socksToFour, socksAskUser + "\x01\x08batch+a=\x02pw" + socksToName, socksHello + "\x05\x02\x00\x03\x00\x00\x00", "\x05\x00", "\x04\x01", "GET / HTTP/1.1\r\n\r\n", socksHello + "\x05\x01\x00\x05"} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, says string, asked bool) {
		var auth Credentials
		if asked {
			auth = batch
		}
		in := strings.NewReader(says)
		got := asker{readSOCKS, auth, true}.of(in)
		r, hears, rest, err := got.request, got.hears, got.rest, got.err
		if len(hears) > 4+10 {
			t.Errorf("%d bytes are said", len(hears))
		}
		if err != nil {
			if len(err.Error()) > 1500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		used := says[:len(says)-len(rest)]
		if !strings.HasSuffix(says, rest) {
			t.Fatalf("%q is left of %q", rest, says)
		}
		if used != strings.Join(socksMessages(used, asked), "") {
			t.Errorf("%q was used, and is no request", used)
		}
		if r.Port != uint16(used[len(used)-2])<<8|uint16(used[len(used)-1]) || r.Host == "" && !r.Addr.IsValid() {
			t.Errorf("%q is taken for %s", used, destinationOf(r))
		}
	})
}

// socksMessages cuts a good request by its lengths.
func socksMessages(s string, asked bool) (out []string) {
	take := func(n int) {
		out = append(out, s[:n])
		s = s[n:]
	}
	take(2 + int(s[1]))
	if asked {
		take(2 + int(s[1]))
		take(1 + int(s[0]))
	}
	switch s[3] {
	case 1:
		take(4 + 4 + 2)
	case 3:
		take(4 + 1 + int(s[4]) + 2)
	case 4:
		take(4 + 16 + 2)
	}
	return out
}

// The library's part of a connection, in memory: 2 messages, or 3 with a user.
func BenchmarkReadSOCKS5(b *testing.B) {
	for name, tt := range map[string]struct {
		auth Credentials
		says []string
	}{
		"name":    {nil, []string{socksHello, socksToName}},
		"address": {nil, []string{socksHello, socksToFour}},
		"user":    {batch, []string{socksAskUser, socksUser, socksToName}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				in := messages(append([]string(nil), tt.says...))
				c := &tape{in: &in}
				if _, err := ReadSOCKS5(c, tt.auth, false); err != nil {
					b.Fatal(err)
				}
				SOCKSSucceeded.Write(io.Discard, netip.AddrPort{})
			}
		})
	}
}
