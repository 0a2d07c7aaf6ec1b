package upstream

import (
	"testing"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/relay"
)

// A connection that we have dialled is recorded while it is open, and only if a listener
// accepts redirected connections.
func TestOwnDials(t *testing.T) {
	at := l4test.Backend(t, l4test.Echo)
	dials, engine := &netconn.OwnDials{}, relay.New()
	defer engine.Close()
	u, err := New(Config{Name: "up", Endpoints: endpointsOf(at)}, Deps{Dial: netconn.Dialer(engine, 0), Dials: dials})
	if err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []bool{true, false} {
		dials.Wanted.Store(wanted)
		conn, failure := u.connect(t.Context(), noProgress)
		if failure != nil {
			t.Fatal(failure)
		}
		from, to := netconn.Unmapped(conn.raw.LocalAddr()), netconn.Unmapped(conn.raw.RemoteAddr())
		if got := dials.Has(from, to); got != wanted {
			t.Errorf("an open one, wanted %v: %v", wanted, got)
		}
		if dials.Has(to, from) {
			t.Error("its other end is not ours")
		}
		conn.closePolitely()
		if dials.Has(from, to) {
			t.Error("a closed one is kept")
		}
	}
	if n := len(dials.Live); n > 0 {
		t.Errorf("%d are kept", n)
	}
}
