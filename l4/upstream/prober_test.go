package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
	"ambassador/policy"
)

// says accepts a connection whose server sends text, and then reads.
func says(text string) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { // ends with the connection
			io.Copy(io.Discard, theirs)
			theirs.Close()
		}()
		go io.WriteString(theirs, text) // ends with the connection
		return ours, nil
	}
}

// proved is an upstream of one address whose prober runs in a bubble.
type proved struct {
	*Upstream
	net *fakeNet
	t   *testing.T
}

// running runs u until the returned function is called.
func running(t *testing.T, u *Upstream) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); u.run(ctx) }() // stop waits for it
	return func() { cancel(); <-done }
}

// prove runs test with an upstream of 127.0.0.1:1, whose dials get answer.
func prove(t *testing.T, cfg Config, answer func(context.Context) (net.Conn, error), test func(p *proved)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": answer}}
		cfg.Name, cfg.Endpoints = "u", endpointsOf("127.0.0.1:1")
		u, err := New(cfg, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, u)()
		test(&proved{u, f, t})
	})
}

func (p *proved) address() *Address { return p.members()[0].Address }

// session runs one whole session with the outcome r.
func (p *proved) session(r outcome.Reason) {
	p.t.Helper()
	conn, err := p.connect(p.t.Context(), noProgress)
	if err != nil {
		p.t.Fatal(err)
	}
	conn.Settle(r, errors.New("as the test wants it"))
	conn.closePolitely()
}

// await sleeps until the verdict is want, at most within, and returns how long it took.
func (p *proved) await(want policy.Health, within time.Duration) time.Duration {
	p.t.Helper()
	start := time.Now()
	for p.address().verdict() != want {
		if time.Since(start) > within {
			p.t.Fatalf("%s after %v, want %s", p.address().verdict(), within, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

func (p *proved) dials() int {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	return len(p.net.log)
}

var testHealth = HealthConfig{Interval: 5 * time.Second, IdleInterval: time.Minute, Rise: 2, Fall: 3}

func TestHealthFollowsTheServer(t *testing.T) {
	var dead atomic.Bool
	answer := func(ctx context.Context) (net.Conn, error) {
		if dead.Load() {
			return refuses(ctx)
		}
		return says("")(ctx)
	}
	health := testHealth
	health.IdleInterval = 0
	prove(t, Config{Health: health}, answer, func(p *proved) {
		p.await(policy.Healthy, time.Second)
		if p.reached.Load() == nil {
			t.Error("a passed probe is no proof that the upstream was reached")
		}
		dead.Store(true)
		if took := p.await(policy.Unhealthy, 20*time.Second); took < 9*time.Second {
			t.Errorf("unhealthy after %v, want three intervals", took)
		}
		_, err := p.connect(p.t.Context(), noProgress)
		if err == nil || err.Reason != outcome.NoEndpoint || !strings.Contains(err.Error(), "unhealthy") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a session while all are unhealthy: %v", err)
		}
		dead.Store(false)
		// rise × interval, plus jitter, plus hearTimeout
		if took := p.await(policy.Healthy, 12*time.Second); took < 4*time.Second {
			t.Errorf("healthy after %v, want two probes", took)
		}
		p.session(outcome.OK)
	})
}

// If the only address works again, sessions use it after one good probe: more probes
// would only delay them.
func TestTheOnlyAddressNeedNotRise(t *testing.T) {
	var dead atomic.Bool
	answer := func(ctx context.Context) (net.Conn, error) {
		if dead.Load() {
			return refuses(ctx)
		}
		return says("")(ctx)
	}
	health := testHealth
	health.IdleInterval, health.Rise = 0, 100
	prove(t, Config{Health: health}, answer, func(p *proved) {
		p.await(policy.Healthy, time.Second)
		dead.Store(true)
		p.await(policy.Unhealthy, 20*time.Second)
		if _, err := p.connect(p.t.Context(), noProgress); err == nil || err.Reason != outcome.NoEndpoint {
			t.Errorf("while it is dead: %v", err)
		}
		dead.Store(false)
		time.Sleep(6 * time.Second)
		for range 3 {
			p.session(outcome.OK)
		}
		p.session(outcome.UpstreamEarlyClose)
		if _, err := p.connect(p.t.Context(), noProgress); err == nil || err.Reason != outcome.NoEndpoint {
			t.Errorf("after it failed again: %v", err)
		}
	})
}

func TestSessionsCountAsProbes(t *testing.T) {
	prove(t, Config{Health: testHealth}, says(""), func(p *proved) {
		p.await(policy.Healthy, time.Second)
		before := p.dials()
		for range 60 {
			time.Sleep(2 * time.Second)
			p.session(outcome.OK)
		}
		if got := p.dials() - before; got != 60 {
			t.Errorf("%d dials for 60 sessions: probes beside them", got)
		}
		for start := time.Now(); p.address().verdict() == policy.Healthy; {
			if time.Since(start) > 20*time.Second {
				t.Fatal("healthy, though the last session of each interval failed")
			}
			p.session(outcome.OK)
			p.session(outcome.UpstreamEarlyClose)
			time.Sleep(time.Second)
		}
	})
}

func TestIdleAddressesAreProbedSeldom(t *testing.T) {
	prove(t, Config{Health: testHealth}, says(""), func(p *proved) {
		p.await(policy.Healthy, time.Second)
		before := p.dials()
		time.Sleep(10 * time.Minute)
		if got := p.dials() - before; got < 8 || got > 11 {
			t.Errorf("%d probes in ten idle minutes, want one a minute", got)
		}
	})
}

// Probers step in small groups, so that the process wakes less often, but not at the
// same time as those of other processes.
func TestProbersStepTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{}}
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("127.0.0.%d:1", i+1))
			f.answer[names[i]] = says("")
		}
		health := testHealth
		health.IdleInterval = 0
		u, err := New(Config{Name: "u", Endpoints: endpointsOf(names...), Health: health}, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); u.run(ctx) }()
		time.Sleep(10 * time.Minute)
		cancel()
		<-done
		last, moments := map[string]time.Duration{}, map[time.Duration]int{}
		for _, line := range f.log {
			at, address, _ := strings.Cut(line, " ")
			moment, err := time.ParseDuration(at)
			if err != nil {
				t.Fatal(err)
			}
			moments[moment]++
			if before, ok := last[address]; ok && (moment-before < 4*time.Second || moment-before > 6*time.Second+hearTimeout) {
				t.Errorf("%s is probed %v after the last time, want 4 to 6 s", address, moment-before)
			}
			last[address] = moment
		}
		if n := len(f.log); n < 20*100 || n > 20*150 {
			t.Errorf("%d probes in ten minutes, want about 120 of each address", n)
		}
		if n := float64(len(f.log)) / float64(len(moments)); n < 2 || n > 5 {
			t.Errorf("%.1f probes at a moment, want about %d", n, task.GroupSize)
		}
	})
}

