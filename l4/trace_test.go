package l4

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

const callersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"

// phases are the names of a record's phases, with the reason of each that failed.
func phases(r *outcome.Record) string {
	if r.Trace == nil {
		return "no trace"
	}
	var out []string
	last := time.Duration(0)
	for _, p := range r.Phases {
		name := p.Name
		if p.Reason != "" {
			name += "=" + string(p.Reason)
		}
		if p.From < last || p.To < p.From || p.To > time.Duration(r.Duration) {
			name += fmt.Sprintf(" from %v to %v, after %v, of %v", p.From, p.To, last, r.Duration)
		}
		out, last = append(out, name), p.To
	}
	return strings.Join(out, " ")
}

// ended is the record of a session that sends a line and ends.
func (f *fixture) ended(t *testing.T) *outcome.Record {
	t.Helper()
	c := f.client(0)
	ping(t, c)
	c.Close()
	return f.record()
}

// Who decides whether a session is sampled: its client's trace, else the share. Without a
// collector nothing is sampled, and the client's trace is on the record all the same.
func TestSampling(t *testing.T) {
	const asked, unasked = "00-" + callersTrace + "-00f067aa0ba902b7-01", "00-" + callersTrace + "-00f067aa0ba902b7-00"
	addr := l4test.Backend(t, l4test.Echo)
	for _, tt := range []struct {
		tracing     Tracing
		parent      string
		trace       string // empty: none, "new": one of its own
		sampledWant bool
	}{
		{Tracing{}, "", "", false},
		{Tracing{}, asked, callersTrace, false},
		{Tracing{Sample: 1}, "", "", false},
		{Tracing{On: true}, "", "", false},
		{Tracing{On: true}, asked, callersTrace, true},
		{Tracing{On: true}, unasked, callersTrace, false},
		{Tracing{On: true, Sample: 1}, "", "new", true},
		{Tracing{On: true, Sample: 1}, unasked, callersTrace, false},
		{Tracing{On: true, Sample: 1}, "00-bad-01", "new", true},
	} {
		cfg := oneUpstream(addr)
		cfg.Tracing = tt.tracing
		cfg.Upstreams[0] = upstream.Config{Name: "up", Dynamic: true}
		cfg.Listeners[0].Request, cfg.Listeners[0].Context = RequestConnect, true
		cfg.Listeners[0].Rules, cfg.Listeners[0].Upstream = policy.NewRules([]policy.Rule{{IPs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Upstream: "up"}}), ""
		f := serve(t, Options{}, cfg)
		c := f.client(0)
		fmt.Fprintf(c, "CONNECT %s HTTP/1.0\r\nAmbassador-Context: traceparent=%s\r\n\r\n", addr, tt.parent)
		hear(t, c, "HTTP/1.0 200 OK\r\n\r\n")
		ping(t, c)
		c.Close()
		r, trace := f.record(), ""
		if r.Trace != nil {
			trace = r.TraceID.String()
			if tt.trace == "new" && trace != callersTrace && r.Parent == (outcome.SpanID{}) {
				trace = "new"
			}
		}
		if sampled := r.Trace != nil && r.Sampled; trace != tt.trace || sampled != tt.sampledWant || sampled != strings.HasPrefix(phases(r), "dial") {
			t.Errorf("%+v, %q: trace %q, sampled %v, phases %s; want %q, %v", tt.tracing, tt.parent, trace, sampled, phases(r), tt.trace, tt.sampledWant)
		}
		if kept := f.Recent(1)[0]; r.Trace != nil && (kept.TraceID != r.TraceID || kept.SpanID != r.SpanID || kept.Phases != nil) {
			t.Errorf("the recent record has %+v", kept.Trace)
		}
	}
}

// A share of the sessions is sampled.
func TestShareOfSessions(t *testing.T) {
	s := &Server{}
	s.tracing.Store(&Tracing{On: true, Sample: 0.25})
	sampled := 0
	for range 4000 {
		sess := &session{server: s}
		if sess.joinTrace(preface.Traceparent{}); sess.rec.Trace() != nil {
			sampled++
		}
	}
	if sampled < 800 || sampled > 1200 { // 1000, and 7 standard deviations
		t.Errorf("%d of 4000 are sampled, want about 1000", sampled)
	}
}

