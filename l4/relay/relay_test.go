package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/tlsrecord"
)

// bound is how long a test waits for what should happen at once.
const bound = 20 * time.Second

// The behaviour tests run against every engine and every kind of leg: they test the
// package's promises, not those of an implementation.

// engines are the implementations.
var engines = map[string]func() *Engine{"portable": newPortable, "epoll": New}

func newPortable() *Engine {
	os.Setenv("AMBASSADOR_TEST_RELAY", "portable")
	defer os.Unsetenv("AMBASSADOR_TEST_RELAY")
	return New()
}

// kinds are the legs: what the downstream and the upstream end are.
var kinds = []struct {
	name     string
	down, up kind
}{
	{"tcp-tcp", kind{}, kind{}},
	{"unix-tcp", kind{unix: true}, kind{}},
	{"tcp-unix", kind{}, kind{unix: true}},
	{"tcp-tls13", kind{}, kind{tls: tls.VersionTLS13}},
	{"tcp-tls12", kind{}, kind{tls: tls.VersionTLS12}},
	{"tls13-tcp", kind{tls: tls.VersionTLS13, terminates: true}, kind{}},
	{"tcp-followed", kind{}, kind{tls: tls.VersionTLS13, followed: true}},
	{"followed-tcp", kind{tls: tls.VersionTLS13, followed: true, terminates: true}, kind{}},
}

type kind struct {
	unix       bool
	tls        uint16
	terminates bool // we are the server
	followed   bool // a Shadow follows the records
}

// end is the application at the far end of a leg.
type end struct {
	net.Conn
	raw net.Conn
}

func (e *end) closeWrite() error {
	if c, ok := e.Conn.(*tls.Conn); ok {
		if err := c.CloseWrite(); err != nil {
			return err
		}
	}
	return e.raw.(interface{ CloseWrite() error }).CloseWrite()
}

// reset ends with RST where there is one.
func (e *end) reset() {
	if c, ok := e.raw.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	e.raw.Close()
}

// pair is a session between two applications.
type pair struct {
	t        *testing.T
	down, up *end
	session  Session
	done     chan Result
	settled  chan struct{}
	engine   *Engine
}

// everywhere runs a test on every engine and kind of leg.
func everywhere(t *testing.T, f func(t *testing.T, p *pair), change ...func(*Config)) {
	t.Helper()
	for name, engine := range engines {
		for _, k := range kinds {
			t.Run(name+"/"+k.name, func(t *testing.T) { f(t, newPair(t, engine(), k.down, k.up, change...)) })
		}
	}
}

func newPair(t *testing.T, e *Engine, downKind, upKind kind, change ...func(*Config)) *pair {
	t.Helper()
	return newPairAfter(t, e, downKind, upKind, func(_ *pair, cfg *Config) {
		for _, f := range change {
			f(cfg)
		}
	})
}

// newPairAfter starts a session once before has been called.
func newPairAfter(t *testing.T, e *Engine, downKind, upKind kind, before func(*pair, *Config)) *pair {
	t.Helper()
	p := &pair{t: t, done: make(chan Result, 2), settled: make(chan struct{}, 2), engine: e}
	cfg := Config{Owner: &owner{func() { p.settled <- struct{}{} }, func(r Result) { p.done <- r }}}
	p.down, cfg.Downstream = newLeg(t, downKind)
	p.up, cfg.Upstream = newLeg(t, upKind)
	for _, e := range []*end{p.down, p.up} {
		e.SetDeadline(time.Now().Add(bound))
	}
	if e.Budget == nil {
		e.Budget = &Budget{}
	}
	before(p, &cfg)
	p.session = e.Start(cfg)
	t.Cleanup(func() {
		p.session.Stop(errors.New("the test is over"))
		p.down.raw.Close()
		p.up.raw.Close()
		e.Close()
	})
	return p
}

// owner is an Owner of functions; nil ones are not called.
type owner struct {
	settled func()
	done    func(Result)
}

func (o *owner) Settled() {
	if o.settled != nil {
		o.settled()
	}
}

func (o *owner) Done(r Result) {
	if o.done != nil {
		o.done(r)
	}
}

