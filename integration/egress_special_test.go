package integration

import (
	"fmt"
	"net"
	"testing"
)

// specials are addresses that no rule opens by allowing everything, as SOCKS5 sends
// them: addresses, and what is sent as a name ("=").
var specials = []string{
	"127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "0.1.2.3",
	"10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.255.255",
	"100.64.0.1", "100.127.255.254", "100.100.100.200",
	"169.254.1.1", "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16",
	"192.0.0.1", "192.0.0.192", "192.0.2.1", "198.51.100.7", "203.0.113.9", "192.88.99.1", "198.18.0.1", "198.19.255.255",
	"224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
	"[::]", "[::1]", "[fe80::1]", "[fe80::a9fe:a9fe]", "[febf::1]", "[fec0::1]",
	"[fc00::1]", "[fd00::1]", "[fd00:ec2::254]", "[fd20:ce::254]", "[ff02::1]", "[ff0e::1]",
	"[2001:db8::1]", "[2001::1]", "[2001:2::1]", "[3fff::1]", "[100::1]", "[5f00::1]", "[4000::1]",
	// IPv4 in disguise: mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP.
	"[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[::ffff:0.0.0.0]",
	"[::127.0.0.1]", "[::10.0.0.1]", "[::ffff:0:127.0.0.1]", "[::ffff:0:169.254.169.254]",
	"[64:ff9b::127.0.0.1]", "[64:ff9b::10.0.0.1]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::1]",
	"[2002:7f00:1::]", "[2002:a00:1::1]", "[2002:a9fe:a9fe::]", "[2002:c0a8:1::1]",
	"[2001:0:7f00:1::80ff:fffe]", "[2600::5efe:127.0.0.1]", "[2600::200:5efe:10.0.0.1]",
	// Sent as names.
	"=127.0.0.1", "=10.0.0.1", "=169.254.169.254", "=[::1]", "=::1", "=::ffff:127.0.0.1", "=[64:ff9b::7f00:1]",
}

// notAddresses are names that some resolvers take for addresses, and what else is no
// name. They are refused before any rule is asked.
var notAddresses = []string{
	"=127.1", "=127.0.1", "=2130706433", "=0x7f000001", "=0x7f.1", "=0177.0.0.1", "=017700000001", "=127.0.0.01", "=1.2.3.4.5", "=127.0.0.1.",
	"=[::1%lo]", "=fe80::1%1", "=[127.0.0.1]", "=[::1", "=", "=.", "=a b", "=a\x00b", "=a\r\nb", "=localhost:1@x", "=-", "=a..b",
}

