package l4

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// nonsense is the first byte of clients whose server closes because of what they send.
const nonsense = 'x'

// closesOnNonsense echoes, unless the client's first byte is nonsense.
func closesOnNonsense(c io.ReadWriter) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err == nil && first[0] != nonsense {
		c.Write(first)
		io.Copy(c, c)
	}
}

// pgStartupOf is a client's first message, with a user name of one letter.
func pgStartupOf(user byte) string {
	return "\x00\x00\x00\x10\x00\x03\x00\x00user\x00" + string(user) + "\x00\x00"
}

// What a client sends must not affect other clients: a server that closes because of it
// is healthy. The same holds for health without a breaker.
func TestWhatAClientSaysOpensNoBreaker(t *testing.T) {
	plainTLS := func(t *testing.T) Config {
		cert, pool := selfSigned(t)
		return tlsUpstream(backend(t, func(c *net.TCPConn) {
			closesOnNonsense(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}))
		}),
			&tls.Config{ServerName: "localhost", RootCAs: pool})
	}
	postgres := func(t *testing.T) Config {
		return starttlsUpstream(t, "postgres", func(cfg *tls.Config) string {
			return starttlsBackend(t, "", 8, "S", cfg, func(s *tls.Conn) {
				startup := make([]byte, len(pgStartupOf('a')))
				if _, err := io.ReadFull(s, startup); err == nil && !strings.Contains(string(startup), "x\x00\x00") {
					io.WriteString(s, "R\x00\x00\x00\x08\x00\x00\x00\x00")
					io.Copy(s, s)
				}
			})
		})
	}
	mysql := func(t *testing.T) Config {
		return starttlsUpstream(t, "mysql", func(cfg *tls.Config) string {
			return backend(t, func(c *net.TCPConn) {
				io.WriteString(c, mysqlHello)
				request := make([]byte, 36)
				if _, err := io.ReadFull(c, request); err != nil || request[12] == nonsense { // the character set
					return
				}
				if s := tls.Server(c, cfg); s.Handshake() == nil {
					mysqlEcho(s)
				}
			})
		})
	}
	struck := strings.Replace(mysqlHello, "\x00\x8a\x21", "\x00\x82\x21", 1)
	for _, tt := range []struct {
		name      string
		cfg       func(*testing.T) Config
		bad, good func(t *testing.T, f *fixture)
	}{
		{"a server that closes", func(t *testing.T) Config {
			return oneUpstream(backend(t, func(c *net.TCPConn) { closesOnNonsense(c) }))
		}, says1(string(nonsense)), pings},
		{"a server that resets", func(t *testing.T) Config {
			return oneUpstream(backend(t, func(c *net.TCPConn) { closesOnNonsense(c); c.SetLinger(0) }))
		}, says1(string(nonsense)), pings},
		{"a server with TLS", plainTLS, says1(string(nonsense)), pings},
		{"a postgres server", postgres, says1(pgStartupOf(nonsense)), func(t *testing.T, f *fixture) {
			c := f.client(0)
			io.WriteString(c, pgStartupOf('a'))
			hear(t, c, "R\x00\x00\x00\x08\x00\x00\x00\x00")
		}},
		{"a mysql server that ends within TLS", mysql, says1(strings.Replace(mysqlReply, "\x01\x21", "\x01"+string(nonsense), 1)), func(t *testing.T, f *fixture) {
			c := f.client(0)
			hear(t, c, struck)
			io.WriteString(c, mysqlReply)
			hear(t, c, "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg(t)
			cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
			f := serve(t, Options{}, cfg)
			for range 6 {
				tt.bad(t, f)
				if r := f.record(); r.Stage == outcome.StagePermit {
					t.Fatalf("refused: %+v", r)
				}
				if heard, cause := f.upstreams[0].members()[0].takeHeard(); heard == policy.Failure {
					t.Fatalf("health hears of a failure: %s", cause)
				}
			}
			tt.good(t, f)
			if a := f.upstreams[0].members()[0]; a.breaker.State() != policy.Closed {
				t.Errorf("the breaker is %v", a.breaker.State())
			}
		})
	}
	t.Run("a destination", func(t *testing.T) {
		cfg := egress(policy.Rule{Hosts: []string{"localhost"}, Upstream: "out"})
		cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
		f := serve(t, Options{}, cfg)
		_, port, _ := net.SplitHostPort(backend(t, func(c *net.TCPConn) { closesOnNonsense(c) }))
		for range 6 {
			c, reply := f.socks("localhost:" + port)
			if reply != 0 {
				t.Fatalf("reply %d", reply)
			}
			c.Write([]byte{nonsense})
			io.Copy(io.Discard, c)
			c.Close()
		}
		c, reply := f.socks("localhost:" + port)
		if reply != 0 {
			t.Fatalf("an honest client gets reply %d", reply)
		}
		ping(t, c)
	})
}