func (p *pair) result() Result {
	p.t.Helper()
	select {
	case r := <-p.done:
		select {
		case <-p.done:
			p.t.Error("Done was called twice")
		default:
		}
		return r
	case <-time.After(bound):
		p.t.Fatal("the session does not end")
		return Result{}
	}
}

// newLeg connects an application to a leg.
func newLeg(t testing.TB, k kind) (*end, Leg) {
	t.Helper()
	network, address := "tcp", "127.0.0.1:0"
	if k.unix {
		network, address = "unix", filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if k.tls == 0 {
		return &end{far, far}, Plain(near, nil)
	}
	var log tlsrecord.KeyLog
	transport := NewTransport(near)
	var shadow *tlsrecord.Shadow
	asServer := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MaxVersion: k.tls}
	asClient := &tls.Config{InsecureSkipVerify: true, MaxVersion: k.tls}
	switch {
	case k.followed && k.terminates:
		shadow, asServer.KeyLogWriter = log.Server(near), &log
	case k.followed:
		shadow, asClient.KeyLogWriter = log.Client(near), &log
	}
	if shadow != nil {
		transport.Conn = shadow
	}
	theirs, ours := tls.Server(far, asServer), tls.Client(transport, asClient)
	if k.terminates {
		theirs, ours = tls.Client(far, asClient), tls.Server(transport, asServer)
	}
	handshake(t, theirs, ours)
	if shadow != nil && !shadow.Established(ours.ConnectionState()) {
		t.Fatal("the connection cannot be followed")
	}
	return &end{theirs, far}, TLS(ours, transport, nil)
}

var certificate = func() func(testing.TB) tls.Certificate {
	var once sync.Once
	var cert tls.Certificate
	return func(t testing.TB) tls.Certificate {
		once.Do(func() {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		})
		return cert
	}
}()

// ask writes a question, ends, and reads the answer to its end.
func ask(t *testing.T, e *end, question string) string {
	t.Helper()
	io.WriteString(e, question)
	if err := e.closeWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(e)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// A client that has ended gets its answer, however late; and so does a server that
// ends first.
func TestHalfCloseAndALateAnswer(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) { lateAnswer(t, p, p.down, p.up, Downstream) })
	everywhere(t, func(t *testing.T, p *pair) { lateAnswer(t, p, p.up, p.down, Upstream) })
}

func lateAnswer(t *testing.T, p *pair, asks, answers *end, first Side) {
	got := make(chan string, 1)
	go func() { got <- ask(t, asks, "question") }() // awaited below
	question, err := io.ReadAll(answers)
	if string(question) != "question" || err != nil {
		t.Fatalf("the question arrives as %q, %v", question, err)
	}
	if !p.session.HalfClosed() {
		t.Error("not half-closed after one FIN")
	}
	io.WriteString(answers, "late answer")
	answers.closeWrite()
	if s := <-got; s != "late answer" {
		t.Errorf("the answer arrives as %q", s)
	}
	r := p.result()
	if r.End != EndClosed || r.FirstClose != first || r.Truncated || r.Err != nil || r.Up+r.Down != int64(len("question")+len("late answer")) {
		t.Errorf("result %+v; want closed by %v first", r, first)
	}
}

func TestResetIsPassedOn(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) { passesReset(t, p, p.down, p.up, EndDownstreamReset, Downstream) })
	everywhere(t, func(t *testing.T, p *pair) { passesReset(t, p, p.up, p.down, EndUpstreamReset, Upstream) })
}

func passesReset(t *testing.T, p *pair, resets, other *end, want End, side Side) {
	io.WriteString(resets, "x")
	if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, unix := resets.raw.(*net.UnixConn); unix {
		return // unix sockets have no reset
	}
	resets.reset()
	wantReset(t, other)
	if r := p.result(); r.End != want || r.FirstClose != side || r.ErrSide != side || r.Err == nil {
		t.Errorf("result %+v; want %v", r, want)
	}
}

