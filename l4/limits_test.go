package l4

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/limits"
	"ambassador/l4/outcome"
)

func TestListenerLimits(t *testing.T) {
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Limits = limits.Limits{PerClient: 2}
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
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo), l4test.Backend(t, l4test.Echo))
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
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Listeners[0].Limits = limits.Limits{PerSecond: 5}
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
		c.SetDeadline(time.Now().Add(l4test.Bound))
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
