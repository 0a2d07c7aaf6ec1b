package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/relay/load"
)

// Tests for the epoll engine alone.

// heldFor returns how much a flow holds for a side.
func (f *flow) heldFor(side Side) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.sides[side-1]
	if s.pipe != nil {
		return s.pipe.n
	}
	return len(s.held)
}

// connecting finds the only dial in a table.
func connecting(t *testing.T, e *Engine) *dialling {
	t.Helper()
	var found *dialling
	waitFor(t, func() bool {
		for fd := range int32(4 * pageSize) {
			if w := e.table.at(fd).Load(); w != nil && w.flow == nil {
				found, _ = w.other.(*dialling)
			}
		}
		return found != nil
	})
	return found
}

// deaf returns an address whose connects neither succeed nor fail: nobody accepts,
// and the queue is full.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	for range 3 {
		full, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(full) })
		connect(int32(full), to)
	}
	return to
}

// An event for the descriptor's previous owner does not end a connect.
func TestDialIsNotDeceivedByALateEvent(t *testing.T) {
	e := New()
	defer e.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	to := deaf(t)
	go func() { // awaited below
		c, err := e.DialMarked(ctx, to, 0, &net.KeepAliveConfig{}, nil)
		if err == nil {
			c.Close()
		}
		failed <- err
	}()
	w := connecting(t, e)
	w.event <- struct{}{}
	w.event <- struct{}{} // the first has been taken by then
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the dial ends with %v before it has connected", err)
	}
}

// Linux connects a socket to itself if the port that it chooses is the dialled one
// and nothing listens there: a dead service would seem alive, and could not listen
// again.
func TestDialDoesNotConnectToItself(t *testing.T) {
	e := New()
	defer e.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	to = netip.AddrPortFrom(to.Addr(), to.Port()&^1) // an even one, as those that connect chooses first
	for range 20_000 {                               // more than there are even ports in the range
		c, err := e.DialMarked(t.Context(), to, 0, &net.KeepAliveConfig{}, nil)
		if err == nil {
			c.Close()
			t.Fatal("connected, though nobody listens")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}

// Bytes that a tls.Conn read before Start are delivered, even if the early bytes
// alone are more than the other side accepts.
func TestBytesInsideTheTLSConnFollowTheEarlyOnes(t *testing.T) {
	early := make([]byte, 16<<20)
	const rest = "and this is inside the tls.Conn"
	far, near := newLeg(t, kind{tls: tls.VersionTLS13})
	defer far.raw.Close()
	io.WriteString(far, "1"+rest)
	if _, err := io.ReadFull(near.tls, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	near.early = early
	p := newPair(t, New(), kind{}, kind{}, func(c *Config) { c.Downstream.raw.Close(); c.Downstream = near })
	if n, err := io.CopyN(io.Discard, p.up, int64(len(early))); err != nil {
		t.Fatalf("%d early bytes, %v", n, err)
	}
	wantRead(t, p.up, rest)
}

// Bytes held for a slow TLS side are counted when the side accepts them, and keep
// the session from being idle.
func TestBytesHeldForTLSCountWhenTheyGo(t *testing.T) {
	p := newPair(t, New(), kind{}, kind{tls: tls.VersionTLS13})
	f := p.session.(*flow)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer p.down.raw.Close()
	var sent int64
	b := make([]byte, 16<<10)
	for limit := time.Now().Add(bound); f.heldFor(Upstream) == 0 && time.Now().Before(limit); {
		p.down.SetWriteDeadline(time.Now().Add(time.Second / 10)) // it may be held, and we blocked, since we looked
		n, err := p.down.Write(b)
		if sent += int64(n); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	p.down.closeWrite() // nothing follows
	last := f.last[up].Load()
	held := f.heldFor(Upstream)
	if up := p.session.Up(); up >= sent {
		t.Errorf("%d of %d bytes count as delivered while %d are held", up, sent, held)
	}
	wg.Go(func() {
		if n, err := io.Copy(io.Discard, p.up); n != sent || err != nil {
			t.Errorf("%d of %d bytes arrive, %v", n, sent, err)
		}
		p.up.closeWrite()
	})
	waitFor(t, func() bool { return f.last[up].Load() > last })
	if r := p.result(); r.Up != sent || r.End != EndClosed {
		t.Errorf("result %+v; want %d bytes", r, sent)
	}
}

// Settled and Done are called by different goroutines, and in this order.
func TestDoneWaitsForSettled(t *testing.T) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			var p *pair
			var settled atomic.Bool
			calling, ended := make(chan struct{}), make(chan struct{})
			done := make(chan bool, 1)
			p = newPair(t, engine(), kind{}, kind{}, func(c *Config) {
				c.Owner = &owner{func() {
					close(calling)
					<-ended
					for range 1000 { // in which Done would be called
						runtime.Gosched()
					}
					settled.Store(true)
				}, func(Result) { done <- settled.Load() }}
			})
			io.WriteString(p.up, "x")
			<-calling
			p.session.Stop(nil)
			wantReset(t, p.up)
			wantReset(t, p.down)
			close(ended)
			if !<-done {
				t.Error("Done was called while Settled was")
			}
		})
	}
}