// says1 is a client that sends text and reads until the server closes.
func says1(text string) func(*testing.T, *fixture) {
	return func(t *testing.T, f *fixture) {
		c := f.client(0)
		io.WriteString(c, text)
		io.Copy(io.Discard, c)
		c.Close()
	}
}

func pings(t *testing.T, f *fixture) { ping(t, f.client(0)) }

// A server that reports that it is at its limit is healthy, and its message reaches the
// client every time.
func TestAFullServerOpensNoBreaker(t *testing.T) {
	full := func(code string) string { return "\x17\x00\x00\x00\xff" + code + "Too many connections" }
	for protocol, reply := range map[string]string{"mysql": full("\x10\x04"), "smtp": "421 4.7.0 too many connections\r\n"} {
		t.Run(protocol, func(t *testing.T) {
			addr := backend(t, func(c *net.TCPConn) { io.WriteString(c, reply) })
			cfg := tlsUpstream(addr, &tls.Config{ServerName: "localhost"})
			cfg.Upstreams[0].StartTLS = protocol
			cfg.Upstreams[0].Breaker = policy.BreakerConfig{Failures: 2, Open: time.Hour}
			f := serve(t, Options{}, cfg)
			for range 6 {
				if text, err := io.ReadAll(f.client(0)); err != nil || string(text) != reply {
					t.Fatalf("the client is told %q, %v", text, err)
				}
			}
			if r := f.record(); r.Reason != outcome.StartTLSRefused {
				t.Errorf("record: %+v", r)
			}
			if heard, _ := f.upstreams[0].members()[0].takeHeard(); heard != policy.Success {
				t.Errorf("health hears %v", heard)
			}
		})
	}
}

// alertFrom is an alert of the peer, as crypto/tls returns it.
func alertFrom(t *testing.T, number uint8) error {
	client, server := net.Pipe()
	defer client.Close()
	go io.Copy(io.Discard, server)                     // ends with the pipe
	go server.Write([]byte{21, 3, 3, 0, 2, 2, number}) // ends with the pipe
	err := tls.Client(client, &tls.Config{InsecureSkipVerify: true}).Handshake()
	if alertNumber(err) != number {
		t.Fatalf("alert %d is %v, number %d", number, err, alertNumber(err))
	}
	return err
}

func TestOutcomeOf(t *testing.T) {
	busy := &starttls.RefusedError{Protocol: "mysql", Busy: true}
	theirs := &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	for _, tt := range []struct {
		reason       outcome.Reason
		err          error
		want, spoken policy.Outcome // before and after a byte from the client
	}{
		{outcome.OK, nil, policy.Success, policy.Success},
		{"", nil, policy.Neutral, policy.Neutral},
		{outcome.DownstreamReset, nil, policy.Neutral, policy.Neutral},
		{outcome.NoIdentity, nil, policy.Neutral, policy.Neutral},
		{outcome.DNS, nil, policy.Neutral, policy.Neutral},
		{outcome.Refused, sys("connect", syscall.ECONNREFUSED), policy.Failure, policy.Neutral},
		{outcome.Timeout, context.DeadlineExceeded, policy.Failure, policy.Neutral},
		{outcome.UpstreamEarlyClose, nil, policy.Failure, policy.Neutral},
		{outcome.UpstreamEarlyClose, sys("read", syscall.ECONNRESET), policy.Failure, policy.Neutral},
		{outcome.StartTLSRefused, &starttls.RefusedError{}, policy.Failure, policy.Neutral},
		{outcome.StartTLSRefused, &outcome.Error{Err: busy}, policy.Success, policy.Success},
		{outcome.UpstreamTLS, theirs, policy.Failure, policy.Failure},
		{outcome.UpstreamTLS, io.EOF, policy.Failure, policy.Neutral},
		{outcome.UpstreamTLS, tls.RecordHeaderError{}, policy.Failure, policy.Neutral},
		{outcome.UpstreamTLSRejected, alertFrom(t, 42), policy.Failure, policy.Failure},
		{outcome.UpstreamTLSRejected, alertFrom(t, 48), policy.Failure, policy.Failure},
		{outcome.UpstreamTLSRejected, alertFrom(t, 116), policy.Failure, policy.Failure},
		{outcome.UpstreamTLSRejected, alertFrom(t, 80), policy.Failure, policy.Neutral}, // internal_error
		{outcome.UpstreamTLSRejected, alertFrom(t, 40), policy.Failure, policy.Neutral}, // handshake_failure
	} {
		if got, after := outcomeOf(tt.reason, tt.err, false), outcomeOf(tt.reason, tt.err, true); got != tt.want || after != tt.spoken {
			t.Errorf("%s, %v: %v, and %v after the client has spoken; want %v, %v", tt.reason, tt.err, got, after, tt.want, tt.spoken)
		}
	}
}

// stalling is an upstream with one address that accepts no connection before until.
type stalling struct{ until time.Time }

