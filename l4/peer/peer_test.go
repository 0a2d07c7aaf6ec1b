package peer

import (
	"fmt"
	"net"
	"testing"
)

// On a host with many interfaces, the one that a client's address names is tried, wherever
// it is in the list; without a name the number of questions to the kernel is bounded.
func TestCandidates(t *testing.T) {
	var all []net.Interface
	for i := range 10 * maxInterfaces {
		all = append(all, net.Interface{Index: 1000 + i, Name: fmt.Sprint("veth", i)})
	}
	last := all[len(all)-1]
	for _, zone := range []string{last.Name, fmt.Sprint(last.Index)} {
		if got := candidates(all, zone); len(got) != 1 || got[0].Index != last.Index {
			t.Errorf("zone %s: %v, want %v", zone, got, last)
		}
	}
	if got := candidates(all, "eth7"); len(got) != 0 {
		t.Errorf("an unknown zone: %v", got)
	}
	if got := candidates(all, ""); len(got) != maxInterfaces {
		t.Errorf("no zone: %d interfaces, want %d", len(got), maxInterfaces)
	}
	if got := candidates(all[:3], ""); len(got) != 3 {
		t.Errorf("%d of 3 interfaces", len(got))
	}
}
