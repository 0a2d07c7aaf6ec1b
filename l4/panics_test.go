package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/policy"
)

// survived counts panics by their part.
type survived struct {
	mu sync.Mutex
	n  map[string]int
}

func (s *survived) count(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = map[string]int{}
	}
	s.n[part]++
}

func (s *survived) want(t *testing.T, want map[string]int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(s.n, want) {
		t.Errorf("panics by part: %v, want %v", s.n, want)
	}
}

// panicking makes an upstream whose first n dials panic, and runs test with it in a
// bubble.
func panicking(t *testing.T, cfg UpstreamConfig, n int, test func(u *Upstream, s *survived)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, dials := &survived{}, atomic.Int64{}
		cfg.Name, cfg.Endpoints = "u", endpointsOf("127.0.0.1:1")
		u, err := newUpstream(cfg, upstreamDeps{observer: Observer{Panicked: s.count}, dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if dials.Add(1) <= int64(n) {
				panic("a bug")
			}
			return says("")(ctx)
		}})
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Preconnect.Connections > 0 {
			u.spares = newSpares(u, func() bool { return true })
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); u.run(ctx) }()
		defer func() { cancel(); <-done }()
		test(u, s)
		if got := u.members()[0].places.Load(); cfg.Preconnect.Connections == 0 && got != 0 {
			t.Errorf("%d places are taken at the address", got)
		}
	})
}

func TestProberGoesOnAfterAPanic(t *testing.T) {
	panicking(t, UpstreamConfig{Health: testHealth}, 2, func(u *Upstream, s *survived) {
		a := u.members()[0].address
		time.Sleep(time.Second)
		if a.asked.Load() {
			t.Error("after a panic trials are left to the prober still")
		}
		time.Sleep(3 * testHealth.Interval)
		if got := a.verdict(); got != policy.Healthy {
			t.Errorf("the address is %s, want healthy by the third probe", got)
		}
		s.want(t, map[string]int{PartProber: 2})
	})
}

func TestFirstContactGoesOnAfterAPanic(t *testing.T) {
	panicking(t, UpstreamConfig{Required: true}, 2, func(u *Upstream, s *survived) {
		time.Sleep(5 * time.Second)
		if u.reached.Load() == nil {
			t.Error("the upstream is not reached")
		}
		s.want(t, map[string]int{PartUpstream: 2})
	})
}

func TestPreconnectGoesOnAfterAPanic(t *testing.T) {
	panicking(t, UpstreamConfig{Preconnect: PreconnectConfig{Connections: 3, MaxAge: time.Hour}}, 2, func(u *Upstream, s *survived) {
		time.Sleep(10 * time.Second)
		if got := u.spares.count(); got != 3 {
			t.Errorf("%d connections are kept, want 3", got)
		}
		if got := u.members()[0].places.Load(); got != 3 {
			t.Errorf("%d places are taken at the address, want 3", got)
		}
		s.want(t, map[string]int{PartPreconnect: 2})
	})
}

// bugConn panics when it is read.
type bugConn struct{ net.Conn }

func (bugConn) Read([]byte) (int, error) { panic("a bug") }

// A panic while a connection waits for its session says nothing about the server.
func TestPanicWhileAConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ended := &survived{}, make(chan outcome.Reason, 1)
		u, err := newUpstream(UpstreamConfig{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Preconnect: PreconnectConfig{Connections: 1}},
			upstreamDeps{observer: Observer{Panicked: s.count, Attempt: func(_ string, r outcome.Reason) { ended <- r }},
				dial: func(context.Context, string, string) (net.Conn, error) {
					ours, _ := net.Pipe()
					return bugConn{ours}, nil
				}})
		if err != nil {
			t.Fatal(err)
		}
		u.spares = newSpares(u, func() bool { return true })
		u.spares.missing(time.Now())
		u.spares.add(t.Context())
		synctest.Wait()
		u.spares.sweep(time.Now())
		if got := <-ended; got != outcome.Internal {
			t.Errorf("the attempt ended as %s, want %s", got, outcome.Internal)
		}
		if got := u.members()[0].places.Load(); got != 0 || u.spares.count() != 0 {
			t.Errorf("%d places are taken, %d connections are kept, want none", got, u.spares.count())
		}
		s.want(t, map[string]int{PartPreconnect: 1})
	})
}

// All callers that wait for a lookup get its panic as an error, and the next call starts
// a new lookup.
func TestPanicOfALookupReleasesAllWhoWait(t *testing.T) {
	s, began, goOn := &survived{}, make(chan struct{}), make(chan struct{})
	var once sync.Once
	u, err := newUpstream(UpstreamConfig{Name: "u", Endpoints: endpointsOf("localhost:1")}, upstreamDeps{observer: Observer{Panicked: s.count,
		Phase: func(string, Phase, time.Duration) {
			once.Do(func() {
				close(began)
				<-goOn
				panic("a bug")
			})
		}}})
	if err != nil {
		t.Fatal(err)
	}
	e, errs := u.endpoints[0], make(chan error, 5)
	for range cap(errs) {
		go func() { errs <- u.resolve(t.Context(), e) }() // received below
	}
	<-began
	close(goOn)
	for range cap(errs) {
		var panicked *panicError
		select {
		case err := <-errs:
			if err != nil && (!errors.As(err, &panicked) || classify(outcome.StageDial, err) != outcome.Internal) {
				t.Errorf("a waiting caller heard %v", err)
			}
		case <-time.After(bound):
			t.Fatal("a caller waits for a lookup that has panicked")
		}
	}
	if err := u.resolve(t.Context(), e); err != nil || len(u.members()) == 0 {
		t.Errorf("the next lookup: %v, %d addresses", err, len(u.members()))
	}
	s.want(t, map[string]int{PartResolver: 1})
}