func (s *stalling) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := task.Wait(ctx, time.Until(s.until), nil); err != nil {
		return nil, err
	}
	return accepts(ctx)
}

// burst connects n sessions at once and returns the errors of those that failed.
func burst(t *testing.T, u *Upstream, n int) (failed []error) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			conn, err := u.connect(t.Context(), func(outcome.Stage, candidate, int) {})
			if err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
				return
			}
			conn.succeeded()
			conn.closeRaw()
		})
	}
	all.Wait()
	return failed
}

// A server that stalls for no longer than its clients wait loses none of them, and gets
// new ones at once: many attempts at the same time count as one failure.
func TestAStallIsNotManyFailures(t *testing.T) {
	for _, tt := range []struct {
		name      string
		endpoints []string
		stall     time.Duration
		connect   ConnectConfig
	}{
		{"a sole address", []string{"127.0.0.1:1"}, 4 * time.Second, ConnectConfig{}},
		{"a sole address, nearly for the whole timeout", []string{"127.0.0.1:1"}, 9 * time.Second, ConnectConfig{}},
		{"a sole address with a short attempt_timeout", []string{"127.0.0.1:1"}, 4 * time.Second, ConnectConfig{AttemptTimeout: 2 * time.Second}},
		{"one address of each family", []string{"127.0.0.1:1", "[::1]:1"}, 4 * time.Second, ConnectConfig{}},
		{"two addresses", []string{"127.0.0.1:1", "127.0.0.2:1"}, 4 * time.Second, ConnectConfig{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stalling{until: time.Now().Add(tt.stall)}
				u, err := newUpstream(UpstreamConfig{Name: "u", Endpoints: endpointsOf(tt.endpoints...), Connect: tt.connect,
					Breaker: policy.BreakerConfig{Failures: 5, Open: 5 * time.Second, MaxOpen: 30 * time.Second}}, upstreamDeps{dial: s.dial})
				if err != nil {
					t.Fatal(err)
				}
				if failed := burst(t, u, 50); len(failed) > 0 {
					t.Errorf("%d of 50 failed, the first: %v", len(failed), failed[0])
				}
				start := time.Now()
				if failed := burst(t, u, 10); len(failed) > 0 || time.Since(start) > 0 {
					t.Errorf("after the stall %d of 10 failed, in %v", len(failed), time.Since(start))
				}
			})
		})
	}
}

// A session whose attempts have failed waits for the trial of the breaker that has
// opened meanwhile, and continues after the trial succeeds. A new session is refused at
// once.
func TestSessionsWaitForTheTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, alive := time.Now(), 5*time.Second
		answer := func(ctx context.Context) (net.Conn, error) {
			if time.Since(begun) < alive {
				return after(100*time.Millisecond, refuses)(ctx)
			}
			return accepts(ctx)
		}
		f := &fakeNet{began: begun, answer: answers{"127.0.0.1:1": answer}}
		u, err := newUpstream(UpstreamConfig{Name: "u", Endpoints: endpointsOf("127.0.0.1:1"),
			Breaker: policy.BreakerConfig{Failures: 2, Open: 7 * time.Second, MaxOpen: time.Minute}}, upstreamDeps{dial: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan []error)
		go func() { done <- burst(t, u, 20) }()
		time.Sleep(time.Second)
		if a := u.members()[0]; a.breaker.State() != policy.Open {
			t.Fatalf("the breaker is %v after %v", a.breaker.State(), f.log)
		}
		start := time.Now()
		_, failure := u.connect(t.Context(), func(outcome.Stage, candidate, int) {})
		if failure == nil || failure.Reason != outcome.BreakerOpen || time.Since(start) > 0 {
			t.Errorf("a new session: %v after %v, want a refusal at once", failure, time.Since(start))
		}
		if failed := <-done; len(failed) > 0 {
			t.Errorf("%d of 20 failed, the first: %v\n%s", len(failed), failed[0], strings.Join(f.log, "\n"))
		}
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("served after %v, the trial was due after 7 s", took)
		}
	})
}

// A failure that no client waited for does not count: neither that of a stopped session
// nor one in a dialogue.
func TestStoppedDialogueIsNeutral(t *testing.T) {
	u := testUpstream(t, "127.0.0.1:1")
	c, ok := u.members()[0].permit(time.Now(), 0)
	if !ok {
		t.Fatal("not permitted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	conn := &upstreamConn{upstream: u, candidate: c}
	timeout := &starttls.SideError{Side: starttls.Upstream, Op: "read", Err: context.DeadlineExceeded}
	if e := conn.dialogueError(ctx, timeout); e.Reason != outcome.Timeout {
		t.Errorf("%v", e)
	}
	if heard, _ := c.at.takeHeard(); heard != policy.Neutral || !conn.told.Load() {
		t.Errorf("heard %v, told %v", heard, conn.told.Load())
	}
}
