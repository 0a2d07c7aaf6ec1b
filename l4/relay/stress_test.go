package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stressTime is how long each engine is stressed: AMBASSADOR_TEST_STRESS, which
// integration/test sets.
func stressTime(t *testing.T) time.Duration {
	s := os.Getenv("AMBASSADOR_TEST_STRESS")
	if s == "" {
		return 2 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("AMBASSADOR_TEST_STRESS: %v; give a duration like 15s", err)
	}
	return d
}

// Many short sessions of random kinds with random behaviour, concurrently: every byte
// that arrives is correct, every stream that ends properly is complete, every session
// ends, and nothing leaks.
func TestStress(t *testing.T) {
	certificate(t)
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			(&stress{t: t, engine: engine(), limit: time.Now().Add(stressTime(t))}).run()
		})
	}
}

// stress is one engine under load.
type stress struct {
	t      *testing.T
	engine *Engine
	limit  time.Time
	ports  [3]*meeting // by transport

	seed     atomic.Uint64
	sessions atomic.Int64
	bytes    atomic.Int64
	endings  [EndStopped + 1]atomic.Int64
}

// moveAtRandom moves a session between the loops of an engine; nil: no engine has any.
var moveAtRandom func(s Session, r uint64)

// stressAtOnce is how many sessions there are at a time.
const stressAtOnce = 24

func (s *stress) run() {
	for i := range s.ports {
		s.ports[i] = newMeeting(s.t, s.engine, transport(i))
	}
	s.session(s.seed.Add(1)) // allocations of the first session are no leak
	before := left(s.t)
	s.sessionsUntilLimit()
	waitFor(s.t, func() bool {
		after := left(s.t)
		return after.goroutines <= before.goroutines && after.descriptors <= before.descriptors+pipesOfLoops
	})
	for _, m := range s.ports {
		m.close()
	}
	s.engine.Close()
	waitFor(s.t, func() bool { return left(s.t).descriptors < before.descriptors || runtime.GOOS != "linux" })
	if after := left(s.t); after.heap > before.heap+4<<20 {
		s.t.Errorf("%d bytes of heap are in use, and were %d", after.heap, before.heap)
	}
	ends := ""
	for e := range s.endings {
		if n := s.endings[e].Load(); n > 0 {
			ends += fmt.Sprintf(", %d %v", n, End(e))
		}
	}
	s.t.Logf("%d sessions, %d MiB%s", s.sessions.Load(), s.bytes.Load()>>20, ends)
}

func (s *stress) sessionsUntilLimit() {
	var wg sync.WaitGroup
	for range stressAtOnce {
		wg.Go(func() {
			for time.Now().Before(s.limit) && !s.t.Failed() {
				s.session(s.seed.Add(1))
			}
		})
	}
	wg.Wait()
}

// pipesOfLoops is how many descriptors idle loops may keep.
var pipesOfLoops = runtime.GOMAXPROCS(0) * 2 * 16

// leftovers are resources that sessions must not leak.
type leftovers struct {
	goroutines, descriptors int
	heap                    uint64
}

func left(t *testing.T) leftovers {
	runtime.GC()
	runtime.GC() // twice: pools survive one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	return leftovers{runtime.NumGoroutine(), len(fds), m.HeapAlloc}
}

// transport is how an application is connected to us.
type transport int

const (
	goTCP transport = iota
	goUnix
	engineTCP // accepted or dialled by the engine
)

// meeting connects applications to us by one transport, one at a time.
type meeting struct {
	t        *testing.T
	engine   *Engine
	kind     transport
	listener net.Listener // what is accepted from here
	accepts  Listener     // the same of the engine
	accepted chan net.Conn
	mu       sync.Mutex
}

func newMeeting(t *testing.T, e *Engine, kind transport) *meeting {
	m := &meeting{t: t, engine: e, kind: kind, accepted: make(chan net.Conn)}
	network, address := "tcp", "127.0.0.1:0"
	if kind == goUnix {
		network, address = "unix", filepath.Join(t.TempDir(), "s")
	}
	var err error
	if m.listener, err = net.Listen(network, address); err != nil {
		t.Fatal(err)
	}
	if kind == engineTCP {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if m.accepts, err = e.Listen(ln, &net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 3}); err != nil {
			t.Fatal(err)
		}
		go m.accepts.Serve(func(c net.Conn) { m.accepted <- c }) // close ends it
	}
	return m
}

func (m *meeting) close() {
	m.listener.Close()
	if m.accepts != nil {
		m.accepts.Close()
	}
}

// meet connects an application at far to us at near. We accept the connection of a
// downstream leg, and dial that of an upstream one.
func (m *meeting) meet(downstream bool) (far, near net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err, acceptErr error
	switch {
	case m.kind == engineTCP && downstream:
		if far, err = net.Dial("tcp", m.accepts.Addr().String()); err == nil {
			near = <-m.accepted
		}
	case m.kind == engineTCP:
		near, err = m.engine.DialMarked(m.t.Context(), m.listener.Addr().(*net.TCPAddr).AddrPort(), 0, &net.KeepAliveConfig{}, nil)
		far, acceptErr = m.listener.Accept()
	default:
		far, err = net.Dial(m.listener.Addr().Network(), m.listener.Addr().String())
		near, acceptErr = m.listener.Accept()
	}
	if err := errors.Join(err, acceptErr); err != nil {
		m.t.Error(err)
	}
	return far, near
}

