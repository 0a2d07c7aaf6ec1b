package l4

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"ambassador/l4/peer"
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
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	got, want := peer.Source(accepted), policy.SourceOfUser(uint32(os.Getuid()))
	if _, public := peer.UID(accepted); !public {
		want = policy.Source{}
	}
	if got != want {
		t.Errorf("source %+v, want %+v", got, want)
	}
}

// sourceAt is the source of an address.
func sourceAt(addr string) policy.Source { return policy.SourceOf(netip.MustParseAddr(addr)) }