// wantReset reads on and expects a RST; on a unix socket, an end.
func wantReset(t *testing.T, e *end) {
	t.Helper()
	_, err := io.Copy(io.Discard, e)
	if _, unix := e.raw.(*net.UnixConn); !unix && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other end reads %v, want a reset", err)
	}
}

// A server that answers and resets while the client is still sending: the
// answer arrives, as it would on a direct connection.
func TestBytesBeforeAResetArrive(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, engine(), kind{}, kind{})
			io.WriteString(p.down, "unread by the server")
			io.ReadFull(p.up, make([]byte, 6))
			io.WriteString(p.up, "error: go away")
			p.up.raw.Close()              // with unread bytes: a RST behind the answer
			go io.Copy(p.down, endless{}) // ends with the connection
			got, _ := io.ReadAll(io.LimitReader(p.down, 14))
			if string(got) != "error: go away" {
				t.Errorf("the client reads %q", got)
			}
			if r := p.result(); r.End != EndUpstreamReset || r.FirstClose != Upstream {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// A server that closes both ways after its answer refuses later bytes with a RST,
// which is passed on to the client.
func TestServerGoneAfterItsFIN(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, engine(), kind{}, kind{})
			io.WriteString(p.up, "bye")
			p.up.raw.Close()
			if got, err := io.ReadAll(p.down); string(got) != "bye" || err != nil {
				t.Fatalf("the client reads %q, %v", got, err)
			}
			io.Copy(p.down, endless{})
			if r := p.result(); r.End != EndUpstreamReset || r.FirstClose != Upstream || r.Down != 3 {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// bulkSize is the number of bytes in each direction.
const bulkSize = 16 << 20

func TestBulkBothWaysAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		var wg sync.WaitGroup
		sums := make([][2][]byte, 2)
		for i, e := range []*end{p.down, p.up} {
			wg.Go(func() { sums[i][0] = sendOdd(e, uint64(i)) })
			wg.Go(func() { sums[1-i][1] = receive(e) })
		}
		wg.Wait()
		for i, s := range sums {
			if !bytes.Equal(s[0], s[1]) {
				t.Errorf("direction %d: sent %x, received %x", i, s[0], s[1])
			}
		}
		if r := p.result(); r.End != EndClosed || r.Up != bulkSize || r.Down != bulkSize || r.Up != p.session.Up() {
			t.Errorf("result %+v", r)
		}
	})
}

// sendOdd sends bulkSize random bytes in writes of odd sizes, ends, and returns
// their hash.
func sendOdd(e *end, seed uint64) []byte {
	r := mrand.New(mrand.NewPCG(seed, 7))
	hash, left := sha256.New(), bulkSize
	noise := make([]byte, 400_003)
	mrand.NewChaCha8([32]byte{byte(seed)}).Read(noise)
	for left > 0 {
		at := r.IntN(len(noise) / 2)
		b := noise[at : at+min(left, 1+r.IntN(len(noise)/2))]
		hash.Write(b)
		if _, err := e.Write(b); err != nil {
			return nil
		}
		left -= len(b)
	}
	e.closeWrite()
	return hash.Sum(nil)
}

func receive(e *end) []byte {
	hash := sha256.New()
	io.Copy(hash, e)
	return hash.Sum(nil)
}

// The counts change while bytes of any kind of flow move.
func TestCountsAreLive(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		for n := int64(1); n <= 3; n++ {
			io.WriteString(p.down, "x")
			io.ReadFull(p.up, make([]byte, 1))
			waitFor(t, func() bool { return p.session.Up() == n })
		}
		go sendOdd(p.up, 2) // ends with the test's connection
		io.ReadFull(p.down, make([]byte, bulkSize/2))
		waitFor(t, func() bool { return p.session.Down() > bulkSize/4 })
	})
}

// waitFor polls for a condition.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(bound); !ok(); runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatal("it does not come")
		}
	}
}

// A reader that does not read stops its sender, and costs us no memory.
func TestSlowReaderStopsTheSender(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		if p.down.Conn != p.down.raw {
			return // what is written below TLS is no record
		}
		t.Parallel()
		const much = 64 << 20
		blocked := make(chan int64, 1)
		p.down.SetWriteDeadline(time.Now().Add(time.Second))
		go func() { // awaited below
			n, _ := io.Copy(p.down.raw, io.LimitReader(endless{}, much))
			blocked <- n
		}()
		if n := <-blocked; n >= much {
			t.Errorf("%d bytes went to a reader that reads nothing", n)
		}
	})
}

