package relay

import (
	"crypto/tls"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// flow is a Session of the epoll engine: two sockets, and no goroutine and no
// buffer while they are quiet.
//
// A socket's event is a hint that there is something to do; what there is, is
// found out by doing it. So an event that comes too late, for a descriptor that
// has another owner by now, does no harm.
type flow struct {
	// Static after start.
	watched watched // as the table knows the flow
	loop    *loop   // whose clock and memory it has; another may wait for its sockets
	limits  Limits
	owner   Owner
	start   int64 // on the engine's clock, as all moments

	moved [2]atomic.Int64 // bytes delivered, by direction
	last  [2]atomic.Int64 // when a byte last moved, by direction, in nanoseconds after start
	heavy atomic.Uint32   // bits of the directions whose last event has moved much
	held  atomic.Int64    // bytes that the sides hold, as the budget has them

	heapIndex int32 // guarded by clock.mu; 0: the clock does not know the flow
	due       int64 // guarded by clock.mu

	mu        sync.Mutex
	sides     [2]side // guarded by mu, like all below
	result    *Result // set when over
	noSplice  bool    // the kernel cannot splice these sockets, or has no memory for it
	settling  bool    // Settled was called, or is about to be
	grown     bool    // it has lived for SettleAfter
	over      bool    // result is decided, and the sockets are closed
	truncated bool

	tellSettled, tellDone bool // what release still has to call
	telling               bool // Settled is being called, so Done waits for that

	epfd       int32 // the epoll that waits for its sockets
	firstClose Side
}

// side is one socket of a flow.
type side struct {
	fd     int32  // -1 once closed
	mask   uint32 // what epoll was asked to watch for
	known  bool   // epoll watches the descriptor
	hung   bool   // epoll has said that it hung up or failed, which it will not stop saying
	eof    bool   // it has sent its FIN
	passed bool   // which has been passed on
	bulk   bool   // what it sends is spliced
	broken error  // a write to it has failed
	held   []byte // bytes for it that it has not taken yet
	pipe   *pipe  // the same, spliced
	tls    *tlsSide
	late   *net.KeepAliveConfig // what the socket still lacks; nil: nothing
}

// tlsSide is the TLS of a side.
type tlsSide struct {
	conn      *tls.Conn
	transport *Transport
	feed      feed
	owed      int  // of the application's bytes in held, those not counted yet
	notified  bool // close_notify was written
	unread    bool // conn may hold what it has read before Start
}

// saidGoodbye says whether the side has ended with close_notify. That its socket
// fails afterwards takes nothing from what it has sent; what it is sent from then
// on fails, and tells.
func (s *side) saidGoodbye() bool { return s.eof && s.tls != nil && !s.tls.transport.cut() }

// refusesGoodbye says whether all that the side does not take is our close_notify,
// after its own.
func (s *side) refusesGoodbye() bool {
	return s.broken != nil && s.saidGoodbye() && s.tls.notified && s.tls.owed == 0
}

func (s *side) holding() bool { return len(s.held) > 0 || s.pipe != nil }

// Up is the number of bytes delivered to the upstream so far.
func (f *flow) Up() int64 { return f.moved[up].Load() }

// Down is the number of bytes delivered to the downstream so far.
func (f *flow) Down() int64 { return f.moved[down].Load() }

// Held is how many bytes the session holds.
func (f *flow) Held() int64 { return f.held.Load() }

// account makes the budget's count of the session what it holds now.
func (f *flow) account() {
	var n int64
	for i := range f.sides {
		s := &f.sides[i]
		n += int64(cap(s.held))
		if s.pipe != nil {
			n += int64(s.pipe.n)
		}
	}
	if was := f.held.Load(); n != was {
		f.held.Store(n)
		f.loop.engine.Budget.Add(n - was)
	}
}

// Quiet is how long no byte has moved, and who sent the last.
func (f *flow) Quiet() (time.Duration, Side) {
	return quiet(time.Duration(f.loop.engine.now()-f.start), f.last[up].Load(), f.last[down].Load())
}

// HalfClosed says whether one side has ended and the other has not.
func (f *flow) HalfClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.halfClosed()
}

