package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/lookup"
	"ambassador/l4/outcome"
)

// pushed is a source of addresses that a test controls.
type pushed struct {
	found  func([]lookup.Discovered, error)
	failed func(error)
	begun  chan struct{}
	calls  int // of follow
}

func (p *pushed) follow(ctx context.Context, found func([]lookup.Discovered, error), failed func(error)) {
	p.found, p.failed = found, failed
	if p.calls++; p.calls == 1 {
		close(p.begun)
	}
	<-ctx.Done()
}

// followed makes an upstream whose endpoint's addresses the test pushes.
func followed(t *testing.T) (*Upstream, *pushed) {
	t.Helper()
	p := &pushed{begun: make(chan struct{})}
	u, err := New(Config{Name: "u", Connect: ConnectConfig{Backoff: 1},
		Endpoints: []EndpointConfig{{Address: "kubernetes:default/db:5432", Priority: 1, Discovery: &lookup.Discovery{Host: "db.default.svc", Follow: p.follow}}}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	run := u.Start(ctx)
	go func() { defer close(done); run() }()
	t.Cleanup(func() { cancel(); <-done })
	<-p.begun
	return u, p
}

func at(addr string, distance int) lookup.Discovered {
	return lookup.Discovered{Addr: netip.MustParseAddrPort(addr), Distance: distance}
}

func TestDiscoveredAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, p := followed(t)
		p.found([]lookup.Discovered{at("10.0.0.1:5432", 2), at("10.0.0.2:5432", 0), at("10.0.0.3:5432", 9)}, nil)
		if got := strings.Join(take(t, &plan{upstream: u}), " "); got != "10.0.0.2:5432 10.0.0.1:5432 10.0.0.3:5432" {
			t.Errorf("a session tries %s, want the nearest first", got)
		}
		stays := u.members()[0].Address
		p.found([]lookup.Discovered{at("10.0.0.1:5432", 0)}, nil)
		if len(u.members()) != 1 || u.members()[0].Address != stays {
			t.Errorf("after a change: %v; the address that stays keeps its state", namesOf(u.members()))
		}
		p.failed(errors.New("the API server is away"))
		if st := u.endpoints[0].status(); len(st.Addresses) != 1 || !strings.Contains(st.LookupError, "away") || st.LastReason != outcome.DNS {
			t.Errorf("while the source is away: %+v", st)
		}
		p.found(nil, errors.New("no endpoint is ready"))
		_, err := u.connect(t.Context(), noProgress)
		if err == nil || err.Reason != outcome.NoEndpoint || err.Stage != outcome.StagePermit || !strings.Contains(err.Error(), "no endpoint is ready") {
			t.Errorf("without addresses: %v", err)
		}
		if st := u.endpoints[0].status(); len(st.Addresses) != 0 || st.LastReason != outcome.NoEndpoint {
			t.Errorf("without addresses: %+v", st)
		}
		p.found([]lookup.Discovered{at("10.0.0.4:5432", 0)}, nil)
		if st := u.endpoints[0].status(); st.LookupError != "" || len(st.Addresses) != 1 {
			t.Errorf("with addresses again: %+v", st)
		}
	})
}

// TestDiscoveryIsAwaited asserts that a session waits for the first answer, and no longer
// than it may.
func TestDiscoveryIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, p := followed(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := u.resolve(ctx, u.endpoints[0]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			p.failed(errors.New("the API server refuses"))
		}()
		start := time.Now()
		if err := u.resolve(t.Context(), u.endpoints[0]); err == nil || !strings.Contains(err.Error(), "refuses") || time.Since(start) != time.Second {
			t.Errorf("with the first answer, after %v: %v", time.Since(start), err)
		}
		p.found([]lookup.Discovered{at("10.0.0.1:5432", 0)}, nil)
		if err := u.resolve(t.Context(), u.endpoints[0]); err != nil {
			t.Errorf("with the second: %v", err)
		}
	})
}