func TestTheProbeIsTheTrial(t *testing.T) {
	var dead atomic.Bool
	answer := func(ctx context.Context) (net.Conn, error) {
		if dead.Load() {
			return refuses(ctx)
		}
		return says("")(ctx)
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": answer, "127.0.0.2:1": says("")}}
		u, err := New(Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1", "127.0.0.2:1"), Health: testHealth,
			Breaker: policy.BreakerConfig{Failures: 2, Open: 3 * time.Second, MaxOpen: 30 * time.Second}}, Deps{Dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, u)()
		time.Sleep(time.Second)
		breaker := u.members()[0].breaker
		session := func() (attempts int) {
			conn, err := u.connect(t.Context(), func(stage outcome.Stage, _, _ string, n int) { attempts = n })
			if err != nil {
				t.Fatal(err)
			}
			conn.Succeeded()
			conn.closePolitely()
			return attempts
		}
		dead.Store(true)
		for breaker.State() != policy.Open {
			session()
		}
		for range 200 { // 20 seconds: trials come due, and the prober makes them
			if n := session(); n != 1 {
				t.Fatalf("a session was sacrificed for a trial: %d attempts", n)
			}
			time.Sleep(100 * time.Millisecond)
		}
		dead.Store(false)
		start := time.Now()
		for breaker.State() != policy.Closed {
			if session(); time.Since(start) > 12*time.Second {
				t.Fatalf("breaker %v after %v", breaker.State(), time.Since(start))
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// A MySQL server counts probes as failed clients, and locks the host out.
func TestMySQLIsProbedSparingly(t *testing.T) {
	greeting := "\x4a\x00\x00\x00\x0a8.0.36\x00"
	prove(t, Config{Health: testHealth}, says(greeting), func(p *proved) {
		p.await(policy.Healthy, time.Second)
		before := p.dials()
		time.Sleep(time.Hour)
		if got := p.dials() - before; got != 0 {
			t.Errorf("%d probes in an idle hour", got)
		}
	})
	var dead atomic.Bool
	answered := 0
	flapping := func(ctx context.Context) (net.Conn, error) {
		if dead.Load() {
			return refuses(ctx)
		}
		answered++
		return says(greeting)(ctx)
	}
	breaker := policy.BreakerConfig{Failures: 1, Open: time.Second, MaxOpen: 2 * time.Second}
	prove(t, Config{Health: testHealth, Breaker: breaker, Connect: ConnectConfig{Attempts: 1}}, flapping, func(p *proved) {
		p.await(policy.Healthy, time.Second)
		for range 20 { // sessions fail to connect, but each probe succeeds
			dead.Store(true)
			p.connect(p.t.Context(), noProgress)
			dead.Store(false)
			time.Sleep(15 * time.Second)
		}
		if answered > maxGreetings {
			t.Errorf("%d probes without a session between", answered)
		}
		p.session(outcome.OK) // the address is not locked out for good
		time.Sleep(10 * time.Second)
		if p.address().verdict() != policy.Healthy || p.address().breaker.State() != policy.Closed {
			t.Errorf("after a session: %s, breaker %v", p.address().verdict(), p.address().breaker.State())
		}
	})
}

func TestProbeOutcomes(t *testing.T) {
	hangUp := func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		theirs.Close()
		return ours, nil
	}
	ponging := func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { // ends with the connection
			buf := make([]byte, 64)
			if n, _ := theirs.Read(buf); string(buf[:n]) == "PING\r\n" {
				io.WriteString(theirs, "+PO")
				io.WriteString(theirs, "NG\r\n")
			}
			io.Copy(io.Discard, theirs)
		}()
		return ours, nil
	}
	with := func(h HealthConfig) HealthConfig {
		h.Interval, h.Fall = time.Second, 1
		return h
	}
	for _, tt := range []struct {
		name   string
		health HealthConfig
		answer func(context.Context) (net.Conn, error)
		cause  string // empty: healthy
	}{
		{"silence is well", with(HealthConfig{}), says(""), ""},
		{"a greeting is well", with(HealthConfig{}), says("220 mail\r\n"), ""},
		{"an end is not", with(HealthConfig{}), hangUp, "EOF"},
		{"nor a SYN without an answer", with(HealthConfig{Timeout: 2 * time.Second}), hangs, "deadline exceeded"},
		{"the expected answer", with(HealthConfig{Send: "PING\r\n", Expect: "+PONG"}), ponging, ""},
		{"the expected greeting", with(HealthConfig{Expect: "220 "}), says("220 mail\r\n"), ""},
		{"another answer", with(HealthConfig{Send: "HELLO\r\n", Expect: "+PONG"}), says("-ERR unknown\r\n"), `wants "+PONG", the server said "-ERR unknown`},
		{"an answer that quotes what was sent", with(HealthConfig{Send: "AUTH \"hunter2\"\r\n", Expect: "+OK"}), says("-ERR unknown 'AUTH' of 'hunter2'\r\n"), `the server said "-ERR unknown '***' of '***'`},
		{"no answer", with(HealthConfig{Expect: "+PONG"}), says(""), `the server said ""`},
		{"an end instead", with(HealthConfig{Expect: "+PONG"}), hangUp, `the server said ""`},
		{"another question", with(HealthConfig{Check: func(context.Context, netip.Addr) error { return nil }}), says(""), ""},
		{"another question answered badly", with(HealthConfig{Check: func(_ context.Context, ip netip.Addr) error { return errors.New(ip.String() + " is a standby") }}), says(""), "127.0.0.1 is a standby"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			prove(t, Config{Health: tt.health}, tt.answer, func(p *proved) {
				time.Sleep(3 * time.Second)
				st := p.address().status()
				if healthy := st.Health == policy.Healthy; healthy != (tt.cause == "") || !strings.Contains(st.LastError, tt.cause) {
					t.Errorf("%s, last error %q; want %q", st.Health, st.LastError, tt.cause)
				}
			})
		})
	}
}

// A server with starttls: mysql gets no more probes than a MySQL server without. All
// that end after its greeting count: a success, a refused certificate, refused TLS.
func TestTrialsThroughSTARTTLSAreCounted(t *testing.T) {
	cert, pool := l4test.SelfSigned(t)
	_, other := l4test.SelfSigned(t)
	now := time.Now()
	noTLS := strings.Replace(l4test.MySQLHello, "\x00\x8a\x21", "\x00\x82\x21", 1)
	const full = "\x17\x00\x00\x00\xff\x10\x04Too many connections"
	for _, tt := range []struct {
		name, hello string
		roots       *x509.CertPool
		health      HealthConfig
		want        policy.Health
		least, most int // connections in an hour
	}{
		{"well", l4test.MySQLHello, pool, testHealth, policy.Healthy, 1, 1},
		{"distrusted", l4test.MySQLHello, other, testHealth, policy.Unknown, maxGreetings, maxGreetings},
		{"without TLS", noTLS, pool, testHealth, policy.Unknown, maxGreetings, maxGreetings},
		{"full, which it does not count", full, pool, testHealth, policy.Healthy, 60, 4000},
		{"well, without health", l4test.MySQLHello, pool, HealthConfig{}, policy.Unknown, 1, 1},
		{"distrusted, without health", l4test.MySQLHello, other, HealthConfig{}, policy.Unknown, maxGreetings, maxGreetings},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var seen atomic.Int64
			answer := func(context.Context) (net.Conn, error) {
				seen.Add(1)
				ours, theirs := net.Pipe()
				go func() { // ends with the connection
					defer theirs.Close()
					io.WriteString(theirs, tt.hello)
					if _, err := io.ReadFull(theirs, make([]byte, 36)); err == nil {
						io.Copy(io.Discard, tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{cert}}))
					}
				}()
				return ours, nil
			}
			cfg := Config{StartTLS: "mysql", Health: tt.health, Required: true, TLS: func(string, string) (*tls.Config, error) {
				return &tls.Config{ServerName: "localhost", RootCAs: tt.roots, Time: func() time.Time { return now }}, nil
			}}
			prove(t, cfg, answer, func(p *proved) {
				time.Sleep(time.Hour)
				if n := int(seen.Load()); n < tt.least || n > tt.most || p.address().verdict() != tt.want {
					t.Errorf("%s after %d connections, want %s after %d to %d", p.address().verdict(), n, tt.want, tt.least, tt.most)
				}
				if reached := p.reached.Load() != nil; reached != (tt.roots == pool && tt.hello == l4test.MySQLHello) {
					t.Errorf("reached: %t", reached)
				}
			})
		})
	}
}

