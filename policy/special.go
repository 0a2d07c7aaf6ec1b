package policy

import (
	"net/netip"
	"slices"
)

// Range is a class of addresses that are not ordinary ones of the Internet. A
// dynamic upstream dials such an address only if a rule opens it; see
// Decision.May. Ordinary addresses have the empty Range.
type Range string

// The ranges. If several apply, the narrowest counts: 169.254.169.254 is metadata
// and not link_local.
const (
	RangeLoopback      Range = "loopback"
	RangePrivate       Range = "private"      // RFC 1918
	RangeUniqueLocal   Range = "unique_local" // RFC 4193, IPv6's private
	RangeCGNAT         Range = "cgnat"        // RFC 6598, carrier-grade NAT
	RangeLinkLocal     Range = "link_local"
	RangeMetadata      Range = "metadata" // of clouds, which serve credentials there
	RangeMulticast     Range = "multicast"
	RangeUnspecified   Range = "unspecified" // the local host on many systems
	RangeBroadcast     Range = "broadcast"
	RangeDocumentation Range = "documentation"
	RangeBenchmarking  Range = "benchmarking"
	RangeReserved      Range = "reserved" // everything else that is not Internet unicast, and the invalid address
)

// block is a range, or a part of one.
type block struct {
	prefix netip.Prefix
	is     Range
}

// blocks are IANA's special-purpose registries, the IPv6 address space outside of
// 2000::/3, and the addresses of metadata services. None lies inside an earlier
// one, so the first that contains an address is the narrowest.
//
// ::/8 contains the old forms of IPv4 addresses: IPv4-compatible (::/96) and
// SIIT's IPv4-translated (::ffff:0:0:0/96). They are not routed, so they stay
// reserved whatever IPv4 address they contain. So do 64:ff9b:1::/48, where the
// position of the IPv4 address is unknown, and Teredo, whose IPv4 part is that of
// a relay. AS112, AMT and the anycast addresses of 192.0.0.0/24 are not for our
// clients either, though some are reachable.
var blocks = slices.Concat(
	blocksOf(RangeMetadata,
		"169.254.169.254/32", "fd00:ec2::254/128", // most clouds; AWS
		"169.254.170.2/32", "169.254.170.23/32", "fd00:ec2::23/128", // AWS: ECS tasks, EKS pods
		"fd20:ce::254/128", "168.63.129.16/32", // Google; Azure's WireServer
		"fd00:c1::a9fe:a9fe/128", "192.0.0.192/32", // Oracle, and its Classic
		"100.100.100.200/32", "fd00:100::100:200/128", // Alibaba
		"169.254.0.23/32", "169.254.10.10/32", "100.96.0.96/32", // Tencent; Volcengine
		"169.254.42.42/32", "fd00:42::42/128", // Scaleway
		"fd00:a9fe:a9fe::1/128", "fe80::a9fe:a9fe/128"), // Linode; OpenStack
	blocksOf(RangeUnspecified, "0.0.0.0/32", "::/128"),
	blocksOf(RangeBroadcast, "255.255.255.255/32"),
	blocksOf(RangeLoopback, "127.0.0.0/8", "::1/128"),
	blocksOf(RangePrivate, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
	blocksOf(RangeUniqueLocal, "fc00::/7"),
	blocksOf(RangeCGNAT, "100.64.0.0/10"),
	blocksOf(RangeLinkLocal, "169.254.0.0/16", "fe80::/10"),
	blocksOf(RangeDocumentation,
		"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "233.252.0.0/24", "2001:db8::/32", "3fff::/20"),
	blocksOf(RangeBenchmarking, "198.18.0.0/15", "2001:2::/48"),
	blocksOf(RangeMulticast, "224.0.0.0/4", "ff00::/8"),
	blocksOf(RangeReserved,
		"0.0.0.0/8", "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "240.0.0.0/4",
		"64:ff9b:1::/48", "::/8", "100::/8", "200::/7", "400::/6", "800::/5", "1000::/4",
		"2001::/23", "2620:4f:8000::/48", // protocol assignments with Teredo and ORCHID; AS112
		"5f00::/16", "4000::/3", "6000::/3", "8000::/3", "a000::/3", "c000::/3", "e000::/4", // segment routing; unassigned
		"f000::/5", "f800::/6", "fe00::/9", "fec0::/10"), // the last is the old site-local
)

func blocksOf(is Range, prefixes ...string) []block {
	var all []block
	for _, p := range prefixes {
		all = append(all, block{netip.MustParsePrefix(p), is})
	}
	return all
}

// The IPv6 forms that reach an IPv4 address, and the bit at which they contain it.
var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixTo4 = netip.MustParsePrefix("2002::/16")    // RFC 3056
)

const (
	nat64At  = 96
	sixTo4At = 16
	isatapAt = 96
)

// Special returns the special range of an address; empty if the address is
// ordinary. IPv4-mapped addresses count as IPv4. NAT64 (64:ff9b::/96), 6to4 and
// ISATAP addresses have the range of the IPv4 address inside, and none if that is
// public: they reach nothing else. A NAT64 prefix of the local network cannot be
// known here. A zone is ignored.
func Special(addr netip.Addr) Range { return narrowest(addr).is }

// narrowest returns the narrowest block that contains the address; without a
// Range if there is none. For an IPv4 address inside an IPv6 one the block is
// converted: 64:ff9b::a00:0/104 for 10.0.0.0/8.
func narrowest(addr netip.Addr) block {
	addr = plain(addr)
	switch {
	case !addr.IsValid():
		return block{is: RangeReserved}
	case nat64.Contains(addr):
		return inside(addr, nat64At)
	case sixTo4.Contains(addr):
		return inside(addr, sixTo4At)
	}
	for _, b := range blocks {
		if b.prefix.Contains(addr) {
			return b
		}
	}
	if isISATAP(addr) {
		return inside(addr, isatapAt)
	}
	return block{}
}

// inside returns the block of the IPv4 address that an IPv6 one contains from a
// bit on.
func inside(addr netip.Addr, at int) block {
	b := addr.As16()
	found := narrowest(netip.AddrFrom4([4]byte(b[at/8:])))
	if found.is != "" {
		found.prefix = netip.PrefixFrom(addr, at+found.prefix.Bits()).Masked()
	}
	return found
}

// disguises returns the NAT64 and 6to4 prefixes of the addresses in an IPv4
// prefix.
func disguises(p netip.Prefix) []netip.Prefix {
	if !p.Addr().Is4() {
		return nil
	}
	four := p.Addr().As4()
	at := func(form netip.Prefix, bit int) netip.Prefix {
		b := form.Addr().As16()
		copy(b[bit/8:], four[:])
		return netip.PrefixFrom(netip.AddrFrom16(b), bit+p.Bits())
	}
	return []netip.Prefix{at(nat64, nat64At), at(sixTo4, sixTo4At)}
}

// isISATAP recognizes the interface identifier of RFC 5214, with any prefix.
func isISATAP(addr netip.Addr) bool {
	b := addr.As16()
	return addr.Is6() && b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// plain converts an IPv4-mapped address to IPv4 and removes the zone.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// holds reports whether a whole prefix lies inside the block.
func (b block) holds(p netip.Prefix) bool {
	return b.prefix.IsValid() && b.prefix.Bits() <= p.Bits() && b.prefix.Contains(p.Addr())
}