func TestEarlyBytesGoFirst(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, engine(), kind{}, kind{}, func(c *Config) {
				c.Downstream.early = []byte("early up ")
				c.Upstream.early = []byte("early down ")
			})
			io.WriteString(p.down, "then this")
			p.down.closeWrite()
			io.WriteString(p.up, "and that")
			p.up.closeWrite()
			if got, err := io.ReadAll(p.up); string(got) != "early up then this" || err != nil {
				t.Errorf("the upstream reads %q, %v", got, err)
			}
			if got, err := io.ReadAll(p.down); string(got) != "early down and that" || err != nil {
				t.Errorf("the downstream reads %q, %v", got, err)
			}
			if r := p.result(); r.Up != 18 || r.Down != 19 {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	const short = 50 * time.Millisecond
	for _, tt := range []struct {
		name   string
		change func(*Config)
		first  func(*pair)
		want   End
	}{
		{"idle", func(c *Config) { c.Idle = short }, func(*pair) {}, EndIdle},
		{"idle though half-closed", func(c *Config) { c.Idle = short }, func(p *pair) { p.down.closeWrite() }, EndIdle},
		{"half-close idle", func(c *Config) { c.HalfCloseIdle = short }, func(p *pair) { p.down.closeWrite() }, EndHalfCloseIdle},
		{"lifetime of a busy session", func(c *Config) { c.Lifetime, c.Idle = short, time.Hour }, func(p *pair) { go io.Copy(p.down, endless{}); go io.Copy(io.Discard, p.up) }, EndLifetime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, p *pair) {
				tt.first(p)
				r := p.result()
				if r.End != tt.want || r.Duration < short {
					t.Errorf("result %+v; want %v", r, tt.want)
				}
				if tt.want != EndLifetime { // there the writer has met the reset
					wantReset(t, p.down)
				}
			}, tt.change)
		})
	}
}

// Activity restarts the idle limit: a busy session outlives it several times.
func TestIdleIsMeasuredFromTheLastByte(t *testing.T) {
	const idle = 300 * time.Millisecond
	for name, engine := range engines {
		for _, k := range kinds {
			t.Run(name+"/"+k.name, func(t *testing.T) {
				for range 10 {
					p := newPair(t, engine(), k.down, k.up, func(c *Config) { c.Idle = idle })
					if !isBusyFor(t, p, time.Second, idle) {
						continue // the host has stopped the test for so long
					}
					if r := p.result(); r.End != EndIdle || r.Duration < time.Second {
						t.Errorf("result %+v", r)
					}
					return
				}
				t.Error("the host is too busy to keep a session busy")
			})
		}
	}
}

// isBusyFor moves bytes all the time, and fails the test if the session ends. It returns
// false if it could move none for the idle limit.
func isBusyFor(t *testing.T, p *pair, d, idle time.Duration) bool {
	t.Helper()
	for start, last := time.Now(), time.Now(); time.Since(start) < d; last = time.Now() {
		io.WriteString(p.down, "x")
		if _, err := io.ReadFull(p.up, make([]byte, 1)); err != nil {
			r := p.result()
			if r.End == EndIdle && time.Since(last) >= idle {
				return false
			}
			t.Fatalf("ended though busy: %v, %+v", err, r)
		}
	}
	return true
}

func TestStopResetsBothSides(t *testing.T) {
	cause := errors.New("killed")
	everywhere(t, func(t *testing.T, p *pair) {
		go io.Copy(p.down, endless{}) // ends with the connection; blocks the session in a write
		p.session.Stop(cause)
		p.session.Stop(errors.New("second"))
		if r := p.result(); r.End != EndStopped || r.Cause != cause || r.FirstClose != None {
			t.Errorf("result %+v", r)
		}
		wantReset(t, p.up)
	})
	everywhere(t, func(t *testing.T, p *pair) {
		p.session.Stop(cause)
		wantReset(t, p.up)
		wantReset(t, p.down)
	})
}

