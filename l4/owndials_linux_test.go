package l4

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// If a redirect also catches our own connections, the loop ends with the first one that
// it catches, or soon afterwards.
func TestARedirectOfOurOwnIsALoop(t *testing.T) {
	l4test.InNamespace(t)
	dials := make(chan func()) // run by the test's goroutine, which alone is in the namespace
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		done := make(chan struct{})
		select {
		case dials <- func() { conn, err = net.Dial(network, address); close(done) }:
			<-done
			return conn, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	cfg := egress(policy.Rule{IPs: []netip.Prefix{netip.MustParsePrefix("10.213.7.1/32")}, Upstream: "out"})
	cfg.Listeners[0].Request = RequestOriginal
	f := serve(t, Options{Dial: dial}, cfg)
	l4test.Nft(t, fmt.Sprintf(`table inet ambassador {
	chain out { type nat hook output priority -100; ip daddr 10.213.7.1 tcp dport 443 redirect to :%d; }
	}`, netip.MustParseAddrPort(f.Listening()[0].Addr).Port()))
	c, err := net.Dial("tcp", "10.213.7.1:443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const most = 200 // without loop detection, the process would use up its descriptors
	made, loops, client := 0, 0, ""
	for deadline := time.After(l4test.Bound); loops == 0 || client == ""; {
		select {
		case do := <-dials:
			do()
			if made++; made > most {
				t.Fatalf("%d connections for one client", made)
			}
		case r := <-f.records:
			if r.Reason == outcome.Loop {
				loops++
			}
			if r.Client == c.LocalAddr().String() {
				client = r.Destination
			}
		case <-deadline:
			t.Fatalf("%d connections, %d loops, the client's destination %q", made, loops, client)
		}
	}
	t.Logf("%d connections, %d loops", made, loops)
}
