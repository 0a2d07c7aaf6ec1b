package l4

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// tlsBackend starts a TLS echo server with the configuration.
func tlsBackend(t *testing.T, cfg *tls.Config) string {
	return l4test.Backend(t, func(c *net.TCPConn) {
		s := tls.Server(c, cfg)
		if s.Handshake() == nil {
			io.Copy(s, s)
			s.CloseWrite()
		}
	})
}

func tlsUpstream(addr string, client *tls.Config) Config {
	cfg := oneUpstream(addr)
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) { return client, nil }
	return cfg
}

func TestOriginationCarriesBytes(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	addr := tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	f := serve(t, Options{}, tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool, Certificates: []tls.Certificate{cert}}))
	c := f.client(0)
	ping(t, c)
	c.CloseWrite()
	io.Copy(io.Discard, c)
	if r := f.record(); r.Reason != outcome.Closed || r.Truncated {
		t.Errorf("record: %+v", r)
	}
}

// In TLS 1.3 a server refuses our certificate after our handshake. That must not look
// like a server that closes early, whether or not the client has sent something.
func TestServerThatWantsACertificateIsNamed(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, early := range []string{"", "early bytes"} {
			addr := tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: version})
			reasons := make(chan outcome.Reason, 9)
			f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}},
				tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool}))
			f.wantRefused(early)
			if r := f.record(); r.Reason != outcome.UpstreamTLSRejected || r.Stage != outcome.StageTLS || !strings.Contains(r.Cause, "tls: ") ||
				!strings.Contains(r.Cause, "no certificate is configured") || !strings.HasPrefix(r.Hint, "set tls.identity") {
				t.Errorf("TLS %x, %q first: record %+v", version, early, r)
			}
			if r := <-reasons; r != outcome.UpstreamTLSRejected {
				t.Errorf("TLS %x: the attempt settled as %s", version, r)
			}
		}
	}
}

func TestTrialSeesTheLateRefusal(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	addr := tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: pool})
	cfg.Upstreams[0].Required = true
	reasons := make(chan outcome.Reason, 9)
	f := serve(t, Options{Observer: Observer{Upstream: upstream.Observer{Attempt: func(_ string, r outcome.Reason) { reasons <- r }}}}, cfg)
	if r := <-reasons; r != outcome.UpstreamTLSRejected {
		t.Errorf("the trial settled as %s", r)
	}
	if f.Ready().Ready {
		t.Error("ready, though the server refuses us")
	}
}

func TestUntrustedServerIsOurRefusal(t *testing.T) {
	cert, _ := l4test.SelfSigned(t)
	_, otherRoots := l4test.SelfSigned(t)
	addr := tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}})
	f := serve(t, Options{}, tlsUpstream(addr, &tls.Config{ServerName: "localhost", RootCAs: otherRoots}))
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.UpstreamTLS || r.Stage != outcome.StageTLS || r.Attempts != 1 {
		t.Errorf("record: %+v; want one attempt, since another would end the same", r)
	}
}

func TestServerWithoutTLSIsExplained(t *testing.T) {
	mysql := []byte{0x4a, 0, 0, 0, 0x0a, '5', '.', '5'}
	addr := l4test.Backend(t, func(c *net.TCPConn) { c.Write(mysql); io.Copy(io.Discard, c) })
	f := serve(t, Options{}, tlsUpstream(addr, &tls.Config{ServerName: "localhost"}))
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.UpstreamTLS || !strings.Contains(r.Hint, "starttls: mysql") {
		t.Errorf("record: %+v; want the starttls value that fits", r)
	}
}

func TestIdentityThatGoesAwayDuringTheDial(t *testing.T) {
	cfg := oneUpstream(l4test.Backend(t, l4test.Echo))
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) { return nil, errors.New("the certificate expired just now") }
	f := serve(t, Options{}, cfg)
	f.wantRefused()
	if r := f.record(); r.Reason != outcome.NoIdentity || r.Cause != "the certificate expired just now" || r.Attempts != 1 {
		t.Errorf("record: %+v", r)
	}
}

// After the certificate or the roots are fixed, no session waits for the breaker or a
// probe. With a new TLS configuration, an address where TLS failed is tried.
func TestFixedTLSIsTriedAtOnce(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	addr := tlsBackend(t, &tls.Config{Certificates: []tls.Certificate{cert}})
	var current atomic.Pointer[tls.Config]
	current.Store(&tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()})
	cfg := oneUpstream(addr)
	cfg.Upstreams[0].TLS = func(string, string) (*tls.Config, error) { return current.Load(), nil }
	cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 1, Open: time.Hour, MaxOpen: time.Hour}
	cfg.Upstreams[0].Health = upstream.HealthConfig{Interval: time.Hour, Fall: 1, Rise: 9}
	f := serve(t, Options{}, cfg)
	for _, want := range []outcome.Reason{outcome.UpstreamTLS, outcome.BreakerOpen, outcome.BreakerOpen} {
		f.wantRefused()
		if r := f.record(); r.Reason != want && r.Reason != outcome.NoEndpoint && r.Reason != outcome.BreakerOpen {
			t.Errorf("record %+v, want %s", r, want)
		}
	}
	current.Store(&tls.Config{ServerName: "localhost", RootCAs: pool})
	ping(t, f.client(0))
}
