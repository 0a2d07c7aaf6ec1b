package relay

import (
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/relay/load"
)

// Engine runs sessions: with epoll if both ends are sockets, and no peer may
// renegotiate TLS, else with the portable implementation. It holds nothing before the first session.
type Engine struct {
	// Budget counts the bytes that sessions hold; it may be nil. Static before the
	// first session.
	Budget *Budget

	// Static after New.
	portable     portable
	epoch        time.Time // all times of the engine are nanoseconds after it
	portableOnly bool      // for tests

	table      table
	next       atomic.Uint32 // round robin over the active loops
	workspaces sync.Pool     // of *workspace, for goroutines other than the loops
	load       load.Load
	spliced    atomic.Int64 // bytes moved by splice, for tests

	mu        sync.Mutex
	loops     atomic.Pointer[[]*loop] // nil before the first session; set under mu
	active    atomic.Int32            // how many of them are in use, the first ones; set under mu
	acceptors []*acceptor             // guarded by mu; those that the active loops accept from
	ended     sync.WaitGroup          // the loops' goroutines
}

// New makes an engine. AMBASSADOR_TEST_RELAY=portable, for tests, makes one that
// runs every session with the portable implementation.
func New() *Engine {
	return &Engine{epoch: time.Now(), portableOnly: os.Getenv("AMBASSADOR_TEST_RELAY") == "portable"}
}

func (e *Engine) now() int64 { return int64(time.Since(e.epoch)) }

// Start takes both connections over and begins to move bytes.
func (e *Engine) Start(c Config) Session {
	if !e.portableOnly && !c.Downstream.waits && !c.Upstream.waits {
		if f := e.startFlow(&c); f != nil {
			return f
		}
	}
	return e.portable.start(c, e.Budget)
}

// Stalls returns how long events have taken since the first session.
func (e *Engine) Stalls() (all load.Stalls) {
	if loops := e.loops.Load(); loops != nil {
		for _, l := range *loops {
			l.stalls.AddTo(&all)
		}
	}
	return all
}

// Working returns how long the longest running event has taken so far; 0 if none
// is running.
func (e *Engine) Working() (longest time.Duration) {
	loops := e.loops.Load()
	if loops == nil {
		return 0
	}
	now := e.now()
	for _, l := range *loops {
		if began := l.stalls.Began.Load(); began != 0 {
			longest = max(longest, time.Duration(now-began))
		}
	}
	return longest
}

// Close frees the engine's resources, after its sessions have ended. It waits for
// the loops.
func (e *Engine) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	loops := e.loops.Swap(nil)
	if loops == nil {
		return
	}
	for _, l := range *loops {
		l.stop()
	}
	e.ended.Wait()
	for _, l := range *loops {
		l.free()
	}
}

// loop chooses the loop of a new session; the first call makes all loops. It
// returns nil if descriptors do not suffice.
func (e *Engine) loop() *loop {
	loops := e.allLoops()
	if loops == nil {
		return nil
	}
	return (*loops)[e.next.Add(1)%uint32(e.active.Load())]
}

// homeOrLoop returns the loop that accepted a connection, else the next one.
func (e *Engine) homeOrLoop(c net.Conn) *loop {
	s, ok := c.(*Socket)
	loops := e.loops.Load()
	if !ok || loops == nil || !slices.Contains(*loops, s.home) {
		return e.loop()
	}
	return s.home
}

// allLoops returns the loops, which the first call makes; nil if that fails.
func (e *Engine) allLoops() *[]*loop {
	if loops := e.loops.Load(); loops != nil {
		return loops
	}
	return e.makeLoops()
}

// processors is how many processors the program may use, and so the number of
// loops. The first call makes room for as many goroutines beside the loops: to
// Go's scheduler, a loop that waits in the kernel uses a processor until the
// monitor thread takes it away. With no processor to spare the monitor never
// rests, which costs a tenth of all CPU in a busy process.
var processors = sync.OnceValue(func() int {
	n := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(2 * n)
	return n
})

// makeLoops makes a loop for each processor that the program may use.
func (e *Engine) makeLoops() *[]*loop {
	e.mu.Lock()
	defer e.mu.Unlock()
	if loops := e.loops.Load(); loops != nil {
		return loops
	}
	loops := make([]*loop, 0, processors())
	for range cap(loops) {
		l, errno := newLoop(e)
		if errno != 0 {
			for _, l := range loops {
				l.free()
			}
			return nil
		}
		loops = append(loops, l)
	}
	e.active.Store(1)
	e.loops.Store(&loops)
	for _, l := range loops {
		e.ended.Go(l.run) // Close waits for it
	}
	return &loops
}

// table finds the receiver of a descriptor's events. Pages are made on demand.
type table struct {
	mu    sync.Mutex // held to make a page
	pages [1 << 11]atomic.Pointer[page]
}

const pageSize = 1 << 10 // of the table: descriptors up to 2^21

