package l4

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

func TestLimiter(t *testing.T) {
	a, b := sourceAt("10.0.0.1"), sourceAt("10.0.0.2")
	var l limiter
	now := time.Unix(1e9, 0)
	limits := ListenerLimits{Connections: 3, PerClient: 2}
	enter := func(client policy.Source, want string) {
		t.Helper()
		got := ""
		if met := l.enter(limits, client, now); met != nil {
			got = met.key
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
	l.leave(a)
	enter(b, "")
	l.leave(a)
	l.leave(b)
	l.leave(b)
	if l.live != 0 || len(l.clients) != 0 {
		t.Errorf("%d live, clients %v", l.live, l.clients)
	}
	limits = ListenerLimits{PerSecond: 2} // a reload
	enter(a, "")
	enter(a, "")
	enter(a, "limits.connections_per_second")
	now = now.Add(500 * time.Millisecond)
	enter(a, "")
	enter(a, "limits.connections_per_second")
}

func TestListenerLimits(t *testing.T) {
	cfg := oneUpstream(backend(t, echo))
	cfg.Listeners[0].Limits = ListenerLimits{PerClient: 2}
	f := serve(t, Options{}, cfg)
	first, second := f.client(0), f.client(0)
	ping(t, first)
	ping(t, second)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Limit || r.Stage != outcome.StageAdmit || r.Limit != "listeners.in.limits.per_client" {
		t.Errorf("record %+v", r)
	}
	first.Close()
	f.record()
	ping(t, f.client(0))
	second.Close()
	f.record()
}

func TestUpstreamConnectionsLimit(t *testing.T) {
	cfg := oneUpstream(backend(t, echo), backend(t, echo))
	cfg.Upstreams[0].MaxConnections = 1
	f := serve(t, Options{}, cfg)
	one, two := f.client(0), f.client(0)
	ping(t, one)
	ping(t, two)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.Limit || r.Stage != outcome.StagePermit || r.Limit != "upstreams.up.limits.connections" || r.Attempts != 0 {
		t.Errorf("record %+v", r)
	}
	one.Close()
	f.record()
	ping(t, f.client(0))
	for _, a := range f.Upstreams()[0].Endpoints {
		if n := a.Addresses[0].Sessions; n != 1 {
			t.Errorf("%s has %d sessions", a.Endpoint, n)
		}
	}
}

func TestConnectionsPerSecond(t *testing.T) {
	cfg := oneUpstream(backend(t, echo))
	cfg.Listeners[0].Limits = ListenerLimits{PerSecond: 5}
	f := serve(t, Options{}, cfg)
	refused := 0
	for range 20 {
		c, err := net.Dial("tcp", f.Listening()[0].Addr)
		if errors.Is(err, syscall.ECONNRESET) {
			refused++ // the reset arrived first
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(bound))
		io.WriteString(c, "x")
		if n, _ := c.Read(make([]byte, 1)); n == 0 {
			refused++
		}
		c.Close()
	}
	if refused < 10 || refused > 15 {
		t.Errorf("%d of 20 refused, want all beyond the first 5 and what a moment brings", refused)
	}
}