func (f *flow) halfClosed() bool { return f.sides[0].eof != f.sides[1].eof }

// startFlow makes a flow of two sockets. It is nil, and nothing has changed, if
// a side is no socket, or if epoll or the descriptors do not suffice.
func (e *Engine) startFlow(c *Config) *flow {
	loop := e.homeOrLoop(c.Downstream.raw)
	if loop == nil {
		return nil
	}
	f := &flow{loop: loop, limits: c.Limits, owner: c.Owner, start: e.now(), epfd: loop.epfd}
	f.watched.flow = f
	f.mu.Lock()
	if !f.take(c) {
		f.mu.Unlock()
		return nil
	}
	f.begin(c)
	if !f.over {
		loop.clock.set(f, f.start+int64(f.next()))
	}
	f.releaseWith(func() { go f.owner.Done(*f.result) }) // never from within Start
	return f
}

// take makes both sockets the flow's own. The caller's are used up if all went
// well, and else untouched.
func (f *flow) take(c *Config) bool {
	legs := [2]*Leg{&c.Downstream, &c.Upstream}
	for i, l := range legs {
		fd, ok := l.descriptor()
		f.sides[i].fd = fd
		if !ok || !f.watch(direction(i), l) {
			f.untake(legs)
			return false
		}
	}
	for i, l := range legs {
		if s, ok := l.raw.(*Socket); ok && s.taken() {
			if s.late {
				f.sides[i].late = s.keepAlive
			}
		} else {
			l.raw.Close()
		}
		if l.tls != nil {
			t := &tlsSide{conn: l.tls, transport: l.transport, unread: true}
			t.transport.handOver()
			t.transport.fed = &t.feed
			f.sides[i].tls = t
		}
	}
	return true
}

// descriptor is what epoll can watch: a bare Socket's own, or else a dup, which
// is not in Go's poller.
func (l *Leg) descriptor() (fd int32, ok bool) {
	if s, is := l.raw.(*Socket); is {
		if fd, ok := s.bare(); ok {
			return fd, true
		}
	}
	return dupSocket(l.raw)
}

// watch lets epoll and the table know a leg's descriptor. Events wait for f.mu.
func (f *flow) watch(d direction, l *Leg) bool {
	s := &f.sides[d]
	at := f.loop.engine.table.at(s.fd)
	if at == nil {
		return false
	}
	op := unix.EPOLL_CTL_ADD
	if own, ok := l.raw.(*Socket); ok && own.release(f.loop) {
		op = unix.EPOLL_CTL_MOD
	}
	at.Store(&f.watched)
	s.mask, s.known = unix.EPOLLIN|unix.EPOLLRDHUP, true
	return epollCtl(f.loop.epfd, op, s.fd, s.mask) == 0
}

// untake gives back what take has got so far. Events that wait for f.mu find an
// ended flow.
func (f *flow) untake(legs [2]*Leg) {
	f.over = true
	for i := range f.sides {
		fd := f.sides[i].fd
		if fd <= 0 {
			continue
		}
		if at := f.loop.engine.table.at(fd); at != nil {
			at.Store(nil)
		}
		epollCtl(f.loop.epfd, unix.EPOLL_CTL_DEL, fd, 0)
		if s, ok := legs[i].raw.(*Socket); !ok || !s.holds(fd) {
			closeFD(fd) // a dup
		}
	}
}

// begin delivers what was read from the legs before Start: early bytes, then
// what a tls.Conn holds.
func (f *flow) begin(c *Config) {
	for i, l := range []*Leg{&c.Downstream, &c.Upstream} {
		if len(l.early) == 0 && l.tls == nil {
			continue
		}
		w, d := f.loop.engine.workspace(), direction(i)
		if len(l.early) > 0 && f.flowing(d) {
			f.deliver(w, d, l.early)
		}
		if l.tls != nil && f.flowing(d) {
			w.large()
			f.decrypted(w, d, nil)
		}
		f.loop.engine.spare.Put(w)
	}
	f.rearm()
}