// leg is an application connected to us, of a random kind.
func (s *stress) leg(r *mrand.Rand, downstream bool) (*end, Leg) {
	far, near := s.ports[r.IntN(len(s.ports))].meet(downstream)
	far.SetDeadline(time.Now().Add(3 * bound))
	if r.IntN(3) > 0 {
		return &end{far, far}, Plain(near, nil)
	}
	t := NewTransport(near)
	asServer := &tls.Config{Certificates: []tls.Certificate{certificate(s.t)}, MaxVersion: tls.VersionTLS12 + uint16(r.IntN(2))}
	asClient := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "stress.test"}
	theirs, ours := tls.Client(far, asClient), tls.Server(t, asServer)
	if r.IntN(2) == 0 {
		theirs, ours = tls.Server(far, asServer), tls.Client(t, asClient)
	}
	handshake(s.t, theirs, ours)
	return &end{theirs, far}, TLS(ours, t, nil)
}

// session runs a session; its behaviour follows from the seed.
func (s *stress) session(seed uint64) {
	r := mrand.New(mrand.NewPCG(seed, 11))
	var cfg Config
	a := &actor{stress: s, stream: newStream(seed, r), rand: mrand.New(mrand.NewPCG(seed, 1))}
	b := &actor{stress: s, stream: newStream(seed+1<<40, r), rand: mrand.New(mrand.NewPCG(seed, 2))}
	a.peer, b.peer = b, a
	a.end, cfg.Downstream = s.leg(r, true)
	b.end, cfg.Upstream = s.leg(r, false)
	done := make(chan Result, 2)
	cfg.Owner = &owner{done: func(r Result) { done <- r }}
	plan := newPlan(r)
	a.plan, b.plan = plan, plan
	a.script, b.script = plan.scripts[0], plan.scripts[1]
	if r.IntN(4) == 0 {
		cfg.Downstream.early, cfg.Upstream.early = a.early(r), b.early(r)
	}
	session := s.engine.Start(cfg)
	a.session, b.session = session, session
	if plan.killAfter < 0 {
		session.Stop(errKilled)
	}
	var wg sync.WaitGroup
	for _, x := range []*actor{a, b} {
		wg.Go(x.write)
		wg.Go(x.read)
	}
	wg.Wait()
	if plan.finish {
		for limit := time.Now().Add(bound); !session.FinishIfIdle(0, errDrained) && len(done) == 0; runtime.Gosched() {
			if time.Now().After(limit) {
				s.t.Errorf("session %d cannot be finished though it is idle", seed)
				session.Stop(errKilled)
			}
		}
	}
	select {
	case res := <-done:
		s.judge(seed, a, b, res)
	case <-time.After(bound):
		s.t.Errorf("session %d does not end: %+v", seed, plan)
		session.Stop(errKilled)
	}
	a.end.raw.Close()
	b.end.raw.Close()
}

var errKilled, errDrained = errors.New("killed"), errors.New("drained")

// judge compares what both ends have received with the result.
func (s *stress) judge(seed uint64, a, b *actor, r Result) {
	s.sessions.Add(1)
	s.bytes.Add(r.Up + r.Down)
	s.endings[r.End].Add(1)
	orderly := a.script == endsOrderly && b.script == endsOrderly && r.Cause == nil
	switch {
	case r.End == EndInternal,
		orderly && (r.End != EndClosed || r.Up != a.sent || r.Down != b.sent || r.Truncated),
		a.plan.finish && (r.End != EndStopped || r.Cause != errDrained && a.plan.killAfter == 0),
		r.Up > a.sent || r.Down > b.sent || r.Up < b.received || r.Down < a.received:
		s.t.Errorf("session %d: %+v; downstream %v, upstream %v", seed, r, a, b)
	}
	for _, x := range []*actor{a, b} {
		if x.complete && !x.refused && !x.unix() && r.Cause != errDrained && x.received != x.peer.sent {
			s.t.Errorf("session %d: a stream ends properly after %d of %d bytes: %+v; downstream %v, upstream %v", seed, x.received, x.peer.sent, r, a, b)
		}
	}
}

// plan describes a session.
type plan struct {
	scripts   [2]script
	killAfter int64 // an end that has received that much kills it; 0: no kill; negative: at once
	pokeAfter int64 // the same, but FinishIfIdle is called
	finish    bool  // both ends stay, and the session is finished once idle
}

