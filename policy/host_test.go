package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	longest := strings.Join([]string{long, long, long, long[:61]}, ".")
	for _, tt := range []struct{ in, host, addr string }{
		{"db.internal", "db.internal", ""},
		{"DB.Internal.", "db.internal", ""},
		{"localhost", "localhost", ""},
		{"_sip._tcp.example.com", "_sip._tcp.example.com", ""},
		{"r3---sn-apo3qvuoxuxbt-j5pe.example", "r3---sn-apo3qvuoxuxbt-j5pe.example", ""},
		{"my_host", "my_host", ""},
		{"a-.example", "a-.example", ""},
		{"bücher-.example", "xn--bcher--3ya.example", ""},
		{"a-", "a-", ""},
		{"127.0.0.1.example", "127.0.0.1.example", ""},
		{"1a", "1a", ""},
		{"0xg", "0xg", ""},
		{"bücher.example", "xn--bcher-kva.example", ""},
		{"BÜCHER.example", "xn--bcher-kva.example", ""},
		{"bücher。example。", "xn--bcher-kva.example", ""},
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example", ""},
		{"faß.de", "xn--fa-hia.de", ""},
		{"ｄｂ.internal", "db.internal", ""},
		{"_x.bücher.example", "_x.xn--bcher-kva.example", ""},
		{longest, longest, ""},
		{longest + ".", longest, ""},
		{"10.0.0.1", "", "10.0.0.1"},
		{"0.0.0.0", "", "0.0.0.0"},
		{"::1", "", "::1"},
		{"[::1]", "", "::1"},
		{"[2001:DB8::A]", "", "2001:db8::a"},
		{"::ffff:10.0.0.1", "", "10.0.0.1"},
		{"[::ffff:a00:1]", "", "10.0.0.1"},
		{"64:ff9b::10.0.0.1", "", "64:ff9b::a00:1"},
	} {
		host, addr, err := ParseHost(tt.in)
		if want, _ := netip.ParseAddr(tt.addr); err != nil || host != tt.host || addr != want {
			t.Errorf("ParseHost(%q) = %q, %v, %v; want %q, %q", tt.in, host, addr, err, tt.host, tt.addr)
		}
	}
}

func TestParseHostRefuses(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tt := range []struct{ in, why string }{
		{"", "empty"},
		{".", "empty"},
		{"..", "empty label"},
		{"a..b", "empty label"},
		{".a", "empty label"},
		{"a..", "empty label"},
		{"-a.example", "dash"},
		{"a b", `' '`},
		{" a", `' '`},
		{"a\r\nb", `'\r'`},
		{"a\x00", `'\x00'`},
		{"a\x7f", `'\x7f'`},
		{"a/b", `'/'`},
		{"a@b", `'@'`},
		{"*.example.com", `'*'`},
		{"a%00b", `'%'`},
		{long + "a.example", "at most 63"},
		{strings.Join([]string{long, long, long, long}, "."), "at most 253"},
		{strings.Repeat("ü", 600), "1200 bytes"},
		{"ü\xff", "not UTF-8"},
		{"a\xff", "not UTF-8"},
		{"ü\x00", `'\x00'`},
		{"ü\u202e", "A-label"},
		{"xn--a-ecp.ü", "A-label"}, // not in normal form C
		{"127.1", "four decimal numbers"},
		{"0x7f.1", "four decimal numbers"},
		{"0x7f.0.0.0x1", "four decimal numbers"},
		{"127.0.0.0X", "four decimal numbers"},
		{"2130706433", "four decimal numbers"},
		{"0177.0.0.1", "four decimal numbers"},
		{"127.0.0.01", "four decimal numbers"},
		{"127.0.0.1.", "four decimal numbers"},
		{"256.0.0.1", "four decimal numbers"},
		{"１２７.0.0.1", "four decimal numbers"},
		{"127。0。0。1", "four decimal numbers"},
		{"example.1", "four decimal numbers"},
		{"[10.0.0.1]", "write 10.0.0.1"},
		{"[::1", "closing bracket"},
		{"[::1]:80", "closing bracket"},
		{"[a.example]", "not an IPv6 address"},
		{"[[::1]]", "not an IPv6 address"},
		{"a.example:80", "the port apart"},
		{"::g", "not an IPv6 address"},
		{"fe80::1%eth0", "write fe80::1"},
		{"[fe80::1%25eth0]", "write fe80::1"},
		{"::ffff:10.0.0.1%1", "write ::ffff:10.0.0.1"},
	} {
		host, addr, err := ParseHost(tt.in)
		if err == nil || host != "" || addr.IsValid() || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("ParseHost(%q) = %q, %v, %v; want an error with %q", tt.in, host, addr, err, tt.why)
		}
	}
}

