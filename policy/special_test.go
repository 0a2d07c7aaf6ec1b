package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// TestSpecial is the specification: the edges of each range, and its IPv6 forms.
func TestSpecial(t *testing.T) {
	for _, tt := range []struct {
		want  Range
		addrs string
	}{
		{"", "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0"},
		{"", "172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.17"},
		{"", "2000:: 2001:200:: 2001:4860:4860::8888 2606:4700::1111 3fff:1000:: 2001:db7:ffff::"},
		{RangeLoopback, "127.0.0.0 127.0.0.1 127.1.2.3 127.255.255.255 ::1"},
		{RangePrivate, "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255"},
		{RangeUniqueLocal, "fc00:: fd12:3456::1 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fd00:ec2::253"},
		{RangeCGNAT, "100.64.0.0 100.100.100.199 100.127.255.255"},
		{RangeLinkLocal, "169.254.0.0 169.254.169.253 169.254.255.255 fe80:: fe80::1 fe80::1%eth0 febf:ffff::1 fe80::5efe:8.8.8.8"},
		{RangeMetadata, "169.254.169.254 169.254.170.2 169.254.170.23 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 100.100.100.200"},
		{RangeMetadata, "168.63.129.16 192.0.0.192 169.254.42.42 fd00:42::42 fe80::a9fe:a9fe fe80::a9fe:a9fe%eth0 100.96.0.96"},
		{RangeMulticast, "224.0.0.0 224.0.0.1 239.255.255.255 ff00:: ff02::1"},
		{RangeUnspecified, "0.0.0.0 ::"},
		{RangeBroadcast, "255.255.255.255"},
		{RangeDocumentation, "192.0.2.1 198.51.100.255 203.0.113.0 233.252.0.1 2001:db8:: 2001:db8:ffff::1 3fff:: 3fff:fff::1"},
		{RangeBenchmarking, "198.18.0.0 198.19.255.255 2001:2::1"},
		{RangeReserved, "0.0.0.1 0.255.255.255 192.0.0.0 192.0.0.170 192.31.196.1 192.52.193.1 192.88.99.1 192.175.48.1 240.0.0.0 255.255.255.254"},
		{RangeReserved, "2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:1::1 2001:10::1 2001:20::1 2001:1ff:ffff::1 2620:4f:8000::1"},
		{RangeReserved, "100::1 100:0:0:1::1 200::1 400::1 800::1 1000::1 4000::1 5f00::1 6000::1 8000::1 a000::1 c000::1 e000::1 f000::1 f800::1 fe00::1 fec0::1 feff::1"},

		// IPv4-mapped: the IPv4 address.
		{"", "::ffff:8.8.8.8"},
		{RangeLoopback, "::ffff:127.0.0.1"},
		{RangeMetadata, "::ffff:169.254.169.254 ::ffff:a9fe:a9fe"},
		{RangeReserved, "::ffff:0.1.2.3"},
		// IPv4-compatible and IPv4-translated: not routed, whatever they hold.
		{RangeReserved, "::127.0.0.1 ::8.8.8.8 ::10.0.0.1 ::2 ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8"},
		// NAT64: what the address inside is; the local prefix hides it.
		{"", "64:ff9b::8.8.8.8"},
		{RangePrivate, "64:ff9b::10.0.0.1 64:ff9b::192.168.1.1"},
		{RangeLoopback, "64:ff9b::127.0.0.1"},
		{RangeMetadata, "64:ff9b::169.254.169.254 64:ff9b::168.63.129.16"},
		{RangeUnspecified, "64:ff9b::"},
		{RangeReserved, "64:ff9b:1:: 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff::1 64:ff9b:2::1 64:ff9b::1:0:0"},
		// 6to4: likewise.
		{"", "2002:808:808::1 2002:0808:0808:ffff::1"},
		{RangePrivate, "2002:a00:1::1 2002:c0a8:101::"},
		{RangeLoopback, "2002:7f00:1::1"},
		{RangeMetadata, "2002:a9fe:a9fe::1"},
		// ISATAP: likewise, under any prefix that is not special itself.
		{"", "2606:4700::5efe:8.8.8.8 2606:4700::200:5efe:8.8.8.8 2606:4700::5efe:1:808:808"},
		{RangePrivate, "2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:10.0.0.1"},
		{RangeLoopback, "2606:4700:0:1:0:5efe:127.0.0.1"},
		{RangeUniqueLocal, "fd00::5efe:8.8.8.8"},
		{RangeReserved, "2001::5efe:8.8.8.8"},
	} {
		for s := range strings.FieldsSeq(tt.addrs) {
			if got := Special(netip.MustParseAddr(s)); got != tt.want {
				t.Errorf("Special(%s) = %q, want %q", s, got, tt.want)
			}
		}
	}
	if got := Special(netip.Addr{}); got != RangeReserved {
		t.Errorf("the invalid address is %q, want %q", got, RangeReserved)
	}
}

// TestBlocksOrder asserts that a block does not hide one that is narrower.
func TestBlocksOrder(t *testing.T) {
	for i, b := range blocks {
		if b.prefix != b.prefix.Masked() {
			t.Errorf("%s has bits beyond its length", b.prefix)
		}
		for _, later := range blocks[i+1:] {
			if b.holds(later.prefix) {
				t.Errorf("%s %s is hidden by %s %s", later.is, later.prefix, b.is, b.prefix)
			}
		}
	}
}

func FuzzSpecial(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::1", "2606::5efe:10.0.0.1", "::ffff:1.2.3.4", "2606::1"} {
		b := netip.MustParseAddr(s).As16()
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		found := narrowest(addr)
		if found.is == "" {
			if a := addr.Unmap(); a.IsLoopback() || a.IsPrivate() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
				t.Errorf("%s is nothing special", addr)
			}
			return
		}
		if p := found.prefix; p != p.Masked() || !p.Contains(addr.Unmap()) {
			t.Errorf("%s is not in its block %s", addr, p)
		}
	})
}
