package limits

import (
	"net/netip"
	"testing"
	"time"

	"ambassador/policy"
)

func TestLimiter(t *testing.T) {
	a, b := policy.SourceOf(netip.MustParseAddr("10.0.0.1")), policy.SourceOf(netip.MustParseAddr("10.0.0.2"))
	var l Limiter
	now := time.Unix(1e9, 0)
	bounds := Limits{Connections: 3, PerClient: 2}
	enter := func(client policy.Source, want string) {
		t.Helper()
		got := ""
		if exceeded := l.Enter(bounds, client, now); exceeded != nil {
			got = exceeded.Key
		}
		if got != want {
			t.Errorf("limit %q, want %q", got, want)
		}
	}
	enter(a, "")
	enter(a, "")
	enter(a, "limits.per_client")
	enter(b, "")
	enter(b, "limits.connections")
	l.Leave(a)
	enter(b, "")
	l.Leave(a)
	l.Leave(b)
	l.Leave(b)
	if l.live != 0 || len(l.clients) != 0 {
		t.Errorf("%d live, clients %v", l.live, l.clients)
	}
	bounds = Limits{PerSecond: 2} // a reload
	enter(a, "")
	enter(a, "")
	enter(a, "limits.connections_per_second")
	now = now.Add(500 * time.Millisecond)
	enter(a, "")
	enter(a, "limits.connections_per_second")
}