// ready handles an event of one of the flow's sockets.
func (f *flow) ready(w *workspace, fd int32, events uint32) {
	f.mu.Lock()
	defer f.release()
	defer f.contain()
	for i := range f.sides {
		if f.sides[i].fd == fd && !f.over {
			f.event(w, direction(i), events)
			f.rearm()
		}
	}
}

func (f *flow) event(w *workspace, d direction, events uint32) {
	s := &f.sides[d]
	const gone = unix.EPOLLERR | unix.EPOLLHUP
	if events&gone != 0 {
		s.hung = true
	}
	if events&(unix.EPOLLOUT|gone) != 0 && s.holding() {
		f.flush(w, 1-d)
	}
	if s.eof && events&unix.EPOLLERR != 0 && !f.over {
		if errno := pendingError(s.fd); errno != 0 && !s.saidGoodbye() {
			f.failed(d.from(), ioError("read", errno))
		}
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|gone) != 0 {
		f.pump(w, d, events&(unix.EPOLLRDHUP|gone) != 0)
	}
}

const (
	// pumpBudget is what one event may move before other sessions have their turn:
	// about a fifth of a millisecond of work.
	pumpBudget = 1 << 20
	// tlsCost is how much more work a byte of TLS is.
	tlsCost = 4
	// heavyFrom is what makes a direction a heavy one, which waits for the others.
	heavyFrom = pumpBudget / 8
)

// isHeavy says whether the flow has moved much when it was last looked at.
func (f *flow) isHeavy() bool { return f.heavy.Load() != 0 }

// heldMax is how much is held for a side that is still read. The application's
// bytes are never so many: beyond are answers to a peer that asks for new keys
// again and again, and takes none.
const heldMax = 2 * tlsRead

// flowing says whether direction d can be read now.
func (f *flow) flowing(d direction) bool {
	src, dst := &f.sides[d], &f.sides[1-d]
	return !f.over && !src.eof && len(src.held) < heldMax && !dst.holding() && dst.broken == nil
}

// pump moves bytes in direction d while there are some, at most pumpBudget.
// Ending says that an end or an error is due behind them.
func (f *flow) pump(w *workspace, d direction, ending bool) {
	budget := pumpBudget
	for budget > 0 && f.flowing(d) {
		var n int
		var more bool
		switch {
		case f.sides[d].tls != nil:
			n, more = f.pumpTLS(w, d)
		case f.sides[d].bulk:
			n, more = f.splice(w, d)
		default:
			n, more = f.copy(w, d)
		}
		if f.secure() {
			n *= tlsCost
		}
		budget -= max(n, 1)
		if !more && !(ending && n > 0) {
			break
		}
	}
	bit := uint32(1) << d
	switch heavy := pumpBudget-budget >= heavyFrom; {
	case heavy == (f.heavy.Load()&bit != 0):
	case heavy:
		f.heavy.Or(bit)
	default:
		f.heavy.And(^bit)
	}
}

// copy reads once from a plain side and delivers it. More says that there may be
// more to read at once.
func (f *flow) copy(w *workspace, d direction) (n int, more bool) {
	in := w.in[:plainRead]
	if f.sides[1-d].tls != nil {
		w.large()
		in = w.in
	}
	if f.loop.engine.Budget.tight() {
		in = in[:tightRead]
	}
	n, errno := recv(f.sides[d].fd, in)
	if !f.received(w, d, n, errno) {
		return 0, false
	}
	f.deliver(w, d, in[:n])
	full := n == len(in)
	f.sides[d].bulk = full && f.canSplice()
	return n, full
}

// received judges a read; false if it gave no bytes.
func (f *flow) received(w *workspace, d direction, n int, errno syscall.Errno) bool {
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		f.failed(d.from(), ioError("read", errno))
		return false
	case n == 0:
		f.fin(w, d)
		return false
	}
	return true
}

func (f *flow) canSplice() bool {
	return !f.noSplice && !f.secure()
}

