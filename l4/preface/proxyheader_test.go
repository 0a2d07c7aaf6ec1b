package preface

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pires/go-proxyproto"
)

// The beginnings of version 2: signature, command and family.
var (
	v2Signature = string(proxyproto.SIGV2)
	v2TCP4      = v2Signature + "\x21\x11"
	v2TCP6      = v2Signature + "\x21\x21"
	v2Local     = v2Signature + "\x20\x00"
	v4Addresses = "\x01\x02\x03\x04\x0a\x00\x00\x07\xc8\x00\x15\x38" // 1.2.3.4:51200 → 10.0.0.7:5432
)

// The specification of the headers that we read. Where want is empty there is an
// error with a text.
func TestReadProxyHeader(t *testing.T) {
	for _, tt := range []struct{ name, text, want, err string }{
		{"v1", "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", "1.2.3.4:51200", ""},
		{"v1 IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 51200 5432\r\n", "[2001:db8::1]:51200", ""},
		{"v1 unknown", "PROXY UNKNOWN\r\n", "-", ""},
		{"v1 unknown, with the longest rest", "PROXY UNKNOWN " + strings.Repeat("f", 91) + "\r\n", "-", ""},
		{"v2", v2TCP4 + "\x00\x0c" + v4Addresses, "1.2.3.4:51200", ""},
		{"v2 with a TLV", v2TCP4 + "\x00\x10" + v4Addresses + "\x04\x00\x01x", "1.2.3.4:51200", ""},
		{"v2 mapped", v2TCP6 + "\x00\x24" + strings.Repeat("\x00", 10) + "\xff\xff\x01\x02\x03\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x07" + "\xc8\x00\x15\x38", "1.2.3.4:51200", ""},
		{"v2 local", v2Local + "\x00\x00", "-", ""},
		{"v2 local with addresses", v2Signature + "\x20\x11\x00\x0c" + v4Addresses, "-", ""},
		{"v2 unix", v2Signature + "\x21\x31\x00\xd8" + strings.Repeat("x", 216), "-", ""},
		{"v2 datagrams", v2Signature + "\x21\x12\x00\x0c" + v4Addresses, "", "datagrams"},
		{"v2 of another command", v2Signature + "\x22\x11\x00\x0c" + v4Addresses, "", "unsupported"},
		{"v2 of another family", v2Signature + "\x21\x51\x00\x0c" + v4Addresses, "", "unsupported"},
		{"v2 too short for addresses", v2TCP4 + "\x00\x04\x01\x02\x03\x04", "", "invalid length"},
		{"v2 too long", v2TCP4 + "\x10\x01" + strings.Repeat("x", 5000), "", "the most is 4096"},
		{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", "", "more than 107 bytes"},
		{"v1 without CR", "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\n", "", "must end with"},
		{"v1 of no address", "PROXY TCP4 1.2.3 10.0.0.7 51200 5432\r\n", "", "invalid address"},
		{"v1 of no family", "PROXY UDP4 1.2.3.4 10.0.0.7 51200 5432\r\n", "", "address family"},
		{"v1 in lower case", "proxy TCP4", "", `there is none, the client begins with "p`},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03xxxx", "", "send-proxy-v2"},
		{"HTTP's PROPFIND", "PROPFIND / HTTP/1.1\r\n", "", "there is none"},
	} {
		for how, reader := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "in bytes": iotest.OneByteReader} {
			r := strings.NewReader(tt.text + "rest")
			h, err := ReadProxyHeader(reader(r))
			rest, _ := io.ReadAll(r)
			var bad *Error
			switch {
			case tt.err != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("%s %s: %v, want %q", tt.name, how, err, tt.err)
			case tt.err != "":
			case err != nil || string(rest) != "rest":
				t.Errorf("%s %s: %v, and %q is left", tt.name, how, err, rest)
			case tt.want == "-" && h != ProxyHeader{} || tt.want != "-" && h.Source.String() != tt.want:
				t.Errorf("%s %s: %v, want %s", tt.name, how, h, tt.want)
			}
		}
	}
	for _, whole := range []string{"PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", v2TCP4 + "\x00\x0c" + v4Addresses} {
		for n := range len(whole) {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, err := ReadProxyHeader(strings.NewReader(whole[:n])); err != want {
				t.Errorf("cut after %d bytes: %v, want %v", n, err, want)
			}
		}
	}
}

