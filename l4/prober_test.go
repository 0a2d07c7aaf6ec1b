package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

func TestAProbeSeesThatOurCertificateIsRefused(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	addr := tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool})
	cfg.Upstreams[0].Health = upstream.HealthConfig{Interval: 10 * time.Millisecond}
	f := serve(t, Options{}, cfg)
	st := f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Health == policy.Unhealthy })
	if !strings.Contains(st.LastError, "certificate required") {
		t.Errorf("status %+v", st)
	}
	if f.Upstreams()[0].Reached {
		t.Error("reached, though it refuses us")
	}
}

// awaitAddress waits until the first address has the wanted status.
func (f *fixture) awaitAddress(is func(upstream.AddressStatus) bool) (st upstream.AddressStatus) {
	f.t.Helper()
	await(f.t, "address as wanted", func() bool {
		st = f.address()
		return is(st)
	})
	return st
}

// address is the state of the first upstream's first address.
func (f *fixture) address() upstream.AddressStatus { return f.Upstreams()[0].Endpoints[0].Addresses[0] }

func TestKillOnDown(t *testing.T) {
	var ill atomic.Bool
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Upstreams[0].Health = upstream.HealthConfig{Interval: 10 * time.Millisecond, KillOnDown: true,
		Check: func(context.Context, netip.Addr) error {
			if ill.Load() {
				return errors.New("ill")
			}
			return nil
		}}
	f := serve(t, Options{}, cfg)
	f.awaitAddress(func(a upstream.AddressStatus) bool { return a.Health == policy.Healthy })
	c := f.client(0)
	ping(t, c)
	ill.Store(true)
	r := f.record()
	if r.Reason != outcome.Killed || !strings.Contains(r.Cause, "kill_on_down") {
		t.Errorf("record %+v", r)
	}
	if _, err := c.Read(make([]byte, 1)); !netconn.IsReset(err) {
		t.Errorf("the client reads %v, want a reset", err)
	}
}
