package l4

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// The specification of what counts as one client.
func TestSources(t *testing.T) {
	for _, tt := range []struct {
		one, other string
		same       bool
	}{
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "10.0.0.2", false},
		{"10.0.0.1", "::ffff:10.0.0.1", true},
		{"::ffff:10.0.0.1", "::ffff:10.0.0.2", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%1", "fe80::2%2", true}, // a zone is no part of the network
		{"127.0.0.1", "::1", false},
		{"0.0.0.0", "::", false},
	} {
		if one, other := sourceAt(tt.one), sourceAt(tt.other); (one == other) != tt.same {
			t.Errorf("%s is %v, %s is %v; the same: want %v", tt.one, one, tt.other, other, tt.same)
		}
	}
	if got := SourceOf(netip.Addr{}); got != (Source{}) {
		t.Errorf("no address: %v", got)
	}
}

// The source of a unix socket's client is the user of its process, where the system
// tells it.
func TestSourceOfUnixClients(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	got, want := sourceOf(peer), Source{uid: uint32(os.Getuid()), local: true}
	if _, told := peerUID(peer); !told {
		want = Source{}
	}
	if got != want {
		t.Errorf("source %+v, want %+v", got, want)
	}
}