// The phases of sessions, one row for each way through.
func TestPhasesOfSessions(t *testing.T) {
	sampled := func(cfg Config) Config {
		cfg.Tracing = Tracing{On: true, Sample: 1}
		return cfg
	}
	t.Run("the second address", func(t *testing.T) {
		f := serve(t, Options{}, sampled(oneUpstream(l4test.RefusedAddress(t), l4test.Backend(t, l4test.Echo))))
		for range 20 {
			switch r := f.ended(t); {
			case r.Attempts == 1 && phases(r) == "dial":
			case r.Attempts == 2 && phases(r) == "dial=refused dial" && r.Phases[0].Attempt == 1 && r.Phases[1].Attempt == 2 && r.Phases[1].Address == r.Address && r.Phases[0].Address != r.Address:
				return
			default:
				t.Fatalf("%s: %+v", phases(r), r.Phases)
			}
		}
		t.Error("the address that refuses is never tried")
	})
	t.Run("a lookup", func(t *testing.T) {
		addr := l4test.Backend(t, l4test.Echo)
		_, port, _ := net.SplitHostPort(addr)
		cfg := sampled(oneUpstream("db.test:" + port))
		cfg.Upstreams[0].DNSServers = []string{l4test.ServeZone(t, &l4test.Zone{Hosts: map[string][]string{}})}
		f := serve(t, Options{}, cfg)
		f.wantRefused()
		if r := f.record(); !strings.HasPrefix(phases(r), "dns=dns") || strings.Contains(phases(r), "dial") || r.Phases[0].Address != "db.test:"+port {
			t.Errorf("%s: %+v", phases(r), r)
		}
	})
	t.Run("TLS that needs the client", func(t *testing.T) {
		cfg := sampled(starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, l4test.MySQLHello, 36, "", cfg, mysqlEcho) }))
		_, other := l4test.SelfSigned(t)
		good := cfg.Upstreams[0].TLS
		for want, client := range map[string]func(string, string) (*tls.Config, error){
			"dial starttls tls": good,
			"dial starttls tls=upstream_tls": func(string, string) (*tls.Config, error) {
				return &tls.Config{ServerName: "localhost", RootCAs: other}, nil
			},
		} {
			cfg.Upstreams[0].TLS = client
			f := serve(t, Options{}, cfg)
			c := f.client(0)
			hear(t, c, strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1))
			io.WriteString(c, l4test.MySQLReply)
			c.CloseWrite()
			io.Copy(io.Discard, c)
			if r := f.record(); phases(r) != want {
				t.Errorf("%s, want %s; %+v", phases(r), want, r)
			}
		}
	})
	t.Run("a server that refuses to resume", func(t *testing.T) {
		cert, pool := l4test.SelfSigned(t)
		addr, _ := refusesResumption(t, cert)
		f := serve(t, Options{}, sampled(tlsUpstream(addr, resuming(&tls.Config{ServerName: "localhost", RootCAs: pool}))))
		f.ended(t)
		if r := f.ended(t); phases(r) != "dial tls=upstream_tls_rejected dial tls" {
			t.Errorf("%s: %+v", phases(r), r.Phases)
		}
	})
	t.Run("killed", func(t *testing.T) {
		f := serve(t, Options{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}, sampled(oneUpstream("192.0.2.1:1")))
		c := f.client(0)
		f.until("a dial", func() bool {
			return len(f.Sessions(math.MaxInt)) == 1 && f.Sessions(math.MaxInt)[0].Stage == outcome.StageDial
		})
		f.Kill(f.Sessions(1)[0].ID, "a test")
		wantReset(t, c)
		if r := f.record(); phases(r) != "dial=killed" {
			t.Errorf("%s: %+v", phases(r), r.Phases)
		}
	})
	t.Run("a limit", func(t *testing.T) {
		cfg := sampled(oneUpstream(l4test.Backend(t, l4test.Echo)))
		cfg.MaxSessions = 1
		f := serve(t, Options{}, cfg)
		ping(t, f.client(0))
		f.wantRefused()
		if r := f.record(); r.Reason != outcome.Limit || phases(r) != "" || !r.Sampled {
			t.Errorf("%s: %+v", phases(r), r)
		}
	})
}

// What a session costs is bounded by its size class: 640 bytes, and 240 for the client's
// side of one that waits.
func TestSessionsAreSmall(t *testing.T) {
	if size := unsafe.Sizeof(session{}); size > 200 {
		t.Errorf("a session has %d bytes", size)
	}
	if size := unsafe.Sizeof(downstream{}); size > 240 {
		t.Errorf("a client's side has %d bytes", size)
	}
}