func newPlan(r *mrand.Rand) (p plan) {
	p.scripts = [2]script{script(r.IntN(int(scripts))), script(r.IntN(int(scripts)))}
	switch r.IntN(6) {
	case 0:
		p.killAfter = 1 + r.Int64N(40_000)
	case 1:
		p.finish = true
		p.scripts = [2]script{stays, stays}
	case 2, 3:
		p.scripts = [2]script{endsOrderly, endsOrderly}
	case 4:
		p.pokeAfter = 1 + r.Int64N(4000)
	}
	if r.IntN(50) == 0 {
		p.killAfter = -1
	}
	return p
}

// script is what an end does after it has sent its stream.
type script int

const (
	endsOrderly script = iota // FIN, and reads on
	resets
	closes // both directions at once
	scripts
	stays // until the session is finished
)

// actor is an application at one end.
type actor struct {
	*end
	stress  *stress
	session Session
	peer    *actor
	stream  stream
	rand    *mrand.Rand // of the writer
	plan    plan
	script  script

	sent     int64 // owned by write
	refused  bool  // owned by write; it has consumed the error that read would have got
	received int64 // owned by read
	complete bool  // owned by read; the stream ended with a FIN, or close_notify
	err      error // owned by read
}

func (a *actor) String() string {
	return fmt.Sprintf("{%T %T script %d, %d of %d sent, %d received, complete %v, %v}", a.Conn, a.raw, a.script, a.sent, a.stream.size, a.received, a.complete, a.err)
}

func (a *actor) unix() bool {
	_, unix := a.raw.(*net.UnixConn)
	return unix
}

// early returns the bytes that we read from the actor before the session starts.
func (a *actor) early(r *mrand.Rand) []byte {
	b := a.stream.at(0, 1+r.IntN(20_000))
	a.sent = int64(len(b))
	return b
}

// write sends the stream, and ends according to the script.
func (a *actor) write() {
	for a.sent < a.stream.size {
		b := a.stream.at(a.sent, 1+a.rand.IntN(100_000))
		n, err := a.Conn.Write(b)
		if a.sent += int64(n); err != nil {
			a.sent += int64(len(b) - n) // some of it may have been sent
			a.refused = true
			a.hang(err)
			break
		}
	}
	switch a.script {
	case endsOrderly:
		a.refused = a.closeWrite() != nil || a.refused
	case resets:
		a.reset()
	case closes:
		a.refused = a.Conn.Close() != nil || a.refused // TLS writes close_notify
	}
}

// read checks the received bytes, in pieces of random size.
func (a *actor) read() {
	r := mrand.New(mrand.NewPCG(uint64(a.stream.offset), 3))
	buf := make([]byte, 1+a.peer.stream.size/500+r.Int64N(1+r.Int64N(64<<10)))
	for a.script != stays || a.received < a.peer.stream.size {
		n, err := a.Conn.Read(buf[:1+r.IntN(len(buf))])
		if !a.peer.stream.has(a.received, buf[:n]) {
			a.stress.t.Errorf("wrong bytes after %d, of a stream of %d", a.received, a.peer.stream.size)
		}
		a.received += int64(n)
		if moveAtRandom != nil && r.IntN(8) == 0 {
			moveAtRandom(a.session, r.Uint64())
		}
		if k := a.plan.killAfter; k > 0 && a.received >= k {
			a.session.Stop(errKilled)
		}
		if k := a.plan.pokeAfter; k > 0 && a.received >= k {
			a.session.FinishIfIdle(0, errDrained)
		}
		if err != nil {
			a.err, a.complete = err, err == io.EOF
			a.hang(err)
			return
		}
	}
}

// hang reports an operation that timed out.
func (a *actor) hang(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		a.stress.t.Errorf("an end waits for what does not come: %v, of %T on %T, script %d, plan %+v", err, a.Conn, a.raw, a.script, a.plan)
		a.session.Stop(errKilled)
	}
}

// stream is the bytes that one end sends: they follow from the position.
type stream struct {
	size   int64
	offset int
}

var noise = func() []byte {
	b := make([]byte, 1<<20+7)
	mrand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

func newStream(seed uint64, r *mrand.Rand) stream {
	size := r.Int64N(2000)
	switch r.IntN(12) {
	case 0:
		size = 0
	case 1, 2:
		size = r.Int64N(200_000)
	case 3:
		size = r.Int64N(6 << 20)
	}
	return stream{size, int(seed * 7919 % uint64(len(noise)))}
}

// at returns the stream's bytes at a position, at most n and not beyond the noise.
func (s stream) at(pos int64, n int) []byte {
	b := noise[(int64(s.offset)+pos)%int64(len(noise)):]
	if int64(n) > s.size-pos {
		n = int(s.size - pos)
	}
	return b[:min(n, len(b))]
}

// has reports whether b are the stream's bytes at a position.
func (s stream) has(pos int64, b []byte) bool {
	for len(b) > 0 {
		want := s.at(pos, len(b))
		if len(want) == 0 || !bytes.Equal(want, b[:len(want)]) {
			return false
		}
		pos, b = pos+int64(len(want)), b[len(want):]
	}
	return true
}