type page [pageSize]atomic.Pointer[watched]

// watched is the receiver of a descriptor's events: a flow or another object.
type watched struct {
	flow  *flow
	other interface{ ready(*loop) } // an *acceptor, a dialling, a *Socket
}

// at returns the entry of a descriptor; nil if its number is too large.
func (t *table) at(fd int32) *atomic.Pointer[watched] {
	i := int(fd) / pageSize
	if i >= len(t.pages) {
		return nil
	}
	p := t.pages[i].Load()
	if p == nil {
		t.mu.Lock()
		if p = t.pages[i].Load(); p == nil {
			p = new(page)
			t.pages[i].Store(p)
		}
		t.mu.Unlock()
	}
	return &p[int(fd)%pageSize]
}

// loop waits for the sockets of its sessions and runs the sessions' work. Any
// goroutine may add and change sockets; one runs the loop.
type loop struct {
	// Static after newLoop.
	engine *Engine
	epfd   int32
	wakeFD int32 // an eventfd, for stop
	clock  clock

	activity load.Activity
	stalls   load.Meter
	giveTo   atomic.Pointer[loop]
	give     atomic.Int32 // how many of its sessions it moves to giveTo

	// Owned by run.
	work     workspace
	lastTurn int32 // the descriptor of the heavy flow that had the last turn
	last     int64 // when the last event ended, on the engine's clock
	inARow   int   // waits in a row that took less than directWait
	quick    int   // events since the last wait that took at most load.StallBounds[0]
	steps    load.Steps
}

func newLoop(e *Engine) (*loop, syscall.Errno) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err.(syscall.Errno)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, err.(syscall.Errno)
	}
	l := &loop{engine: e, epfd: int32(ep), wakeFD: int32(wake)}
	l.clock.loop = l
	if errno := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, l.wakeFD, unix.EPOLLIN); errno != 0 {
		l.free()
		return nil, errno
	}
	return l, 0
}