// The hints of a header are kept, and no other field.
func TestHintsOfProxyHeader(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"none", v2TCP4 + "\x00\x0c" + v4Addresses, ""},
		{"one", v2TCP4 + "\x00\x19" + v4Addresses + "\xe4\x00\x0aattempts=1", "attempts=1"},
		{"an empty one", v2TCP4 + "\x00\x0f" + v4Addresses + "\xe4\x00\x00", ""},
		{"behind another", v2TCP4 + "\x00\x19" + v4Addresses + "\x04\x00\x01x" + "\xe4\x00\x06tag=ab", "tag=ab"},
		{"another only", v2TCP4 + "\x00\x15" + v4Addresses + "\xe5\x00\x06tag=ab", ""},
		{"two", v2TCP4 + "\x00\x1e" + v4Addresses + "\xe4\x00\x06tag=ab" + "\xe4\x00\x06tag=cd", "tag=ab,tag=cd"},
		{"of a client on a unix socket", v2Signature + "\x21\x31\x00\xe1" + strings.Repeat("x", 216) + "\xe4\x00\x06tag=ab", "tag=ab"},
		{"of the proxy itself", v2Signature + "\x20\x11\x00\x15" + v4Addresses + "\xe4\x00\x06tag=ab", ""},
		{"cut", v2TCP4 + "\x00\x15" + v4Addresses + "\xe4\x00\x07tag=ab", ""},
	} {
		h, err := ReadProxyHeader(strings.NewReader(tt.text + "rest"))
		if err != nil || h.hints != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, h.hints, err, tt.want)
		}
	}
}

// What the reader takes is a header and nothing else, and says what the library
// reads in it.
func FuzzReadProxyHeader(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\nrest", "PROXY UNKNOWN\r\n", v2TCP4 + "\x00\x0c" + v4Addresses + "rest", v2Local + "\x00\x00",
		v2TCP6 + "\x00\x24" + strings.Repeat("\x00", 36), v2Signature + "\x21\x31\x00\xd8" + strings.Repeat("x", 216), "PROXY \xff\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := ReadProxyHeader(r)
		used := len(b) - r.Len()
		if used > proxyV2Fixed+proxyV2Max {
			t.Errorf("%d bytes read", used)
		}
		if err != nil {
			return
		}
		again, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b[:used])))
		if err != nil {
			t.Fatalf("the library: %v", err)
		}
		if source, _, ok := again.TCPAddrs(); h.Source.IsValid() && (!ok || unmapped(source) != h.Source) {
			t.Errorf("the library reads %v, we %v", source, h)
		}
	})
}

func TestFormatProxyHeader(t *testing.T) {
	four := Origin{Source: netip.MustParseAddrPort("1.2.3.4:51200"), Destination: netip.MustParseAddrPort("10.0.0.7:5432")}
	mixed := Origin{Source: netip.MustParseAddrPort("[2001:db8::1]:51200"), Destination: four.Destination}
	for _, tt := range []struct {
		origin *Origin
		v1, v2 string
	}{
		{nil, "PROXY UNKNOWN\r\n", hex.EncodeToString([]byte(v2Local + "\x00\x00"))},
		{&Origin{}, "PROXY UNKNOWN\r\n", hex.EncodeToString([]byte(v2Local + "\x00\x00"))},
		{&four, "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n", hex.EncodeToString([]byte(v2TCP4 + "\x00\x0c" + v4Addresses))},
		{&mixed, "PROXY TCP6 2001:db8::1 ::ffff:10.0.0.7 51200 5432\r\n",
			hex.EncodeToString([]byte(v2TCP6+"\x00\x24")) + "20010db8000000000000000000000001" + "00000000000000000000ffff0a000007" + "c8001538"},
	} {
		v1, err1 := tt.origin.Format(1)
		v2, err2 := tt.origin.Format(2)
		if err1 != nil || err2 != nil || string(v1) != tt.v1 || hex.EncodeToString(v2) != tt.v2 {
			t.Errorf("%+v:\n%q, %v\n%x, %v", tt.origin, v1, err1, v2, err2)
		}
	}
}
