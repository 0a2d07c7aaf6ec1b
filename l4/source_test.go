package l4

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"ambassador/policy"
)

// The source of a unix socket's client is the user of its process, on systems that
// report it.
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
	got, want := sourceOf(peer), policy.SourceOfUser(uint32(os.Getuid()))
	if _, told := peerUID(peer); !told {
		want = policy.Source{}
	}
	if got != want {
		t.Errorf("source %+v, want %+v", got, want)
	}
}

// sourceAt is the source of an address.
func sourceAt(addr string) policy.Source { return policy.SourceOf(netip.MustParseAddr(addr)) }