func TestFinishIfIdle(t *testing.T) {
	cause := errors.New("drained")
	everywhere(t, func(t *testing.T, p *pair) {
		io.WriteString(p.down, "x")
		io.ReadFull(p.up, make([]byte, 1))
		waitFor(t, func() bool { return p.session.Up() == 1 })
		if p.session.FinishIfIdle(time.Hour, cause) {
			t.Fatal("finished a session that has just moved a byte")
		}
		if silent, last := p.session.Quiet(); silent > bound || last != Downstream {
			t.Errorf("quiet for %v since a byte of %v", silent, last)
		}
		if !p.session.FinishIfIdle(0, cause) {
			t.Fatal("did not finish an idle session")
		}
		for _, e := range []*end{p.down, p.up} {
			if rest, err := io.ReadAll(e); err != nil || len(rest) > 0 {
				t.Errorf("an end reads %q, %v; want a FIN", rest, err)
			}
		}
		if r := p.result(); r.End != EndStopped || r.Cause != cause {
			t.Errorf("result %+v", r)
		}
	})
	everywhere(t, func(t *testing.T, p *pair) {
		p.down.closeWrite()
		io.ReadAll(p.up)
		if p.session.FinishIfIdle(0, cause) {
			t.Error("finished a half-closed session, which waits for its answer")
		}
	})
}

// Bytes that wait for a slow reader keep a session busy, however long they wait.
func TestFinishIfIdleLeavesHeldBytes(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		if p.up.Conn != p.up.raw {
			return // a write of TLS that fails cannot be followed by others
		}
		sent := 0
		for block := make([]byte, 1<<20); ; { // until nobody takes more
			p.up.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := p.up.Write(block)
			sent += n
			if err != nil && p.session.Held() > 0 {
				break
			}
		}
		if p.session.FinishIfIdle(0, errors.New("drained")) {
			t.Fatal("finished a session that holds bytes for a slow reader")
		}
		p.up.SetWriteDeadline(time.Time{})
		p.up.closeWrite()
		if n, err := io.Copy(io.Discard, p.down); int(n) != sent || err != nil {
			t.Errorf("%d of %d bytes arrive, %v", n, sent, err)
		}
	})
}

func TestTruncation(t *testing.T) {
	p := newPair(t, New(), kind{}, kind{tls: tls.VersionTLS13})
	io.WriteString(p.up, "all but close_notify")
	p.up.raw.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(p.down); string(got) != "all but close_notify" || err != nil {
		t.Errorf("the client reads %q, %v", got, err)
	}
	p.down.closeWrite()
	if r := p.result(); r.End != EndClosed || !r.Truncated || r.FirstClose != Upstream {
		t.Errorf("result %+v; want a truncated close", r)
	}
}

// A server sends close_notify and then closes its socket. A client that only closes
// in its turn ends normally; a client that sends more is reset.
func TestServerGoneAfterCloseNotify(t *testing.T) {
	for name, engine := range engines {
		for _, more := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", name, more), func(t *testing.T) {
				p := newPair(t, engine(), kind{}, kind{tls: tls.VersionTLS13})
				io.WriteString(p.up, "bye")
				p.up.closeWrite()
				p.up.reset()
				if got, err := io.ReadAll(p.down); string(got) != "bye" || err != nil {
					t.Fatalf("the client reads %q, %v", got, err)
				}
				want := EndClosed
				if more {
					want = EndUpstreamReset
					io.Copy(p.down, endless{})
				}
				p.down.closeWrite()
				if r := p.result(); r.End != want || r.FirstClose != Upstream || r.Down != 3 || r.Truncated {
					t.Errorf("result %+v, want %v", r, want)
				}
			})
		}
	}
}