// TestSpecialAddresses proves that a rule that allows everything does not allow this
// host, its networks and their metadata services, however they are written; and that
// each refusal has its record.
func TestSpecialAddresses(t *testing.T) {
	t.Parallel()
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  internet: {dynamic: true, connect: {timeout: 2s}}
listeners:
  wide: {listen: "127.0.0.1:0", socks5: {}, rules: [{upstream: internet}]}
`))
	for _, host := range specials {
		if rec := a.refusal("wide", "", host+":9", socksNotAllowed, "special_address"); rec.Rule != "#1" || rec.Destination == "" {
			t.Errorf("%s: the record has rule %q, destination %q", host, rec.Rule, rec.Destination)
		}
	}
	for _, host := range notAddresses {
		a.refusal("wide", "", host+":9", socksFailed, "bad_greeting")
	}
	a.metric("ambassador_sessions_total{upstream=internet,reason=special_address}", float64(len(specials)))
	t.Logf("%d special addresses and %d that are none", len(specials), len(notAddresses))
}

// TestOpened proves which rules open special addresses: localhost by its name, a
// private address by a whole name that resolves to it or by a range inside, and
// nothing else.
func TestOpened(t *testing.T) {
	t.Parallel()
	inNamespace(t)
	private, local := serverAt(t, privateIPv4+":7000", echoLines), serverAt(t, "127.0.0.1:7000", echoLines)
	z := startZone(t, func(q question) answer {
		switch q.name {
		case "db.internal.test", "other.internal.test":
			return answer{addrs: []string{privateIPv4}}
		}
		return answer{addrs: []string{"127.0.0.1"}}
	})
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
upstreams:
  internet: {dynamic: true, connect: {timeout: 2s}}
listeners:
  hosts: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: [localhost, db.internal.test, here.internal.test, "*.internal.test"], upstream: internet}]}
  ranges: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: [10.213.0.0/16], upstream: internet}, {ip: [0.0.0.0/0, "::/0"], upstream: internet}]}
`, z.addr)))
	a.reaches("hosts", "", "localhost:7000")
	a.reaches("hosts", "", "db.internal.test:7000")
	a.refusal("hosts", "", "other.internal.test:7000", socksNotAllowed, "special_address") // by *. only
	a.refusal("hosts", "", "here.internal.test:7000", socksNotAllowed, "special_address")
	a.refusal("hosts", "", "127.0.0.1:7000", socksNotAllowed, "no_route")
	a.reaches("ranges", "", privateIPv4+":7000")
	a.reaches("ranges", "", "[::ffff:"+privateIPv4+"]:7000")
	a.reaches("ranges", "", "other.internal.test:7000")
	a.refusal("ranges", "", "[64:ff9b::"+privateIPv4+"]:7000", socksNotAllowed, "special_address")
	a.refusal("ranges", "", "127.0.0.1:7000", socksNotAllowed, "special_address")
	a.refusal("ranges", "", "here.internal.test:7000", socksNotAllowed, "special_address")
	if err := private.received("hello other.internal.test", patience); err != nil {
		t.Error(err)
	}
	if seen, want := local.reports(), "line: hello localhost:7000"; seen != want {
		t.Errorf("loopback saw %q, want %q", seen, want)
	}
}

// TestLoops proves that no rule leads a session back to us: to a listener, the admin
// API or the metrics, by any of their addresses or names.
func TestLoops(t *testing.T) {
	t.Parallel()
	inNamespace(t)
	z := startZone(t, func(q question) answer {
		if q.name == "all.test" {
			return answer{addrs: []string{"0.0.0.0"}}
		}
		return answer{addrs: []string{"127.0.0.1"}}
	})
	neighbour := serverAt(t, "127.0.0.1:7000", echoLines)
	token := writeFile(t, "token", "0123456789abcdef0123456789abcdef")
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
dns: {servers: ["%s"]}
admin: {listen: 127.0.0.1:7901, token_file: %s}
metrics: {listen: 127.0.0.1:7902}
upstreams:
  internet: {dynamic: true, connect: {timeout: 2s}}
listeners:
  socks: &socks
    listen: 127.0.0.1:7903
    socks5: {}
    rules: [{ip: [127.0.0.0/8, "::1/128", 0.0.0.0/32, "::/128", 10.213.7.1/32, "fd00:213::1/128"], upstream: internet}]
  wide: {listen: 0.0.0.0:7904, unsafe_plaintext_listen: true, socks5: {}, rules: [{upstream: internet}]}
`, z.addr, token)))
	a.reaches("socks", "", "127.0.0.1:7000")
	for _, port := range []string{"7901", "7902", "7903"} {
		for _, host := range []string{"127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "=127.0.0.1", "here.test", "all.test"} {
			a.refusal("socks", "", host+":"+port, socksNotAllowed, "loop")
		}
	}
	for _, host := range []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", privateIPv4, "[::ffff:" + privateIPv4 + "]", "here.test", "all.test"} {
		a.refusal("socks", "", host+":7904", socksNotAllowed, "loop")
	}
	if seen, want := neighbour.reports(), "line: hello "+net.JoinHostPort("127.0.0.1", "7000"); seen != want {
		t.Errorf("the neighbour saw %q, want %q", seen, want)
	}
}