// TestParseHostDoesNotAllocate: it is called for every SOCKS request.
func TestParseHostDoesNotAllocate(t *testing.T) {
	for _, in := range []string{"db.internal", "db.internal.", "10.0.0.1", "2001:db8::1", "[2001:db8::1]"} {
		if n := testing.AllocsPerRun(100, func() { ParseHost(in) }); n != 0 {
			t.Errorf("ParseHost(%q) allocates %v times", in, n)
		}
	}
}

func TestParseHostPattern(t *testing.T) {
	for _, tt := range []struct{ in, want, why string }{
		{"api.example.com", "api.example.com", ""},
		{"API.Example.com.", "api.example.com", ""},
		{"*.Bücher.example", "*.xn--bcher-kva.example", ""},
		{"*.com", "*.com", ""},
		{"*", "", "leave the key out"},
		{"*.", "", "empty"},
		{"*.*.example", "", "write *.example.com"},
		{"a.*.example", "", "write *.example.com"},
		{"*a.example", "", "write *.example.com"},
		{"10.0.0.1", "", "write ip: [10.0.0.1/32]"},
		{"*.10.0.0.1", "", "write ip: [10.0.0.1/32]"},
		{"::1", "", "write ip: [::1/128]"},
		{"127.1", "", "four decimal numbers"},
	} {
		got, err := ParseHostPattern(tt.in)
		if got != tt.want || (err == nil) != (tt.why == "") || err != nil && !strings.Contains(err.Error(), tt.why) {
			t.Errorf("ParseHostPattern(%q) = %q, %v; want %q, %q", tt.in, got, err, tt.want, tt.why)
		}
	}
}

func TestIsAbsolute(t *testing.T) {
	for name, want := range map[string]bool{"db.internal": false, "db.internal.": true, "db.": true, "bücher.example": false, "bücher.example。": true, "a．": true, "a｡": true, "": false} {
		if got := IsAbsolute(name); got != want {
			t.Errorf("IsAbsolute(%q) = %v", name, got)
		}
	}
}

// FuzzParseHost asserts that every accepted host is canonical.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"db.internal.", "10.0.0.1", "[::1]", "fe80::1%eth0", "bücher。example", "127.1", "0x7f.1", "xn--bcher-kva", "１２７.1", "a\x00", "ß", "ﷺ.example", "Xn--0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, addr, err := ParseHost(s)
		if err != nil {
			if host != "" || addr.IsValid() {
				t.Errorf("%q: %q, %v and an error", s, host, addr)
			}
			return
		}
		if addr.IsValid() == (host != "") || addr.Zone() != "" || addr.Is4In6() {
			t.Fatalf("%q: %q, %v", s, host, addr)
		}
		checkCanonical(t, host)
		if host != "" {
			mapped, err := s, error(nil) // names in ASCII are used as they are, A-labels included
			if !isASCII(s) {
				mapped, err = lookup.ToASCII(s)
			}
			if err != nil || IsAbsolute(s) != strings.HasSuffix(mapped, ".") {
				t.Errorf("%q: absolute %v, mapped to %q, %v", s, IsAbsolute(s), mapped, err)
			}
		}
		again := host
		if addr.IsValid() {
			again = addr.String()
		}
		if host2, addr2, err := ParseHost(again); err != nil || host2 != host || addr2 != addr {
			t.Errorf("%q is %q, which is %q, %v, %v", s, again, host2, addr2, err)
		}
	})
}

func checkCanonical(t *testing.T, host string) {
	t.Helper()
	if host == "" {
		return
	}
	if len(host) > 253 || strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		t.Errorf("%q is not canonical", host)
	}
	var last string
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 {
			t.Errorf("%q has the label %q", host, label)
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		t.Errorf("%q ends in a number", host)
	}
}