// secure says whether a side is TLS.
func (f *flow) secure() bool { return f.sides[0].tls != nil || f.sides[1].tls != nil }

// splice moves bytes from socket to socket in the kernel, through a pipe that is
// the flow's own only while the destination does not take all of it.
func (f *flow) splice(w *workspace, d direction) (n int, more bool) {
	src, dst := &f.sides[d], &f.sides[1-d]
	p := w.pipe()
	if p == nil {
		f.sides[d].bulk = false
		return 1, true // by copying
	}
	most := pipeSize
	if f.loop.engine.Budget.tight() {
		most = 2 * plainRead
	}
	n, errno := spliceFD(src.fd, p.w, most)
	if errno == syscall.EINVAL || errno == syscall.ENOMEM {
		f.noSplice, f.sides[d].bulk = true, false
		w.put(p)
		return 1, true
	}
	if !f.received(w, d, n, errno) {
		f.sides[d].bulk = false
		w.put(p)
		return 0, false
	}
	f.sides[d].bulk = n >= plainRead
	p.n, dst.pipe = n, p
	f.heard(d)
	f.drainPipe(w, d)
	return n, true
}

// drainPipe moves what is in the destination's pipe into its socket.
func (f *flow) drainPipe(w *workspace, d direction) {
	dst := &f.sides[1-d]
	for dst.pipe.n > 0 {
		n, errno := spliceFD(dst.pipe.r, dst.fd, dst.pipe.n)
		switch {
		case errno == syscall.EAGAIN:
			return
		case errno != 0:
			f.writeFailed(w, d, ioError("write", errno))
			return
		}
		dst.pipe.n -= n
		f.loop.engine.spliced.Add(int64(n))
		f.count(w, d, n)
	}
	w.put(dst.pipe)
	dst.pipe = nil
}

// pumpTLS reads once from a TLS side and delivers what its records hold.
func (f *flow) pumpTLS(w *workspace, d direction) (n int, more bool) {
	w.large()
	t, in := f.sides[d].tls, w.in
	if f.loop.engine.Budget.tight() {
		in = in[:tightRead]
	}
	n, errno := recv(f.sides[d].fd, in)
	switch {
	case errno == syscall.EAGAIN && !t.unread:
		return 0, false
	case errno == syscall.EAGAIN:
		n = 0
	case errno != 0:
		n, t.feed.end = 0, ioError("read", errno)
	case n == 0:
		t.feed.end = io.EOF
	}
	f.decrypted(w, d, in[:n])
	return n, n == len(in)
}

// decrypted lets a side's tls.Conn have what was received, and delivers what it
// makes of it.
func (f *flow) decrypted(w *workspace, d direction, in []byte) {
	t := f.sides[d].tls
	t.feed.in, t.unread = in, false
	n, err := 0, error(nil)
	f.lend(w, d.from(), func() {
		for err == nil {
			var k int
			k, err = t.conn.Read(w.plain[n:])
			n += k
		}
	})
	t.feed.in = nil
	if n > 0 {
		f.deliver(w, d, w.plain[:n])
	}
	switch {
	case f.over || err == errWouldBlock:
	case err == io.EOF:
		f.fin(w, d)
	default:
		f.failed(d.from(), err)
	}
}

// lend lets the tls.Conn of a side write records, and sends them: what it is
// told to write, and answers of its own, like those to a KeyUpdate.
func (f *flow) lend(w *workspace, side Side, work func()) {
	i := int(side) - 1
	t := f.sides[i].tls
	w.out = w.out[:0]
	t.feed.out = &w.out
	work()
	t.feed.out = nil
	if len(w.out) > 0 && f.sides[i].broken == nil {
		f.put(w, 1-direction(i), w.out)
	}
}