// The same if our close_notify is refused before the server's is read: only the
// order differs.
func TestServerGoneAfterCloseNotifyMeetsOurs(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			p := newPairAfter(t, engine(), kind{}, kind{tls: tls.VersionTLS13}, func(p *pair, _ *Config) {
				io.WriteString(p.up, "bye")
				p.up.closeWrite()
				p.up.reset()
				p.down.closeWrite()
			})
			if got, err := io.ReadAll(p.down); string(got) != "bye" || err != nil {
				t.Errorf("the client reads %q, %v", got, err)
			}
			if r := p.result(); r.End != EndClosed || r.Down != 3 || r.Truncated {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// A server that resets without close_notify has not ended properly, whichever
// operation gets the error: also if that is the write of our close_notify.
func TestResetThatOurCloseNotifyMeets(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			p := newPairAfter(t, engine(), kind{}, kind{tls: tls.VersionTLS13}, func(p *pair, _ *Config) {
				io.WriteString(p.up, "not all")
				p.up.reset()
				p.down.closeWrite()
			})
			wantReset(t, p.down)
			if r := p.result(); r.End != EndUpstreamReset {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// A FIN and a RST that are noticed at once: the RST counts, although a read returns
// only the FIN.
func TestResetRightBehindAFIN(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			p := newPairAfter(t, engine(), kind{}, kind{}, func(p *pair, _ *Config) {
				io.WriteString(p.down, "x")
				p.down.closeWrite()
				p.down.reset()
			})
			wantRead(t, p.up, "x")
			wantReset(t, p.up)
			if r := p.result(); r.End != EndDownstreamReset || r.FirstClose != Downstream || r.Up != 1 {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func TestCutInsideARecordIsAReset(t *testing.T) {
	p := newPair(t, New(), kind{}, kind{tls: tls.VersionTLS13})
	p.up.raw.Write([]byte{23, 3, 3, 0, 200, 1, 2, 3}) // a record of 200 bytes that ends after three
	p.up.raw.(*net.TCPConn).CloseWrite()
	wantReset(t, p.down)
	if r := p.result(); r.End != EndUpstreamReset || !errors.Is(r.Err, io.ErrUnexpectedEOF) {
		t.Errorf("result %+v", r)
	}
}

func TestNoRecordIsAFailureOfTLS(t *testing.T) {
	p := newPair(t, New(), kind{}, kind{tls: tls.VersionTLS12})
	p.down.Write([]byte("x"))
	p.up.raw.Write([]byte{99, 3, 3, 0, 1, 0}) // no record type: we answer with an alert
	wantReset(t, p.down)
	var failure *TLSError
	if r := p.result(); r.End != EndUpstreamTLS || !errors.As(r.Err, &failure) {
		t.Errorf("result %+v", r)
	}
}

// reading returns what an end reads until its end, once there is nothing more.
func reading(e *end) <-chan string {
	all := make(chan string, 1)
	go func() {
		b, err := io.ReadAll(e)
		all <- fmt.Sprint(string(b), " ", err)
	}()
	return all
}

func TestFINIsHeldBackUntilTheUpstreamEnds(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		io.WriteString(p.down, "question")
		wantRead(t, p.up, "question")
		p.down.closeWrite()
		for !p.session.HalfClosed() {
			runtime.Gosched()
		}
		rest := reading(p.up)
		for range 3 { // enough time to pass the FIN on
			io.WriteString(p.up, "answer")
			wantRead(t, p.down, "answer")
		}
		select {
		case got := <-rest:
			t.Fatalf("the upstream hears the end, and reads %q, before its own", got)
		default:
		}
		p.up.closeWrite()
		if got := <-rest; got != " <nil>" {
			t.Errorf("the upstream reads %q", got)
		}
		if b, err := io.ReadAll(p.down); len(b) > 0 || err != nil {
			t.Errorf("the downstream reads %q, %v", b, err)
		}
		if r := p.result(); r.End != EndClosed || r.FirstClose != Downstream || r.Truncated {
			t.Errorf("result %+v", r)
		}
	}, func(c *Config) { c.HoldFIN = bound })
}

func TestFINIsNotHeldBackForEver(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		io.WriteString(p.down, "question")
		p.down.closeWrite()
		if got := <-reading(p.up); got != "question <nil>" {
			t.Errorf("the upstream reads %q", got)
		}
		io.WriteString(p.up, "answer")
		p.up.closeWrite()
		if b, err := io.ReadAll(p.down); string(b) != "answer" || err != nil {
			t.Errorf("the downstream reads %q, %v", b, err)
		}
		if r := p.result(); r.End != EndClosed || r.FirstClose != Downstream {
			t.Errorf("result %+v", r)
		}
	}, func(c *Config) { c.HoldFIN = 20 * time.Millisecond })
}

func TestUpstreamsFINIsNotHeldBack(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		io.WriteString(p.up, "bye")
		p.up.closeWrite()
		if b, err := io.ReadAll(p.down); string(b) != "bye" || err != nil {
			t.Errorf("the downstream reads %q, %v", b, err)
		}
		io.WriteString(p.down, "bye")
		p.down.closeWrite()
		if got := <-reading(p.up); got != "bye <nil>" {
			t.Errorf("the upstream reads %q", got)
		}
		if r := p.result(); r.End != EndClosed || r.FirstClose != Upstream {
			t.Errorf("result %+v", r)
		}
	}, func(c *Config) { c.HoldFIN = bound })
}

