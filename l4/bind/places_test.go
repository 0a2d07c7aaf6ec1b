package bind

import (
	"net"
	"net/netip"
	"testing"
)

func TestReaches(t *testing.T) {
	for _, c := range []struct {
		to, at string
		want   bool
	}{
		{"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:2", "127.0.0.1:1", false},
		{"127.0.0.2:1", "127.0.0.1:1", false},
		{"127.0.0.2:1", "0.0.0.0:1", true},
		{"[::1]:1", "[::]:1", true},
		{"127.0.0.1:1", "[::]:1", true},
		{"0.0.0.0:1", "127.0.0.1:1", true},
		{"[::]:1", "[::1]:1", true},
		{"203.0.113.9:1", "0.0.0.0:1", false},
		{"[::1]:1", "0.0.0.0:1", false},
		{"[::]:1", "0.0.0.0:1", false},
	} {
		if got := Reaches(netip.MustParseAddrPort(c.to), netip.MustParseAddrPort(c.at)); got != c.want {
			t.Errorf("to %s, bound to %s: %v", c.to, c.at, got)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		ip, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if to := netip.AddrPortFrom(ip.Unmap(), 1); !Reaches(to, netip.MustParseAddrPort("[::]:1")) {
			t.Errorf("%s is ours", to)
		}
	}
}