// deliver gives bytes of direction d to the other side, which holds what it does
// not take now, and counts them.
func (f *flow) deliver(w *workspace, d direction, b []byte) {
	f.heard(d)
	dst := &f.sides[1-d]
	if dst.tls == nil {
		f.count(w, d, f.put(w, d, b))
		return
	}
	var err error
	w.large()
	f.lend(w, d.to(), func() { _, err = dst.tls.conn.Write(b) })
	switch {
	case err != nil && !f.over:
		f.writeFailed(w, d, err)
	case dst.broken == nil:
		dst.tls.owed = min(len(b), len(dst.held))
		f.count(w, d, len(b)-dst.tls.owed)
	}
}

// heard settles the session at the first byte from upstream.
func (f *flow) heard(d direction) {
	if d == down && !f.settling {
		f.settling, f.tellSettled = true, true
	}
}

// put sends bytes to the destination of direction d, and lets it hold the rest.
// It returns how many were sent.
func (f *flow) put(w *workspace, d direction, b []byte) int {
	dst := &f.sides[1-d]
	if dst.holding() {
		dst.held = append(dst.held, b...)
		return 0
	}
	n, errno := send(dst.fd, b)
	switch {
	case errno == syscall.EAGAIN:
		n = 0
	case errno != 0:
		f.writeFailed(w, d, ioError("write", errno))
		return 0
	}
	if n < len(b) {
		dst.held = append([]byte(nil), b[n:]...)
	}
	return n
}

// flush sends what the destination of direction d holds. When it holds nothing
// more, the direction goes on: with its FIN, or with what can be read.
func (f *flow) flush(w *workspace, d direction) {
	dst := &f.sides[1-d]
	if dst.pipe != nil {
		f.drainPipe(w, d)
	} else {
		n, errno := send(dst.fd, dst.held)
		switch {
		case errno == syscall.EAGAIN:
			n = 0
		case errno != 0:
			n = 0
			f.writeFailed(w, d, ioError("write", errno))
		}
		// Moved to the front, so that its capacity stays what it costs.
		if dst.held = dst.held[:copy(dst.held, dst.held[min(n, len(dst.held)):])]; len(dst.held) == 0 {
			dst.held = nil
		}
		if dst.tls != nil { // records are longer than what is in them: once all are gone, all is counted
			n = min(n, dst.tls.owed)
			dst.tls.owed -= n
		}
		f.count(w, d, n)
	}
	if dst.holding() || dst.broken != nil && !dst.refusesGoodbye() || f.over {
		return
	}
	if f.sides[d].eof {
		f.passFIN(w, d)
	} else {
		f.pump(w, d, f.sides[d].hung)
	}
}

func (f *flow) count(w *workspace, d direction, n int) {
	if n > 0 {
		f.moved[d].Add(int64(n))
		f.last[d].Store(max(w.now-f.start, 1))
	}
}

// fin is the FIN of a side, TLS or not: the other direction may go on.
func (f *flow) fin(w *workspace, d direction) {
	src := &f.sides[d]
	src.eof = true
	switch {
	case src.refusesGoodbye():
		f.passFIN(w, 1-d) // as far as it takes one
	case src.broken != nil: // it refuses our bytes: this is its reset, whose error the write has taken
		f.failed(d.from(), src.broken)
		return
	}
	if f.firstClose == None {
		f.firstClose = d.from()
	}
	if src.tls != nil && src.tls.transport.cut() {
		f.truncated = true
	}
	if dst := &f.sides[1-d]; !dst.holding() && dst.broken == nil {
		f.passFIN(w, d)
	}
}

// passFIN passes a FIN on once all before it has been sent: close_notify first
// where there is TLS. The second FIN ends the session.
func (f *flow) passFIN(w *workspace, d direction) {
	src, dst := &f.sides[d], &f.sides[1-d]
	if src.hung && !f.sides[1-d].passed && !src.saidGoodbye() {
		if errno := pendingError(src.fd); errno != 0 { // a RST came with the FIN, and epoll need not tell again
			f.failed(d.from(), ioError("read", errno))
			return
		}
	}
	if t := dst.tls; t != nil && !t.notified {
		t.notified = true
		w.large()
		f.lend(w, d.to(), func() { t.conn.CloseWrite() })
		t.transport.shut.Store(true)
		if dst.holding() || dst.broken != nil && !dst.refusesGoodbye() || f.over {
			return // flush comes back, or the session ends
		}
	}
	f.sides[d].passed = true
	if f.sides[1-d].passed {
		f.conclude(Result{End: EndClosed})
		return
	}
	shutdownWrite(dst.fd)
	if f.limits.HalfCloseIdle > 0 {
		f.last[d].Store(max(w.now-f.start, 1))
		f.loop.clock.set(f, f.start+int64(f.next()))
	}
}