// TestDiscoveryIsNotForClients asserts that clients learn neither names and ports of the
// cluster nor where its API server is; the record has both.
func TestDiscoveryIsNotForClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, p := followed(t)
		for want, say := range map[string]func(){
			"no address can be used": func() { p.found(nil, errors.New("secret-port 5432 at 10.0.0.1")) },
			"discovery failed": func() {
				p.failed(&net.OpError{Op: "dial", Err: &net.DNSError{Err: "secret at 10.0.0.1", Name: "api"}})
			},
		} {
			say()
			_, err := u.connect(t.Context(), noProgress)
			if err == nil || !strings.Contains(err.Error(), "10.0.0.1") {
				t.Fatalf("the record has %v", err)
			}
			if public := ending.ForClient(err); public.Err.Error() != want || public.Reason != err.Reason {
				t.Errorf("the client is told %v, want %s", public, want)
			}
			if want == "discovery failed" && (err.Reason != outcome.DNS || err.Stage != outcome.StageDial) {
				t.Errorf("%s at %s", err.Reason, err.Stage)
			}
		}
	})
}

// TestTrialLeavesDiscoveryAlone asserts that a trial on demand uses the addresses of a
// running upstream, and does not follow their source a second time.
func TestTrialLeavesDiscoveryAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, p := followed(t)
		p.found([]lookup.Discovered{at("10.0.0.1:5432", 0)}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		trials := u.Trials(ctx)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(trials) != 1 || trials[0].Address != "10.0.0.1:5432" || p.calls != 1 {
			t.Errorf("%+v, and the source was followed %d times", trials, p.calls)
		}
	})
}

// TestTrialBeforeStart asserts that an upstream which does not run yet has addresses for a
// trial, and follows their source itself from the end of the trial on.
func TestTrialBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var following, most, calls int
		follow := func(ctx context.Context, found func([]lookup.Discovered, error), failed func(error)) {
			calls++
			following++
			most = max(most, following)
			found([]lookup.Discovered{at("10.0.0.1:5432", 0)}, nil)
			<-ctx.Done()
			following--
		}
		u, err := New(Config{Name: "u", Endpoints: []EndpointConfig{{Address: "kubernetes:default/db:5432", Discovery: &lookup.Discovery{Follow: follow}}}}, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		trials := u.Trials(ctx)
		run := u.Start(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); run() }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(trials) != 1 || following != 1 || most != 1 || calls != 2 {
			t.Errorf("%d trials; followed %d times, %d at once, %d now", len(trials), calls, most, following)
		}
		u.Retire()
		<-done
	})
}

// TestChangeLogIsShort asserts that the log of a change has what changed, and no list of
// all addresses.
func TestChangeLogIsShort(t *testing.T) {
	var b strings.Builder
	u, err := New(Config{Name: "u", Endpoints: []EndpointConfig{{Address: "db:1", Priority: 1}}}, Deps{Log: slog.New(slog.NewTextHandler(&b, nil))})
	if err != nil {
		t.Fatal(err)
	}
	many := func(from, n int) (out lookup.Places) {
		for i := range n {
			out.All = append(out.All, lookup.Place{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte((from + i) / 256), byte(from + i)}), 1)})
		}
		return out
	}
	for _, step := range []struct {
		from, n int
		want    string
	}{
		{0, 1000, ""},
		{0, 1000, ""},
		{1, 1000, `added=10.0.3.232:1 removed=10.0.0.0:1 addresses=1000`},
		{1001, 12, `added="10.0.3.233:1 10.0.3.234:1 10.0.3.235:1 10.0.3.236:1 10.0.3.237:1 10.0.3.238:1 10.0.3.239:1 10.0.3.240:1 10.0.3.241:1 10.0.3.242:1 and 2 more" removed=`},
	} {
		b.Reset()
		u.learned(u.endpoints[0], many(step.from, step.n))
		if got := b.String(); !strings.Contains(got, step.want) || (got == "") != (step.want == "") || len(got) > 800 {
			t.Errorf("from %d: %q, want %q", step.from, got, step.want)
		}
	}
}

func TestInheritDiscovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, p := followed(t)
		p.found([]lookup.Discovered{at("10.0.0.1:5432", 1)}, nil)
		cfg := old.cfg
		cfg.StateKey, old.cfg.StateKey = "same", "same"
		u, err := New(cfg, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		u.Inherit([]*Upstream{old})
		if m := u.members(); len(m) != 1 || m[0].distance != 1 || m[0].priority != 1 {
			t.Errorf("after a reload: %+v", m)
		}
	})
}
