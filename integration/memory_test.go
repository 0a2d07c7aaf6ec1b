package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// lean builds the binary as it is released: memory of one built with -race says
// nothing.
var lean = sync.OnceValues(func() (string, error) {
	if !on("AMBASSADOR_TEST_RACE") {
		return binary, nil
	}
	out := filepath.Join(scratch, "ambassador-lean")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "ambassador/cmd/ambassador")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
})

// startLean is start with the binary as it is released.
func startLean(t testing.TB, args ...string) *ambassador {
	t.Helper()
	path, err := lean()
	if err != nil {
		t.Fatal(err)
	}
	return startCmd(t, exec.Command(path, args...))
}

// watchResident samples the memory of the process until the function that it returns
// is called, which gives the largest, in KiB.
func (a *ambassador) watchResident() (stop func() int) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	most := make(chan int)
	go func() { // ends with stop
		var largest int
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if kib, err := residentKiB(a.process); err == nil {
				largest = max(largest, kib)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				most <- largest
				return
			}
		}
	}()
	return func() int { cancel(); return <-most }
}

// errHeldBack is the end of a handshake that its client does not finish.
var errHeldBack = errors.New("held back")

// unfinished passes a client's first flight, and of its second all but the end.
type unfinished struct {
	net.Conn
	flights int
}

func (c *unfinished) Write(b []byte) (int, error) {
	if c.flights++; c.flights == 1 {
		return c.Conn.Write(b)
	}
	c.Conn.Write(b[:len(b)-64])
	return 0, errHeldBack
}

// TestCrowdsHoldBoundedMemory proves that clients which begin something large and do
// not end it use, all together, no more memory than a small container has, and that a
// real client is served meanwhile.
func TestCrowdsHoldBoundedMemory(t *testing.T) {
	const most = 150 << 10 // KiB
	crowd := 700
	if long() {
		crowd = 4096
	}
	keys := newPKI(t)
	keys.name(t, "me", leaf{dns: []string{"me.test"}})
	up := startServer(t, nil, echo)
	config := writeFile(t, "a.yaml", fmt.Sprintf(`
log: {level: error}
identities: {me: {files: {cert: %[1]s/server.crt, key: %[1]s/server.key, ca: %[1]s/ca.crt}}}
upstreams:
  up: {endpoints: [%[2]q]}
  flood: {endpoints: [%[3]q]}
  out: {dynamic: true}
listeners:
  front: {listen: "127.0.0.1:0", upstream: up, timeouts: {handshake: 5m}, tls: {identity: me, principals: ["dns:me.test"]}}
  sni: {listen: "127.0.0.1:0", timeouts: {handshake: 5m}, sni: true, rules: [{sni: a.test, upstream: up}]}
  connect: {listen: "127.0.0.1:0", timeouts: {handshake: 5m}, http_connect: {}, rules: [{ip: 127.0.0.0/8, upstream: out}]}
  download: {listen: "127.0.0.1:0", upstream: flood}
  tlsdownload: {listen: "127.0.0.1:0", upstream: flood, tls: {identity: me, principals: ["dns:me.test"]}}
`, keys.dir, up.addr, startServer(t, nil, endless).addr))
	cfg := keys.caller(t, "me")
	me, err := cfg.GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	heavy := cfg.Clone()
	long := *me
	for size := 0; size < 95<<10; size += len(me.Certificate[0]) + 5 {
		long.Certificate = append(long.Certificate, me.Certificate[0])
	}
	heavy.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &long, nil }
	begun := "\x16\x03\x01\x40\x00\x01\x00\x7f\xf0" + strings.Repeat("x", 16<<10-4) + "\x16\x03\x01\x3f\x00" + strings.Repeat("x", 0x3e00)
	text := func(s string) func(net.Conn) error {
		return func(c net.Conn) error { _, err := io.WriteString(c, s); return err }
	}
	for _, tt := range []struct {
		listener string
		begin    func(net.Conn) error
		what     string
	}{
		{"front", text(begun), "ClientHellos of 32 KiB, not ended"},
		{"front", func(c net.Conn) error {
			if err := tls.Client(&unfinished{Conn: c}, heavy).Handshake(); !errors.Is(err, errHeldBack) && err != nil {
				return err
			}
			return nil
		}, "certificate lists of 95 KiB, not proved"},
		{"sni", text(begun), "ClientHellos for sni, not ended"},
		{"connect", text("CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\nCookie: " + strings.Repeat("x", 15<<10)), "CONNECT requests, not ended"},
		{"download", text("x"), "plain clients that do not read"},
		{"tlsdownload", func(c net.Conn) error { _, err := tls.Client(c, cfg).Write([]byte("x")); return err }, "TLS clients that do not read"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			a := startLean(t, "run", "-c", config)
			front, addr := a.addr("front"), a.addr(tt.listener)
			stop := a.watchResident()
			conns := crowdOf(t, addr, crowd, tt.begin, func(n int) {
				start := time.Now()
				if _, _, err := call(t, front, cfg); err != nil {
					t.Errorf("after %d clients: an honest one: %v", n, err)
				}
				if d := time.Since(start); d > patience/3 {
					t.Errorf("after %d clients: an honest one is served after %v", n, d)
				}
			})
			held, err := sample(a.process, "ambassador_held_bytes{}")
			refused, _ := sample(a.process, "ambassador_sessions_total{reason=limit}")
			kib := stop()
			t.Logf("%d clients, %s: at most %d MiB resident, %.0f MiB held (%v), %.0f ended by the limit", crowd, tt.what, kib>>10, held/(1<<20), err, refused)
			bound := most
			if tt.listener == "tlsdownload" {
				bound += 16 * crowd // these are connected, and a session with TLS costs 11 KiB by itself
			}
			if kib > bound {
				t.Errorf("%d KiB resident, want at most %d", kib, bound)
			}
			for _, c := range conns {
				c.Close()
			}
			if err := awaitMetric(a.process, "ambassador_held_bytes{}", 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// crowdOf starts n clients, eight at a time, and calls check at intervals.
func crowdOf(t *testing.T, addr string, n int, begin func(net.Conn) error, check func(int)) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	var all sync.WaitGroup
	places := make(chan struct{}, 8)
	for i := range n {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			c, err := dialTCP(addr)
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			conns[i] = c
			c.SetDeadline(time.Now().Add(patience))
			begin(c) // its end may be the limit's doing
			c.SetDeadline(time.Time{})
		})
		if i%(n/5) == n/5-1 {
			check(i + 1)
		}
	}
	all.Wait()
	for i, c := range conns {
		if c == nil {
			t.Fatalf("client %d is missing", i)
		}
	}
	return conns
}

// endless sends as long as its client reads.
func endless(_ *server, c duplex) {
	for b := make([]byte, 64<<10); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}
