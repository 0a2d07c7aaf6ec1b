package relay

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

// replaceTLS replaces the tls.Conn of each side by its successor, as another process
// does. It returns false if the session is over.
func replaceTLS(t *testing.T, f *flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ledger.Over {
		return false
	}
	for i := range f.sides {
		side := f.sides[i].tls
		if side == nil {
			continue
		}
		state, err := side.export()
		if err != nil {
			t.Errorf("side %d: %v", i, err)
			return false
		}
		next, err := restoreTLS(state)
		if err != nil {
			t.Error(err)
			return false
		}
		next.owed = side.owed
		f.sides[i].tls = next
	}
	return true
}

// Bulk in both directions, with TLS on both sides, does not notice that crypto/tls is
// replaced again and again; then each direction ends by itself.
func TestTLSIsReplaced(t *testing.T) {
	followed := kind{tls: tls.VersionTLS13, followed: true}
	terminates := followed
	terminates.terminates = true
	for _, k := range []struct{ down, up kind }{{kind{}, followed}, {terminates, kind{}}, {terminates, followed}} {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			done := make(chan Result, 1)
			cfg := Config{Owner: &owner{done: func(r Result) { done <- r }}}
			var down, up *end
			down, cfg.Downstream = newLeg(t, k.down)
			up, cfg.Upstream = newLeg(t, k.up)
			e := New()
			defer e.Close()
			f := e.Start(cfg).(*flow)
			const size = 16 << 20
			stop := make(chan struct{})
			var replacing, bulk sync.WaitGroup
			times := 0
			replacing.Go(func() {
				for f.Up() < size/4 || f.Down() < size/4 { // crypto/tls and the Shadow first
					runtime.Gosched()
				}
				for replaceTLS(t, f) {
					times++
					select {
					case <-stop:
						return
					default:
					}
				}
			})
			for i, from := range []*end{down, up} {
				to := []*end{up, down}[i]
				sent, received := sha256.New(), sha256.New()
				bulk.Go(func() {
					source := rand.NewChaCha8([32]byte{byte(i)})
					if _, err := io.Copy(io.MultiWriter(from, sent), io.LimitReader(source, size)); err != nil {
						t.Error(err)
					}
					from.closeWrite()
				})
				bulk.Go(func() {
					if n, err := io.Copy(received, to); n != size || err != nil {
						t.Errorf("%d bytes have arrived, %v", n, err)
					}
				})
				defer func() {
					if string(sent.Sum(nil)) != string(received.Sum(nil)) {
						t.Error("bytes have changed")
					}
				}()
			}
			bulk.Wait()
			close(stop)
			replacing.Wait()
			if r := <-done; r.End != EndClosed || r.Truncated || r.Up != size || r.Down != size {
				t.Errorf("result %+v", r)
			}
			if times < 10 {
				t.Errorf("TLS was replaced %d times", times)
			}
		})
	}
}