// A socket keeps its keepalive options when it enters Go's poller, as every TLS leg
// does. Package net would set its own defaults.
func TestKeepAliveInGosPoller(t *testing.T) {
	e := New()
	defer e.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	keepAlive := &net.KeepAliveConfig{Enable: true, Idle: 77 * time.Second, Interval: 33 * time.Second, Count: 5}
	l, err := e.Listen(ln, keepAlive)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go l.Serve(func(c net.Conn) { accepted <- c }) // Close ends it
	dialled, err := e.DialMarked(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), 0, keepAlive, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{dialled, <-accepted} {
		defer c.Close()
		tcp, ok := TCP(c)
		if !ok {
			t.Fatal("no TCP connection")
		}
		raw, err := tcp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for option, want := range map[int]int{unix.TCP_KEEPIDLE: 77, unix.TCP_KEEPINTVL: 33, unix.TCP_KEEPCNT: 5} {
				if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); got != want || err != nil {
					t.Errorf("option %d is %d, %v; want %d", option, got, err, want)
				}
			}
		})
	}
}

// accepting is a listener of the engine's that starts a session for each client.
func accepting(t *testing.T, e *Engine) (addr string, from *acceptor, legs chan<- Leg, started <-chan *flow) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.Listen(ln, &net.KeepAliveConfig{})
	if err != nil {
		t.Fatal(err)
	}
	offered, flows := make(chan Leg, 1), make(chan *flow, 1)
	go l.Serve(func(c net.Conn) { // ends with l
		flows <- e.Start(Config{Downstream: Plain(c, nil), Upstream: <-offered, Owner: &owner{}}).(*flow)
	})
	t.Cleanup(func() {
		l.Close()
		e.Close()
	})
	return l.Addr().String(), l.(*acceptor), offered, flows
}

// Only active loops accept, and sessions stay with the loop that accepted them, so
// that no other loop has to be woken.
func TestLoopsInUseAccept(t *testing.T) {
	e := New()
	allInUse(e)
	addr, from, legs, started := accepting(t, e)
	loops := *e.loops.Load()
	waitFor(t, func() bool { return inUse(from) == len(loops) })
	for _, n := range []int{1, len(loops), 1} {
		waitFor(t, func() bool { e.use(n); return inUse(from) == n }) // use does nothing while the engine changes
		for range 16 {
			far, leg := newLeg(t, kind{})
			legs <- leg
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			f := <-started
			if at := slices.Index(loops, f.loop); at < 0 || at >= n {
				t.Errorf("a session is with loop %d, and %d are in use", at, n)
			}
			io.WriteString(c, "x")
			wantRead(t, far, "x")
			f.Stop(errors.New("the test is over"))
			c.Close()
			far.raw.Close()
		}
	}
	from.Close()
	e.use(len(loops)) // of which a closed listener is not told
	if got := inUse(from); got != 0 || len(e.acceptors) != 0 {
		t.Errorf("a closed listener is known to %d loops, and the engine knows %d", got, len(e.acceptors))
	}
}

func inUse(a *acceptor) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.loops)
}

// A loop moves sessions to another loop with the bytes that they hold.
func TestLoopsGiveSessionsAway(t *testing.T) {
	e := New()
	allInUse(e)
	loops := *e.loops.Load()
	if len(loops) < 2 {
		t.Skip("one processor has one loop")
	}
	e.use(1)
	for _, k := range []kind{{}, {tls: tls.VersionTLS13}} {
		idle, p := newPair(t, e, k, kind{}), newPair(t, e, k, kind{})
		const full = 16 << 20
		go func() { // the upstream reads nothing yet
			p.down.Write(make([]byte, full))
			p.down.closeWrite()
		}()
		waitFor(t, func() bool {
			f := p.session.(*flow)
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.sides[1].holding()
		})
		loops[0].giveTo.Store(loops[1])
		loops[0].give.Store(1)
		io.WriteString(p.up, "x") // an event
		wantRead(t, p.down, "x")
		waitFor(t, func() bool { return loops[0].give.Load() == 0 })
		for who, want := range map[*pair]int32{p: loops[1].epfd, idle: loops[0].epfd} {
			f := who.session.(*flow)
			f.mu.Lock()
			if f.epfd != want {
				t.Errorf("session idle %v waits in epoll %d, want %d", who == idle, f.epfd, want)
			}
			f.mu.Unlock()
		}
		if n, err := io.Copy(io.Discard, p.up); n != full || err != nil {
			t.Fatalf("%d of %d bytes, %v", n, full, err)
		}
		p.up.closeWrite()
		if r := p.result(); r.End != EndClosed || r.Up != full || r.Down != 1 {
			t.Errorf("%+v", r)
		}
	}
}