// The times that probes take to connect do not count as those of sessions.
func TestProbesAreNotTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNet{began: time.Now(), answer: answers{"127.0.0.1:1": says("")}}
		var phases []Phase
		cfg := Config{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"), Health: HealthConfig{Interval: time.Second}}
		u, err := New(cfg, Deps{Dial: f.dial, Observer: Observer{Phase: func(_, _ string, p Phase, _ time.Duration) { phases = append(phases, p) }}})
		if err != nil {
			t.Fatal(err)
		}
		stop := u.ask(t.Context())
		time.Sleep(time.Minute)
		stop()
		if len(phases) > 0 || u.reached.Load() == nil {
			t.Errorf("probes are timed: %v", phases)
		}
		conn, failure := u.connect(t.Context(), noProgress)
		if failure != nil {
			t.Fatal(failure)
		}
		conn.closePolitely()
		if !slices.Equal(phases, []Phase{PhaseDial, PhaseTotal}) {
			t.Errorf("a session is timed: %v", phases)
		}
	})
}

// If the password cannot be read, no probe connects, and the verdict does not change.
func TestLoginThatIsNotReady(t *testing.T) {
	cfg := Config{StartTLS: "mysql", Health: testHealth, TLS: func(string, string) (*tls.Config, error) { return nil, errors.New("unasked") }}
	cfg.Health.LogIn = func() (string, string, error) { return "", "", errors.New("no such file") }
	prove(t, cfg, says(l4test.MySQLHello), func(p *proved) {
		time.Sleep(time.Hour)
		if n := p.dials(); n != 0 || p.address().verdict() != policy.Unknown || p.address().breaker.State() != policy.Closed {
			t.Errorf("%d connections, %s", n, p.address().verdict())
		}
	})
}
