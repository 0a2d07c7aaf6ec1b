package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestBreakerOfEachDestination proves that a dead destination opens only its own
// breaker, and that clients are told so, and when to try again.
func TestBreakerOfEachDestination(t *testing.T) {
	t.Parallel()
	live, dead := startServer(t, nil, echoLines), closedPort(t).addr
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", `
upstreams:
  internet: {dynamic: true, connect: {attempts: 1}, breaker: {failures: 3, open: 20s}}
listeners:
  socks: {listen: "127.0.0.1:0", socks5: {}, rules: [{ip: [127.0.0.0/8], upstream: internet}]}
`))
	for range 3 {
		a.refusal("socks", "", dead, socksRefused, "refused")
	}
	if rec := a.refusal("socks", "", dead, socksRefused, "breaker_open"); rec.RetryIn <= 0 || rec.RetryIn > 20 || rec.Attempts != 0 {
		t.Errorf("the record says retry_in %v after %d attempts", rec.RetryIn, rec.Attempts)
	}
	a.metric("ambassador_breakers{upstream=internet,endpoint=dynamic,state=open}", 1)
	a.reaches("socks", "", live.addr)
	a.refusal("socks", "", "127.0.0.2:"+hostPort(dead), socksRefused, "refused") // the same port elsewhere
}

// floodFile is a configuration of a SOCKS5 proxy to all of this host that logs no
// sessions: a flood's would be more than the test wants to hold.
const floodFile = `
log: {level: error}
upstreams:
  internet: {dynamic: true, connect: {attempts: 1}}
listeners:
  socks: {listen: "127.0.0.1:0", timeouts: {handshake: 3s}, socks5: {}, rules: [{ip: [127.0.0.0/8], upstream: internet}]}
`

// backTo waits until the process has released its memory, except for some MiB.
func (a *ambassador) backTo(before, mib int) {
	a.t.Helper()
	if on("AMBASSADOR_TEST_RACE") {
		return // the race detector's memory says nothing of ours
	}
	var now int
	err := eventually(patience, func() (err error) {
		now, err = ownKiB(a.process)
		if err == nil && now > before+mib<<10 {
			err = fmt.Errorf("%d KiB are resident, and %d KiB were before", now, before)
		}
		return err
	})
	a.t.Logf("resident before %d KiB, after %d KiB", before, now)
	if err != nil {
		a.t.Error(err)
	}
}

// TestManyDeadDestinations proves that the memory for the destinations that clients
// name is bounded, however many there are.
func TestManyDeadDestinations(t *testing.T) {
	t.Parallel()
	total := 10_000
	if long() {
		total = 100_000
	}
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", floodFile))
	addr := a.addr("socks")
	var next, refused atomic.Int64
	flood := func(until int64) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { // ends with the destinations
				for n := next.Add(1); n <= until; n = next.Add(1) {
					if err := oneDead(addr, n); err != nil {
						t.Errorf("destination %d: %v", n, err)
						return
					}
					refused.Add(1)
				}
			})
		}
		all.Wait()
		next.Store(until)
	}
	flood(200) // so that what every process needs is there
	before := a.quiet()
	began := time.Now()
	flood(200 + int64(total))
	t.Logf("%d destinations in %v", total, time.Since(began).Round(time.Millisecond))
	if n := refused.Load(); n != int64(total)+200 {
		t.Errorf("%d were refused, want %d", n, total+200)
	}
	a.metric("ambassador_sessions_total{upstream=internet,reason=refused}", float64(total)+200)
	a.backTo(before, 10)
}

// oneDead requests the nth of many destinations at which nothing listens. Port 9
// (discard) and those after it are unused in 127.16.0.0/12.
func oneDead(addr string, n int64) error {
	c, err := dialTCP(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	reply, err := socksAsk(c, "", fmt.Sprintf("127.%d.%d.%d:9", 16+n>>16, n>>8&255, n&255))
	if err == nil && reply != socksRefused {
		err = fmt.Errorf("reply %d, want %d", reply, socksRefused)
	}
	return err
}

// quiet is the memory of the process, in KiB, after as long as it takes to give
// back what was garbage: it does so once, when nothing has happened for 2 s.
func (a *ambassador) quiet() int {
	a.t.Helper()
	during(5 * time.Second)
	kib, err := ownKiB(a.process)
	if err != nil {
		a.t.Fatal(err)
	}
	return kib
}

// TestSilentClients proves that clients which connect and send nothing are all
// accepted, are all closed at their deadline and not before, and leak nothing.
func TestSilentClients(t *testing.T) {
	t.Parallel()
	total := 2000
	if long() {
		total = 8000
	}
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", floodFile))
	addr := a.addr("socks")
	silence := func(n int) {
		t.Helper()
		conns := make([]net.Conn, 0, n)
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		began := time.Now()
		for range n {
			c, err := dialTCP(addr)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		opened := time.Since(began)
		for i, c := range conns {
			c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("client %d: %v", i, err)
			}
			if took := time.Since(began); took < 3*time.Second {
				t.Fatalf("client %d was dropped after %v", i, took)
			}
		}
		t.Logf("%d clients connected in %v, and the last was dropped after %v", n, opened.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		if took := time.Since(began) - opened; took > 3*time.Second+patience/3 {
			t.Errorf("the last was dropped %v after it came", took)
		}
	}
	silence(50)
	before := a.quiet()
	silence(total)
	// The runtime keeps the structures of as many goroutines and sockets as there have
	// been at a time for reuse: 3 KiB for each client. A second crowd reuses them and
	// needs no more.
	a.backTo(before, 4+total*4>>10)
	before = a.quiet()
	silence(total)
	a.metric("ambassador_sessions_total{stage=greet,reason=handshake_timeout}", float64(2*total+50))
	if n, err := sample(a.process, "ambassador_sessions_total{reason=limit}"); n != 0 || err != nil {
		t.Errorf("%v sessions ended as limit, %v", n, err)
	}
	a.backTo(before, 8)
}