func TestPanicInALookupsOwnGoroutine(t *testing.T) {
	s := &survived{}
	r := newResolver(nil, panics{count: s.count})
	r.servers = []*net.Resolver{{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { panic("a bug") }}}
	_, err := r.services(t.Context(), "_x._tcp.invalid")
	var panicked *panicError
	if !errors.As(err, &panicked) {
		t.Errorf("the lookup ended with %v", err)
	}
	s.want(t, map[string]int{PartResolver: 1})
}

// A panic leaks neither a place nor a connection, and is logged with its stack.
func TestPanicOfASessionLeavesNothingBehind(t *testing.T) {
	plain := oneUpstream(backend(t, echo))
	mysql := starttlsUpstream(t, "mysql", func(cfg *tls.Config) string { return starttlsBackend(t, mysqlHello, 36, "", cfg, mysqlEcho) })
	for _, tt := range []struct {
		what string
		cfg  Config
		bad  func(f *fixture) // a session with the bug
		good func(f *fixture) // the next one
	}{
		{"while it connects", plain, func(f *fixture) { f.wantRefused() }, func(f *fixture) { ping(t, f.client(0)) }},
		{"in the dialogue", mysql, func(f *fixture) { io.Copy(io.Discard, mysqlClient(f)) }, func(f *fixture) { hear(t, mysqlClient(f), "\x07\x00\x00\x02") }},
	} {
		var log strings.Builder
		s, once, bug := &survived{}, sync.Once{}, func() { panic("a bug") }
		up := &tt.cfg.Upstreams[0]
		up.MaxConnections = 1
		o := Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Observer: Observer{Panicked: s.count}}
		if config := up.TLS; config != nil {
			up.TLS = func(host, address string) (*tls.Config, error) { once.Do(bug); return config(host, address) }
		} else {
			o.Observer.Phase = func(string, Phase, time.Duration) { once.Do(bug) }
		}
		f := serve(t, o, tt.cfg)
		tt.bad(f)
		if r := f.record(); r.Reason != outcome.Internal || !strings.Contains(r.Cause, "a bug") {
			t.Errorf("%s: record %+v", tt.what, r)
		}
		if !strings.Contains(log.String(), "TestPanicOfASession") {
			t.Errorf("%s: no stack in the log: %s", tt.what, log.String())
		}
		tt.good(f) // the only place is free
		s.want(t, map[string]int{PartSession: 1})
	}
}

// mysqlClient is a client that has sent its response to the greeting.
func mysqlClient(f *fixture) net.Conn {
	c := f.client(0)
	hear(f.t, c, strings.Replace(mysqlHello, "\x00\x8a\x21", "\x00\x82\x21", 1))
	io.WriteString(c, mysqlReply)
	return c
}

// If one of two racing dials panics, the other continues.
func TestPanicOfARacingDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &survived{}
		u, err := newUpstream(UpstreamConfig{Name: "u", Endpoints: endpointsOf("localhost:1")}, upstreamDeps{observer: Observer{Panicked: s.count},
			dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				if address == "127.0.0.1:1" {
					time.Sleep(2 * raceDelay)
					panic("a bug")
				}
				return accepts(ctx)
			}})
		if err != nil {
			t.Fatal(err)
		}
		u.learned(u.endpoints[0], []place{{addr: netip.MustParseAddrPort("127.0.0.1:1")}, {addr: netip.MustParseAddrPort("[::1]:1"), other: true}})
		conn, failure := u.connect(t.Context(), untold)
		if failure != nil {
			t.Fatal(failure)
		}
		if got := conn.candidate.String(); got != "[::1]:1" {
			t.Errorf("connected to %s", got)
		}
		conn.closeRaw()
		time.Sleep(2 * raceDelay)
		for _, m := range u.members() {
			if got := m.places.Load(); got != 0 {
				t.Errorf("%s: %d places are taken", m.name, got)
			}
		}
		s.want(t, map[string]int{PartUpstream: 1})
	})
}

// A panic of the relay and one that catch has reported are each reported once.
func TestPanicsInErrorsAreToldOnce(t *testing.T) {
	s := &survived{}
	p := panics{count: s.count}
	p.tellOf(PartRelay, nil)
	p.tellOf(PartRelay, io.EOF)
	told := p.catch(PartResolver, func() { panic("a bug") })
	p.tellOf(PartSession, &outcome.Error{Err: told})
	p.tellOf(PartRelay, &outcome.Error{Err: &relay.PanicError{Value: "a bug"}})
	s.want(t, map[string]int{PartResolver: 1, PartRelay: 1})
	if !slices.Contains(Parts(), PartRelay) {
		t.Error("Parts does not list the relay")
	}
}