func (l *loop) stop() { unix.Write(int(l.wakeFD), []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// free closes the loop's descriptors, after run has ended.
func (l *loop) free() {
	l.clock.stop()
	l.work.free()
	closeFD(l.epfd)
	closeFD(l.wakeFD)
}

// run runs the loop until stop.
func (l *loop) run() {
	l.work.init()
	var events [128]unix.EpollEvent
	for {
		n := l.wait(events[:])
		l.work.now = l.engine.now()
		if l.inARow++; time.Duration(l.work.now-l.last) >= directWait {
			l.inARow = 0
		}
		if l.work.now >= l.engine.load.Next.Load() {
			l.engine.rebalance(l.work.now, cpuTime())
		}
		l.last = l.work.now
		heavy := events[:0]
		for _, ev := range events[:n] {
			if ev.Fd == l.wakeFD {
				l.clearSteps()
				return
			}
			w := l.engine.table.at(ev.Fd).Load()
			if w != nil && w.flow != nil && w.flow.isHeavy() {
				heavy = append(heavy, ev)
				continue
			}
			l.handle(w, ev)
		}
		l.takeTurns(heavy)
		l.compute()
		l.stalls.Began.Store(0)
		l.stalls.Worked(l.quick, l.last-l.work.now)
		l.quick = 0
		l.activity.Worked(l.last - l.work.now)
	}
}

// directWait is how long a loop waits directly: in the kernel, and unknown to Go's
// scheduler, which lets it keep its processor. Otherwise the monitor thread takes the
// processor away and checks every 20 µs whether it has to, which costs up to a tenth
// of all CPU and wakes other threads. The garbage collector interrupts a direct wait
// with a signal, or has to wait until its end if signals are off (asyncpreemptoff).
const directWait = 10 * time.Millisecond

// isBusy is how many waits in a row are shorter than directWait in a loop that is busy. A
// probe or a handshake alone has fewer: after each, a direct wait would only keep the
// monitor awake.
const isBusy = 32

// wait waits for events: directly if the loop is busy, else, or without an event for
// directWait, as the scheduler knows it.
func (l *loop) wait(events []unix.EpollEvent) int {
	if l.steps.Wait() {
		return epollWait(l.epfd, events, 0)
	}
	if l.inARow >= isBusy {
		if n := epollWait(l.epfd, events, directWait); n > 0 {
			return n
		}
	}
	n, err := unix.EpollWait(int(l.epfd), events, -1)
	if err != nil && err != syscall.EINTR {
		panic("relay: internal error: epoll_wait: " + err.Error())
	}
	return max(n, 0)
}

// clearSteps gives the waiting steps to goroutines.
func (l *loop) clearSteps() {
	for step := l.steps.Next(); step != nil; step = l.steps.Next() {
		go step()
	}
}

// compute does the waiting steps, for turnTime. After a slow one, goroutines do the others.
func (l *loop) compute() {
	for began := l.last; time.Duration(l.last-began) < turnTime; {
		step := l.steps.Next()
		if step == nil {
			return
		}
		was := l.last
		l.measure(step)
		if l.steps.Took(l.last, time.Duration(l.last-was)) {
			l.clearSteps()
		}
	}
}

// turnTime is how long heavy flows may delay the others, plus the turn that is
// running at its end.
const turnTime = 200 * time.Microsecond

// takeTurns lets heavy flows work for turnTime, in the order of their
// descriptors. Epoll reports the events of the others again.
func (l *loop) takeTurns(events []unix.EpollEvent) {
	for len(events) > 0 {
		next := 0
		for i := range events {
			if l.turn(events[i].Fd) < l.turn(events[next].Fd) {
				next = i
			}
		}
		ev := events[next]
		l.lastTurn = ev.Fd
		l.handle(l.engine.table.at(ev.Fd).Load(), ev)
		if time.Duration(l.last-l.work.now) >= turnTime {
			return
		}
		last := len(events) - 1
		events[next] = events[last]
		events = events[:last]
	}
}

// turn returns a descriptor's distance from the one that had the last turn.
func (l *loop) turn(fd int32) uint32 { return uint32(fd - l.lastTurn - 1) }

// handle dispatches an event; w is nil if the descriptor has no receiver any more.
func (l *loop) handle(w *watched, ev unix.EpollEvent) {
	l.measure(func() { l.pass(w, ev) })
}

// measure measures what may hold up the loop's other sessions.
func (l *loop) measure(work func()) {
	l.stalls.Began.Store(l.last)
	work()
	now := l.engine.now()
	if took := time.Duration(now - l.last); took > load.StallBounds[0] {
		l.stalls.Slow(took)
	} else {
		l.quick++
	}
	l.last = now
}

func (l *loop) pass(w *watched, ev unix.EpollEvent) {
	switch {
	case w == nil:
	case w.flow != nil:
		w.flow.ready(&l.work, ev.Fd, ev.Events)
		l.worked(w.flow)
	default:
		w.other.ready(l)
	}
}

// worked records the activity of a session, and moves it to another loop if some
// have to move.
func (l *loop) worked(f *flow) {
	const golden = 0x9E3779B97F4A7C15 // a hash that spreads similar values
	l.activity.Saw(uint64(f.start) * golden >> 58)
	if l.give.Load() > 0 && f.move(l, l.giveTo.Load()) {
		l.give.Add(-1)
	}
}

// workspace is the memory for handling one session at a time. Sessions keep
// nothing of it. Not safe for concurrent use.
type workspace struct {
	now   int64  // on the engine's clock
	in    []byte // received bytes
	plain []byte // plaintext of a TLS side
	out   []byte // records for a TLS side
	pipes []*pipe
}

const (
	// plainRead is the size of a read from a plain side. A read that fills it makes
	// the direction a bulk flow.
	plainRead = 32 << 10
	// tlsRead is the size of a read from a TLS side, or for one: many records by one
	// call.
	tlsRead = 256 << 10
	// tlsSlack is for bytes that a tls.Conn holds from earlier reads, and for the
	// overhead of records.
	tlsSlack = 64 << 10
	// pipeSize is requested for a pipe; the system's limit may be lower.
	pipeSize = 1 << 20
	// pipesKept is how many empty pipes a loop keeps.
	pipesKept = 16
)

func (w *workspace) init() { w.in = make([]byte, plainRead) }

// large allocates the buffers for a TLS side; plain sessions need none.
func (w *workspace) large() {
	if len(w.in) < tlsRead {
		w.in = make([]byte, tlsRead)
		w.plain = make([]byte, tlsRead+tlsSlack)
		w.out = make([]byte, 0, tlsRead+tlsSlack)
	}
}

// workspace lends memory to a goroutine that is not a loop.
func (e *Engine) workspace() *workspace {
	w, ok := e.workspaces.Get().(*workspace)
	if !ok {
		w = new(workspace)
		w.init()
	}
	w.now = e.now()
	return w
}

// pipe carries spliced bytes from one socket to another.
type pipe struct {
	r, w int32
	n    int // bytes in it
}

// pipe returns an empty pipe, a kept one or a new one; nil if descriptors do not
// suffice.
func (w *workspace) pipe() *pipe {
	if k := len(w.pipes) - 1; k >= 0 {
		p := w.pipes[k]
		w.pipes = w.pipes[:k]
		return p
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: int32(fds[0]), w: int32(fds[1])}
}

// put takes a pipe back. A pipe that is not empty cannot be reused.
func (w *workspace) put(p *pipe) {
	if p.n == 0 && len(w.pipes) < pipesKept {
		w.pipes = append(w.pipes, p)
		return
	}
	p.close()
}

func (p *pipe) close() {
	closeFD(p.r)
	closeFD(p.w)
}

func (w *workspace) free() {
	for _, p := range w.pipes {
		p.close()
	}
	w.pipes = nil
}