// writeFailed ends direction d, whose destination takes no more. What that side
// had sent before may still be in the kernel, so it is read on and tells how it
// ended; if it has ended already, this was its reset.
func (f *flow) writeFailed(w *workspace, d direction, err error) {
	src, dst := &f.sides[d], &f.sides[1-d]
	dst.broken, dst.held = err, nil
	if dst.pipe != nil {
		w.put(dst.pipe)
		dst.pipe = nil
	}
	switch {
	case src.broken != nil: // both take no more, so nobody reads: the first to refuse began it
		f.failed(d.from(), src.broken)
	case dst.refusesGoodbye(): // passFIN goes on
	case dst.eof || !isReset(err):
		f.failed(d.to(), err)
	}
}

// failed ends the session because side answered with err.
func (f *flow) failed(side Side, err error) {
	f.conclude(Result{End: ending(side, err), Err: err, ErrSide: side})
}

// conclude decides how the session ends and closes both sockets: with RST,
// unless both sides have ended. Only the first call counts.
func (f *flow) conclude(r Result) {
	if f.over {
		return
	}
	f.decide(r)
	f.close(r.End != EndClosed)
}

func (f *flow) decide(r Result) {
	r.FirstClose, r.Truncated = f.firstClose, f.truncated
	if r.FirstClose == None {
		r.FirstClose = r.ErrSide
	}
	f.over, f.result = true, &r
	f.loop.clock.remove(f)
}

// close closes both sockets, once the ending is decided, and makes the result
// final.
func (f *flow) close(reset bool) {
	for i := range f.sides {
		s := &f.sides[i]
		f.loop.engine.table.at(s.fd).Store(nil)
		if reset {
			closeWithReset(s.fd)
		} else {
			closeFD(s.fd)
		}
		if s.pipe != nil {
			s.pipe.close()
		}
		*s = side{fd: -1, eof: s.eof}
	}
	f.account()
	r := f.result
	r.Settled = f.settling
	r.Up, r.Down, r.Duration = f.Up(), f.Down(), time.Duration(f.loop.engine.now()-f.start)
	f.tellDone = true
}

// release unlocks the flow and calls what is due.
func (f *flow) release() {
	f.releaseWith(func() { f.owner.Done(*f.result) })
}

func (f *flow) releaseWith(done func()) {
	if f.tellSettled {
		f.tellSettled, f.telling = false, true
		f.mu.Unlock()
		if f.owner != nil {
			f.owner.Settled()
		}
		f.mu.Lock()
		f.telling = false
	}
	over := f.tellDone && !f.telling
	f.tellDone = f.tellDone && !over
	f.mu.Unlock()
	if over && f.owner != nil {
		done()
	}
}

// contain turns a bug into the end of one session.
func (f *flow) contain() {
	if v := recover(); v != nil {
		f.conclude(Result{End: EndInternal, Err: &PanicError{v, debug.Stack()}})
	}
}

// Stop ends the session with a RST on both sides.
func (f *flow) Stop(cause error) {
	f.mu.Lock()
	f.conclude(Result{End: EndStopped, Cause: cause})
	f.releaseWith(func() { go f.owner.Done(*f.result) }) // never from within Stop
}

// FinishIfIdle ends an idle session with a FIN on both sides.
func (f *flow) FinishIfIdle(atLeast time.Duration, cause error) bool {
	f.mu.Lock()
	silent, _ := f.Quiet()
	a, b := &f.sides[0], &f.sides[1]
	idle := !f.over && silent >= atLeast && !a.eof && !b.eof && !a.holding() && !b.holding()
	if idle {
		f.decide(Result{End: EndStopped, Cause: cause})
		f.sayGoodbye()
		f.close(false)
	}
	f.releaseWith(func() { go f.owner.Done(*f.result) }) // never from within FinishIfIdle
	return idle
}

