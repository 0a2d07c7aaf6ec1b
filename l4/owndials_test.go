package l4

import (
	"testing"

	"ambassador/l4/relay"
)

// A connection that we have dialled is recorded while it is open, and only if a listener
// accepts redirected connections.
func TestOwnDials(t *testing.T) {
	at := backend(t, echo)
	dials, engine := &ownDials{}, relay.New()
	defer engine.Close()
	u, err := newUpstream(oneUpstream(at).Upstreams[0], upstreamDeps{dial: dialer(engine, 0), dials: dials})
	if err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []bool{true, false} {
		dials.wanted.Store(wanted)
		conn, failure := u.connect(t.Context(), untold)
		if failure != nil {
			t.Fatal(failure)
		}
		from, to := unmapped(conn.raw.LocalAddr()), unmapped(conn.raw.RemoteAddr())
		if got := dials.has(from, to); got != wanted {
			t.Errorf("an open one, wanted %v: %v", wanted, got)
		}
		if dials.has(to, from) {
			t.Error("its other end is not ours")
		}
		conn.closePolitely()
		if dials.has(from, to) {
			t.Error("a closed one is kept")
		}
	}
	if n := len(dials.live); n > 0 {
		t.Errorf("%d are kept", n)
	}
}
