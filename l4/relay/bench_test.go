package relay

import (
	"crypto/tls"
	"io"
	"testing"
)

// The cost of the engines, with both applications in the same process: go test
// -bench . ./l4/relay. Compare results within a run only.

// benchmarks runs one on both engines, with and without TLS upstream.
func benchmarks(b *testing.B, f func(b *testing.B, e *Engine, up kind)) {
	for _, name := range []string{"epoll", "portable"} {
		for _, k := range []kind{{}, {tls: tls.VersionTLS13}, {tls: tls.VersionTLS13, followed: true}} {
			legs := "plain"
			switch {
			case k.followed:
				legs = "followed"
			case k.tls != 0:
				legs = "tls"
			}
			b.Run(name+"/"+legs, func(b *testing.B) {
				e := engines[name]()
				b.ReportAllocs()
				f(b, e, k)
				b.StopTimer()
				e.Close()
			})
		}
	}
}

// benchSession is a session that ends with close.
func benchSession(b *testing.B, e *Engine, upKind kind) (down, up *end, close func()) {
	done := make(chan Result, 1)
	cfg := Config{Owner: &owner{done: func(r Result) { done <- r }}}
	down, cfg.Downstream = newLeg(b, kind{})
	up, cfg.Upstream = newLeg(b, upKind)
	e.Start(cfg)
	return down, up, func() {
		down.raw.Close()
		up.raw.Close()
		<-done
	}
}

// Bytes per second, one way.
func BenchmarkBulk(b *testing.B) {
	benchmarks(b, func(b *testing.B, e *Engine, k kind) {
		down, up, close := benchSession(b, e, k)
		defer close()
		go io.Copy(io.Discard, up) // close ends it
		buf := make([]byte, 256<<10)
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := down.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The same from upstream, where the relay decrypts.
func BenchmarkBulkDown(b *testing.B) {
	benchmarks(b, func(b *testing.B, e *Engine, k kind) {
		down, up, close := benchSession(b, e, k)
		defer close()
		go io.Copy(io.Discard, down) // close ends it
		buf := make([]byte, 256<<10)
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := up.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Round trips per second, one at a time.
func BenchmarkPing(b *testing.B) {
	benchmarks(b, func(b *testing.B, e *Engine, k kind) {
		down, up, close := benchSession(b, e, k)
		defer close()
		go io.Copy(up, up) // close ends it
		buf := make([]byte, 512)
		for b.Loop() {
			ping(b, down, buf)
		}
	})
}

func ping(b *testing.B, e *end, buf []byte) {
	e.Write(buf)
	if _, err := io.ReadFull(e, buf); err != nil {
		b.Fatal(err)
	}
}

// Sessions per second: Start, a byte, and the end. The time of connecting and of the
// handshake is excluded, their allocations are included.
func BenchmarkSession(b *testing.B) {
	benchmarks(b, func(b *testing.B, e *Engine, k kind) {
		for b.Loop() {
			b.StopTimer()
			down, near := newLeg(b, kind{})
			up, far := newLeg(b, k)
			done := make(chan Result, 1)
			b.StartTimer()
			e.Start(Config{Downstream: near, Upstream: far, Owner: &owner{done: func(r Result) { done <- r }}})
			down.Write([]byte("x"))
			io.ReadFull(up, make([]byte, 1))
			down.closeWrite()
			up.closeWrite()
			<-done
			b.StopTimer()
			down.raw.Close()
			up.raw.Close()
			b.StartTimer()
		}
	})
}