// sayGoodbye writes close_notify where there is TLS. An idle socket has room for
// it; one that has not goes without.
func (f *flow) sayGoodbye() {
	var out []byte
	for i := range f.sides {
		if t := f.sides[i].tls; t != nil {
			out = out[:0]
			t.feed.out = &out
			if t.conn.CloseWrite(); len(out) > 0 {
				send(f.sides[i].fd, out)
			}
		}
	}
}

// tick looks which limit is reached, and tells the clock when to look next.
func (f *flow) tick() {
	f.mu.Lock()
	defer f.release()
	if f.over {
		return
	}
	now := time.Duration(f.loop.engine.now() - f.start)
	if now >= SettleAfter && !f.grown {
		f.growUp()
	}
	if end, reached := f.limits.reached(now, f.lastMoved(), f.halfClosed()); reached {
		f.conclude(Result{End: end})
		return
	}
	if next := f.next(); next < forever {
		f.loop.clock.set(f, f.start+int64(next))
	}
}

// growUp settles a session that has lived for SettleAfter, and gives its sockets
// what they were spared until then.
func (f *flow) growUp() {
	f.grown = true
	if !f.settling {
		f.settling, f.tellSettled = true, true
	}
	for i := range f.sides {
		if s := &f.sides[i]; s.late != nil {
			setKeepAlive(s.fd, s.late)
			s.late = nil
		}
	}
}

// next is when, after the start, a limit could next be reached.
func (f *flow) next() time.Duration {
	next := f.limits.next(f.lastMoved(), f.halfClosed())
	if !f.grown {
		next = min(next, SettleAfter)
	}
	return next
}

func (f *flow) lastMoved() time.Duration {
	return time.Duration(max(f.last[up].Load(), f.last[down].Load()))
}

// rearm tells epoll what to watch for, where that has changed.
func (f *flow) rearm() {
	if f.over {
		return
	}
	f.account()
	for i := range f.sides {
		d, s := direction(i), &f.sides[i]
		var mask uint32
		if f.flowing(d) {
			mask = unix.EPOLLIN | unix.EPOLLRDHUP
		}
		if s.holding() {
			mask |= unix.EPOLLOUT
		}
		// A socket that has hung up reports that again and again, whatever it is
		// watched for: it is left alone until there is something to do about it.
		known := mask != 0 || !s.hung
		op := unix.EPOLL_CTL_MOD
		switch {
		case known && s.known && mask == s.mask, !known && !s.known:
			continue
		case !known:
			op = unix.EPOLL_CTL_DEL
		case !s.known:
			op = unix.EPOLL_CTL_ADD
		}
		s.mask, s.known = mask, known
		if errno := epollCtl(f.epfd, op, s.fd, mask); errno != 0 {
			f.conclude(Result{End: EndInternal, Err: ioError("epoll_ctl", errno)})
			return
		}
	}
}

// move lets another loop wait for the flow's sockets. It is false, and nothing has
// changed, where from does not, or that fails. An event that from has already may
// still be handled there.
func (f *flow) move(from, to *loop) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.epfd != from.epfd || from == to {
		return false
	}
	for i := range f.sides {
		if s := &f.sides[i]; s.known && epollCtl(to.epfd, unix.EPOLL_CTL_ADD, s.fd, s.mask) != 0 {
			if i > 0 && f.sides[0].known {
				epollCtl(to.epfd, unix.EPOLL_CTL_DEL, f.sides[0].fd, 0)
			}
			return false
		}
	}
	for i := range f.sides {
		if s := &f.sides[i]; s.known {
			epollCtl(from.epfd, unix.EPOLL_CTL_DEL, s.fd, 0)
		}
	}
	f.epfd = to.epfd
	return true
}
