package l4

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/relay"
)

// The original destination of redirected clients, for sockets of both kinds, and of a
// client that was not redirected.
func TestOriginalDestination(t *testing.T) {
	l4test.InNamespace(t)
	e := relay.New()
	defer e.Close()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	accepts, err := e.Listen(ln, &netconn.KeepAlive)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go accepts.Serve(func(c net.Conn) { accepted <- c }) //nolint:errcheck // ends with Close
	defer accepts.Close()
	l4test.Nft(t, fmt.Sprintf(`table inet ambassador {
	chain out { type nat hook output priority -100;
		ip daddr 203.0.113.7 tcp dport 443 redirect to :%d
		ip6 daddr 2001:db8::7 tcp dport 443 redirect to :%d
	}
	}`, port, port))
	for _, to := range []string{"203.0.113.7:443", "[2001:db8::7]:443", fmt.Sprint("127.0.0.1:", port), fmt.Sprintf("[::1]:%d", port)} {
		client, err := net.DialTimeout("tcp", to, 10*time.Second)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		defer client.Close()
		conn := <-accepted
		defer conn.Close()
		for _, kind := range []string{"a socket in no poller", "a socket in Go's"} {
			got, err := netconn.OriginalDestination(conn)
			redirected := strings.HasSuffix(to, ":443")
			if redirected && (err != nil || got != netip.MustParseAddrPort(to)) || !redirected && err == nil && got.String() != to {
				t.Errorf("%s, %s: %v, %v", to, kind, got, err)
			}
			t.Logf("%s, %s: %v, %v", to, kind, got, err)
			relay.TCP(conn)
		}
	}
}

func TestOriginalDestinationOfAUnixSocket(t *testing.T) {
	near, far := l4test.UnixPair(t)
	defer far.Close()
	if _, err := netconn.OriginalDestination(near); err == nil || !strings.Contains(err.Error(), "needs a TCP listener") {
		t.Errorf("%v", err)
	}
}
