package preface

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
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
		{"v2 with much", v2TCP4 + "\xff\xff" + v4Addresses + "\xea\xff\xf0" + strings.Repeat("x", 0xfff0), "1.2.3.4:51200", ""},
		{"v2 local with much", v2Signature + "\x20\x11\x20\x00" + strings.Repeat("x", 0x2000), "-", ""},
		{"v2 with a checksum", withCRC("1.2.3.4"), "1.2.3.4:51200", ""},
		{"v2 with a wrong checksum", strings.Replace(withCRC("1.2.3.4"), "\x01\x02", "\x01\x03", 1), "", "checksum (CRC32C) does not match"},
		{"v2 with half a checksum", v2TCP4 + "\x00\x11" + v4Addresses + "\x03\x00\x02xx", "", "checksum (CRC32C) does not match"},
		{"v1 of nginx behind an IPv6 balancer", "PROXY TCP6 2001:db8::1 10.0.0.7 51200 5432\r\n", "[2001:db8::1]:51200", ""},
		{"v1 of nginx on IPv6 behind an IPv4 balancer", "PROXY TCP4 1.2.3.4 2001:db8::2 51200 5432\r\n", "1.2.3.4:51200", ""},
		{"v1 of IPv4 as IPv6", "PROXY TCP6 1.2.3.4 2001:db8::2 51200 5432\r\n", "1.2.3.4:51200", ""},
		{"v1 with a zone", "PROXY TCP6 fe80::1%eth0 10.0.0.7 51200 5432\r\n", "", "invalid address"},
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

// withCRC is a header of version 2 with a checksum, as another implementation makes it.
func withCRC(source string) string {
	h := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.ParseIP(source), Port: 51200}, &net.TCPAddr{IP: net.ParseIP("10.0.0.7"), Port: 5432})
	h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte("db.test")}, {Type: proxyproto.PP2_TYPE_CRC32C, Value: make([]byte, 4)}})
	text, _ := h.Format()
	binary.BigEndian.PutUint32(text[len(text)-4:], crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)))
	return string(text)
}

// Where the header is optional, what a client without one has sent is not lost.
func TestReadOptionalProxyHeader(t *testing.T) {
	const v1 = "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n"
	for _, tt := range []struct {
		text, client, rest string
		end                error // before or inside the signature
	}{
		{v1 + "hello", "1.2.3.4:51200", "hello", nil},
		{v2TCP4 + "\x00\x0c" + v4Addresses + "hello", "1.2.3.4:51200", "hello", nil},
		{v2Local + "\x00\x00hello", "", "hello", nil},
		{"hello", "", "hello", nil},
		{"PROPFIND / HTTP/1.1\r\n", "", "PROPFIND / HTTP/1.1\r\n", nil},
		{"\r\n\r\n\x00\r\nhello", "", "\r\n\r\n\x00\r\nhello", nil},
		{"PRO", "", "PRO", io.EOF},
		{"", "", "", io.EOF},
	} {
		for how, reader := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "in bytes": iotest.OneByteReader} {
			r := strings.NewReader(tt.text)
			h, early, err := ReadOptionalProxyHeader(reader(r))
			rest, _ := io.ReadAll(r)
			if got := string(early) + string(rest); err != tt.end || got != tt.rest || tt.client != "" && h.Source.String() != tt.client || tt.client == "" && h != (ProxyHeader{}) {
				t.Errorf("%q %s: %+v, %q, %v", tt.text, how, h, got, err)
			}
		}
	}
	if _, _, err := ReadOptionalProxyHeader(strings.NewReader(v1[:20])); err != io.ErrUnexpectedEOF {
		t.Errorf("half a header: %v", err)
	}
}

// The fields of a header that concern the client go on to the upstream, in a header of
// version 2. Its checksum, its padding and the hints do not.
func TestFieldsArePassedOn(t *testing.T) {
	field := func(kind proxyproto.PP2Type, value string) proxyproto.TLV {
		return proxyproto.TLV{Type: kind, Value: []byte(value)}
	}
	ssl, err := tlvparse.PP2SSL{Client: tlvparse.PP2_BITFIELD_CLIENT_SSL, TLV: []proxyproto.TLV{field(proxyproto.PP2_SUBTYPE_SSL_VERSION, "TLSv1.1")}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	big := field(0xea, strings.Repeat("x", 40000))
	name, id := field(proxyproto.PP2_TYPE_AUTHORITY, "db.test"), field(proxyproto.PP2_TYPE_UNIQUE_ID, "42")
	h := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.ParseIP("1.2.3.4"), Port: 51200}, &net.TCPAddr{IP: net.ParseIP("10.0.0.7"), Port: 5432})
	h.SetTLVs([]proxyproto.TLV{name, ssl, field(proxyproto.PP2_TYPE_NOOP, "pad"), field(hintsTLV, "attempts=1"), id, big})
	text, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadProxyHeader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		tls  *tls.ConnectionState
		want []proxyproto.TLV
	}{
		{nil, []proxyproto.TLV{name, ssl, id, big}},
		{&tls.ConnectionState{Version: tls.VersionTLS13}, []proxyproto.TLV{name, id, big}},
	} {
		o := &Origin{Source: got.Source, Destination: got.Destination, Fields: got.Fields(), TLS: tt.tls}
		if tt.tls != nil {
			own, err := o.ssl().Marshal()
			if err != nil {
				t.Fatal(err)
			}
			tt.want = append(tt.want, own)
		}
		text, err := o.Format(2)
		if err != nil {
			t.Fatal(err)
		}
		sent, err := proxyproto.SplitTLVs(text[16+12:])
		if diff := cmp.Diff(tt.want, sent); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		if line, err := o.Format(1); err != nil || string(line) != "PROXY TCP4 1.2.3.4 10.0.0.7 51200 5432\r\n" {
			t.Errorf("version 1: %q, %v", line, err)
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
		v2TCP6 + "\x00\x24" + strings.Repeat("\x00", 36), v2Signature + "\x21\x31\x00\xd8" + strings.Repeat("x", 216), "PROXY \xff\r\n",
		"PROXY TCP6 2001:db8::1 10.0.0.7 51200 5432\r\n", withCRC("1.2.3.4"), v2TCP4 + "\x20\x00" + v4Addresses + "\xea\x1f\xf1" + strings.Repeat("x", 0x1ff1)} {
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
		whole := b[:used]
		if whole[0] == 'P' {
			whole = sameFamily(whole)
		}
		if len(whole) > proxyV2Fixed+int(proxyproto.MaxV2HeaderSize) {
			return // more than the library reads
		}
		again, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(whole)))
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
