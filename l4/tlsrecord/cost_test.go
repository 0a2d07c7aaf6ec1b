package tlsrecord

import (
	"crypto/tls"
	"net"
	"testing"
	"unsafe"
)

// A Shadow lives as long as its session. The sizes are those of Go's allocator.
func TestSizeOfAShadow(t *testing.T) {
	if n := unsafe.Sizeof(Shadow{}); n > 240 {
		t.Errorf("a Shadow has %d bytes, want at most 240", n)
	}
	ours, peer := connect(t, kind{suite: tls.TLS_AES_128_GCM_SHA256, client: true, tickets: true})
	both(t, ours, peer, "hello")
	if s := ours.shadow; s.buf != nil || s.setup != nil || s.in.message != nil {
		t.Errorf("an idle Shadow holds %d bytes, setup %v, message %d bytes", cap(s.buf), s.setup != nil, cap(s.in.message))
	}
	c := ours.handOver(t)
	if c.open.aead != nil || c.seal.aead != nil {
		t.Error("a Conn has keys before a record needs them")
	}
	c.conn = &feed{Conn: c.conn, fed: true}
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) || c.buf != nil || c.raw != nil || c.plain != nil {
		t.Errorf("an idle Conn holds a buffer: %v, %d bytes, plain %d bytes, %v", c.buf != nil, cap(c.raw), cap(c.plain), err)
	}
}

// Application data is counted without an allocation, and not decrypted.
func TestCountingIsCheap(t *testing.T) {
	w := newTwins(t, kind{suite: tls.TLS_AES_128_GCM_SHA256, client: true})
	for range 50 {
		w.data(1000, 0)
	}
	n, s := len(w.sent), w.ours.shadow
	if allocs := testing.AllocsPerRun(100, func() {
		s.Received(w.bytes, n)
		s.Sent(w.bytes)
	}); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
	if !s.ok || s.in.seq != 101*50 || s.out.seq != 101*50 { // AllocsPerRun runs it once more
		t.Errorf("ok %v, %d and %d records", s.ok, s.in.seq, s.out.seq)
	}
}

// The cost of a Shadow in a handshake: go test -bench . ./l4/tlsrecord. Compare results
// within a run only.
func BenchmarkHandshake(b *testing.B) {
	for _, name := range []string{"plain", "followed"} {
		b.Run(name, func(b *testing.B) {
			var client, server KeyLog
			a := &tls.Config{InsecureSkipVerify: true}
			z := &tls.Config{Certificates: []tls.Certificate{certificate()}, SessionTicketsDisabled: true}
			if name == "followed" {
				a.KeyLogWriter, z.KeyLogWriter = &client, &server
			}
			b.ReportAllocs()
			for b.Loop() {
				near, far := sockets(b)
				var x, y net.Conn = near, far
				sx, sy := client.Client(near), server.Server(far)
				if name == "followed" {
					x, y = sx, sy
				}
				ours, theirs := tls.Client(x, a), tls.Server(y, z)
				done := make(chan error, 1)
				go func() { done <- theirs.Handshake() }()
				if err := ours.Handshake(); err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				if name == "followed" && !(sx.Established(ours.ConnectionState()) && sy.Established(theirs.ConnectionState())) {
					b.Fatal("not followed")
				}
				near.Close()
				far.Close()
			}
		})
	}
}