func TestHeldFINAndHalfCloseIdle(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		p.down.closeWrite()
		if r := p.result(); r.End != EndHalfCloseIdle {
			t.Errorf("result %+v", r)
		}
	}, func(c *Config) { c.HoldFIN, c.HalfCloseIdle = bound, 20*time.Millisecond })
}

func TestSettled(t *testing.T) {
	t.Run("at the first byte from upstream", func(t *testing.T) {
		p := newPair(t, New(), kind{}, kind{})
		io.WriteString(p.up, "x")
		<-p.settled
		p.up.reset()
		if r := p.result(); !r.Settled || r.Duration > SettleAfter {
			t.Errorf("result %+v", r)
		}
	})
	t.Run("after a second", func(t *testing.T) {
		p := newPair(t, New(), kind{}, kind{})
		<-p.settled
		p.session.Stop(nil)
		if r := p.result(); !r.Settled || r.Duration < SettleAfter {
			t.Errorf("result %+v", r)
		}
	})
	t.Run("not when it ends before", func(t *testing.T) {
		p := newPair(t, New(), kind{}, kind{})
		p.up.closeWrite()
		p.down.closeWrite()
		if r := p.result(); r.Settled || len(p.settled) > 0 {
			t.Errorf("result %+v", r)
		}
	})
}

// Held bytes are counted, and subtracted at the end of their session.
func TestHeldBytesAreCounted(t *testing.T) {
	everywhere(t, func(t *testing.T, p *pair) {
		go func() { // ends with the connection
			for block := make([]byte, 1<<20); ; {
				if _, err := p.up.Write(block); err != nil {
					return
				}
			}
		}()
		waitFor(t, func() bool { return p.session.Held() > 0 && p.engine.Budget.Used() > 0 })
		if held, used := p.session.Held(), p.engine.Budget.Used(); held > 2*heldBound || used > 2*heldBound {
			t.Errorf("%d bytes are held, %d counted", held, used)
		}
		p.session.Stop(errors.New("enough"))
		p.result()
		waitFor(t, func() bool { return p.engine.Budget.Used() == 0 })
	})
}

// heldBound is about the most that a session holds.
const heldBound = 2 << 20

func TestBudget(t *testing.T) {
	over := 0
	b := &Budget{Over: func() { over++ }}
	b.Add(1 << 40)
	b.Add(-1 << 40)
	b.SetLimit(100)
	for _, tt := range []struct {
		add         int64
		tight, over bool
	}{{50, false, false}, {1, true, false}, {49, true, false}, {1, true, true}, {0, true, false}, {-60, false, false}, {70, true, true}, {-111, false, false}} {
		before := over
		if b.Add(tt.add); b.tight() != tt.tight || (over > before) != tt.over {
			t.Errorf("after %+d, of %d: tight %v, over %v; want %+v", tt.add, b.Used(), b.tight(), over > before, tt)
		}
	}
	var none *Budget
	none.Add(1)
	if none.tight() || over != 2 || b.Used() != 0 {
		t.Errorf("told %d times, %d left", over, b.Used())
	}
}