// TestRebalanceCountsTheWork checks the load of an engine that has worked, and of one
// with idle loops.
func TestRebalanceCountsTheWork(t *testing.T) {
	e := New()
	allInUse(e)
	loops := *e.loops.Load()
	if len(loops) < 2 {
		t.Skip("one processor has one loop")
	}
	t.Cleanup(e.Close)
	const every = int64(load.CheckEvery)
	at, cpu := e.now(), cpuTime()
	e.rebalance(at, cpu)
	next := func() { // both processors are used
		at, cpu = at+every, cpu+10*load.CheckEvery
		e.rebalance(at, cpu)
	}
	e.use(1)
	loops[0].activity.Worked(every)
	if next(); e.active.Load() != 2 {
		t.Errorf("%d loops are in use after one was full", e.active.Load())
	}
	allInUse(e)
	loops[1].activity.Worked(every)
	for hash := range uint64(4) {
		loops[1].activity.Saw(hash)
	}
	next()
	if n, to := loops[1].give.Load(), loops[1].giveTo.Load(); n != 2 || to != loops[0] {
		t.Errorf("it gives %d sessions to %p, want 2 to %p", n, to, loops[0])
	}
	checks := 0
	for ; int(e.active.Load()) == len(loops) && checks < 1000; checks++ {
		at += every
		e.rebalance(at, cpu) // no processor is used
	}
	if got := int(e.active.Load()); got != len(loops)-1 || checks < load.CalmChecks {
		t.Errorf("%d loops are in use after %d calm checks, want one less than %d after %d", got, checks, len(loops), load.CalmChecks)
	}
}

// allInUse makes all loops of an engine active, whatever the load.
func allInUse(e *Engine) {
	e.load.Next.Store(math.MaxInt64)
	e.use(len(*e.allLoops()))
}

func init() {
	moveAtRandom = func(s Session, r uint64) {
		f, ok := s.(*flow)
		if !ok {
			return
		}
		if loops := f.loop.engine.loops.Load(); loops != nil {
			n := uint64(len(*loops))
			f.move((*loops)[r%n], (*loops)[r/n%n])
		}
	}
}

// Bulk sessions of one loop take turns: none starves while others are busy, and a
// small message waits for at most one of them.
func TestHeavySessionsTakeTurns(t *testing.T) {
	e := New()
	e.load.Next.Store(math.MaxInt64) // all stay where they are
	const many = 6
	var pairs []*pair
	for range many {
		p := newPair(t, e, kind{}, kind{})
		go io.Copy(p.down, endless{}) // its connection ends it
		go io.Copy(io.Discard, p.up)  // the same
		pairs = append(pairs, p)
	}
	small := newPair(t, e, kind{}, kind{})
	for round := range int64(10) {
		for i, p := range pairs {
			if p.session.(*flow).loop != small.session.(*flow).loop {
				t.Fatal("not on the same loop")
			}
			want := (round + 1) << 20
			waitFor(t, func() bool { return p.session.Up() >= want })
			io.WriteString(small.down, "x")
			wantRead(t, small.up, "x")
			if len(p.done) > 0 {
				t.Fatalf("session %d has ended: %+v", i, <-p.done)
			}
		}
	}
}

// An hour without a byte: a settled session without limits is in no clock's heap,
// and lives on; a session with an idle limit of an hour ends.
func TestAnHourWithoutBytes(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Hour} {
		p := newPair(t, New(), kind{}, kind{tls: tls.VersionTLS13}, func(c *Config) { c.Limits.Idle = limit })
		f := p.session.(*flow)
		<-p.settled
		known := func() bool {
			f.loop.clock.mu.Lock()
			defer f.loop.clock.mu.Unlock()
			return f.heapIndex != 0
		}
		waitFor(t, func() bool { return known() == (limit > 0) })
		f.mu.Lock()
		f.start -= int64(time.Hour)
		f.mu.Unlock()
		f.tick()
		if limit > 0 {
			if r := p.result(); r.End != EndIdle {
				t.Errorf("after an hour, with a limit of one: %+v", r)
			}
			continue
		}
		if known() {
			t.Error("after an hour a clock knows of a session without limits")
		}
		io.WriteString(p.up, "x")
		if _, err := io.ReadFull(p.down, make([]byte, 1)); err != nil {
			t.Errorf("after an hour: %v", err)
		}
	}
}

func TestBulkBetweenBareSocketsIsSpliced(t *testing.T) {
	if New().portableOnly {
		t.Skip("only the epoll engine splices")
	}
	p := newPair(t, New(), kind{}, kind{})
	go sendOdd(p.down, 1) // ends with the test's connection
	receive(p.up)
	p.up.closeWrite()
	if r, n := p.result(), p.engine.spliced.Load(); n < bulkSize/2 || r.Up != bulkSize {
		t.Errorf("%d of %d bytes were spliced", n, r.Up)
	}
}

// Of bytes that move in one batch of events the later are the last: a client's next
// question, which comes with an answer, is not answered yet.
func TestTheLastOfABatch(t *testing.T) {
	e := New()
	f := &flow{loop: &loop{engine: e}, start: e.now()}
	w := &workspace{now: f.start}
	for i := range 4 {
		d := []direction{down, up}[i%2]
		f.count(w, d, 1)
		if _, last := f.Quiet(); last != d.from() {
			t.Errorf("after bytes of %v, those of %v are the last", d.from(), last)
		}
	}
}
