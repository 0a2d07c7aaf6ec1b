package relay

import (
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/relay/ledger"
)

// flow is a Session of the epoll engine: two sockets, without a goroutine and a
// buffer while they are quiet.
//
// A socket's event is only a hint: the flow tries what can be done. So a late
// event, for a descriptor that has another owner by now, is harmless.
type flow struct {
	// Static after start.
	watched watched // the flow's entry in the table
	loop    *loop   // whose clock and memory it uses; another may wait for its sockets
	limits  Limits
	owner   Owner
	start   int64 // on the engine's clock, like all times

	moved [2]atomic.Int64 // bytes delivered, by direction
	last  [2]atomic.Int64 // when a byte last moved, by direction, in nanoseconds after start
	held  atomic.Int64    // bytes held for the sides, as counted in the budget
	heavy atomic.Uint32   // bits of the directions whose last event moved much

	heapIndex int32 // guarded by clock.mu; 0: not in the clock's heap
	due       int64 // guarded by clock.mu

	mu       sync.Mutex
	sides    [2]side              // guarded by mu, like all below
	ledger   ledger.Ledger        // over: the sockets are closed, too
	late     *net.KeepAliveConfig // options still to be set for the upstream; nil: none
	holdFIN  time.Duration        // see Config; 0 once the downstream's FIN is passed on
	epfd     int32                // the epoll descriptor that has the sockets
	bulk     [2]bool              // the direction is spliced
	noSplice bool                 // the kernel cannot splice these sockets, or has no memory for it
	settling bool                 // Settled was called, or is due
	aged     bool                 // it has lived for SettleAfter
	heldFIN  bool                 // the downstream's FIN is not passed on yet, because of holdFIN

	dueSettled, dueDone bool // the calls that release still has to make
	inSettled           bool // Settled is running: Done waits for its return
}

// side is one socket of a flow.
type side struct {
	fd    int32  // -1 once closed
	mask  uint16 // the events that epoll watches
	known bool   // epoll has the descriptor
	hung  bool   // epoll has reported a hang-up or an error, and will report it again
	held  []byte // bytes for it that it has not accepted yet
	pipe  *pipe  // the same, spliced
	tls   *tlsSide
}

// finKind is how the side's FIN has come.
func (s *side) finKind() ledger.FINKind {
	if s.tls == nil {
		return ledger.FINPlain
	}
	return s.tls.transport.finKind()
}

func (s *side) holding() bool { return len(s.held) > 0 || s.pipe != nil }

// Up is the number of bytes delivered to the upstream so far.
func (f *flow) Up() int64 { return f.moved[up].Load() }

// Down is the number of bytes delivered to the downstream so far.
func (f *flow) Down() int64 { return f.moved[down].Load() }

// Held is how many bytes the session holds.
func (f *flow) Held() int64 { return f.held.Load() }

// account updates the budget to the bytes that the session holds now.
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

// Quiet is how long no byte has moved, and which side sent the last one.
func (f *flow) Quiet() (time.Duration, Side) {
	return quiet(time.Duration(f.loop.engine.now()-f.start), f.last[up].Load(), f.last[down].Load())
}

// HalfClosed reports whether exactly one side has ended.
func (f *flow) HalfClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ledger.HalfClosed()
}

// startFlow makes a flow of two sockets. It returns nil, and changes nothing, if
// a side is not a socket or resources do not suffice.
func (e *Engine) startFlow(c *Config) *flow {
	loop := e.homeOrLoop(c.Downstream.raw)
	if loop == nil {
		return nil
	}
	f := &flow{loop: loop, limits: c.Limits, holdFIN: c.HoldFIN, owner: c.Owner, start: e.now(), epfd: loop.epfd}
	f.watched.flow = f
	f.mu.Lock()
	if !f.take(c) {
		f.mu.Unlock()
		return nil
	}
	f.begin(c)
	if !f.ledger.Over {
		loop.clock.set(f, f.start+int64(f.next()))
	}
	f.releaseWith(func() { go f.owner.Done(*f.ledger.Result) }) // never from within Start
	return f
}

// take makes both sockets the flow's own. On success the caller's connections are
// used up, else unchanged.
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
		setLingerZero(f.sides[i].fd) // if the process dies, the kernel sends a RST
		if s, ok := l.raw.(*Socket); ok && s.taken() {
			switch {
			case s.late && direction(i) == down:
				f.late = s.keepAlive
			case s.late:
				setKeepAlive(f.sides[i].fd, s.keepAlive)
			}
		} else {
			l.raw.Close()
		}
		if l.tls != nil {
			t := &tlsSide{conn: l.tls, transport: l.transport, shadow: l.shadow, unread: true}
			t.transport.handOver()
			if t.shadow != nil {
				t.shadow.Detach()
			}
			t.transport.fed = &t.feed
			f.sides[i].tls = t
		}
	}
	return true
}

// descriptor returns a descriptor for epoll: that of a Socket outside of Go's
// poller, or a dup, which is not in Go's poller either.
func (l *Leg) descriptor() (fd int32, ok bool) {
	if s, is := l.raw.(*Socket); is {
		if fd, ok := s.bare(); ok {
			return fd, true
		}
	}
	return dupSocket(l.raw)
}

// watch adds a leg's descriptor to epoll and the table. Its events wait for f.mu.
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
	return epollCtl(f.loop.epfd, op, s.fd, uint32(s.mask)) == 0
}

// untake undoes take. Events that wait for f.mu find an ended flow.
func (f *flow) untake(legs [2]*Leg) {
	f.ledger.Over = true
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

// begin delivers the bytes read from the legs before Start: early bytes, then
// those that a tls.Conn holds.
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
			f.decrypted(w, d, w.in[:f.sides[d].tls.tail(w.in)])
		}
		f.loop.engine.workspaces.Put(w)
	}
	f.rearm()
}

// ready handles an event of one of the flow's sockets.
func (f *flow) ready(w *workspace, fd int32, events uint32) {
	f.mu.Lock()
	defer f.release()
	defer f.contain()
	for i := range f.sides {
		if f.sides[i].fd == fd && !f.ledger.Over {
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
	if own := &f.ledger.Sides[d]; own.EOF && events&unix.EPOLLERR != 0 && !f.ledger.Over {
		if errno := pendingError(s.fd); errno != 0 && !own.Clean {
			f.failed(d.from(), ioError("read", errno))
		}
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|gone) != 0 {
		f.pump(w, d, events&(unix.EPOLLRDHUP|gone) != 0)
	}
}

const (
	// pumpBudget is how many bytes one event may move before other sessions have their
	// turn: about a fifth of a millisecond of work.
	pumpBudget = 1 << 20
	// tlsCost is the cost of a TLS byte relative to a plain one.
	tlsCost = 4
	// heavyFrom makes a direction heavy: it waits for the others.
	heavyFrom = pumpBudget / 8
)

// isHeavy reports whether the flow's last event moved much.
func (f *flow) isHeavy() bool { return f.heavy.Load() != 0 }

// heldMax bounds the bytes held for a side that is still read. Application bytes
// never reach it; only answers to a peer that requests new keys again and again,
// and reads none, do.
const heldMax = 2 * tlsRead

// flowing reports whether direction d can be read now.
func (f *flow) flowing(d direction) bool {
	src, dst := &f.sides[d], &f.sides[1-d]
	return !f.ledger.Over && !f.ledger.Sides[d].EOF && len(src.held) < heldMax && !dst.holding() && f.ledger.Sides[1-d].Broken == nil
}

// pump moves bytes in direction d while there are some, at most pumpBudget.
// Ending says that a FIN or an error is due behind them.
func (f *flow) pump(w *workspace, d direction, ending bool) {
	budget := pumpBudget
	for budget > 0 && f.flowing(d) {
		var n int
		var more bool
		switch {
		case f.sides[d].tls != nil:
			n, more = f.pumpTLS(w, d)
		case f.bulk[d]:
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

// copy reads once from a plain side and delivers the bytes. More reports that
// there may be more to read at once.
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
	f.bulk[d] = full && f.canSplice()
	return n, full
}

// received handles the result of a read; it returns false if there are no bytes.
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

// secure reports whether a side is TLS.
func (f *flow) secure() bool { return f.sides[0].tls != nil || f.sides[1].tls != nil }

// splice moves bytes from socket to socket in the kernel, through a pipe that the
// flow keeps only while the destination does not accept all of them.
func (f *flow) splice(w *workspace, d direction) (n int, more bool) {
	src, dst := &f.sides[d], &f.sides[1-d]
	p := w.pipe()
	if p == nil {
		f.bulk[d] = false
		return 1, true // by copying
	}
	most := pipeSize
	if f.loop.engine.Budget.tight() {
		most = 2 * plainRead
	}
	n, errno := spliceFD(src.fd, p.w, most)
	if errno == syscall.EINVAL || errno == syscall.ENOMEM {
		f.noSplice, f.bulk[d] = true, false
		w.put(p)
		return 1, true
	}
	if !f.received(w, d, n, errno) {
		f.bulk[d] = false
		w.put(p)
		return 0, false
	}
	f.bulk[d] = n >= plainRead
	p.n, dst.pipe = n, p
	f.settleAtFirstByte(d)
	f.drainPipe(w, d)
	return n, true
}

// drainPipe moves the bytes in the destination's pipe into its socket.
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

// pumpTLS reads once from a TLS side and delivers the plaintext.
func (f *flow) pumpTLS(w *workspace, d direction) (n int, more bool) {
	w.large()
	t, in := f.sides[d].tls, w.in
	tail := t.tail(in)
	if f.loop.engine.Budget.tight() {
		in = in[:tail+tightRead]
	}
	n, errno := recv(f.sides[d].fd, in[tail:])
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
	f.decrypted(w, d, in[:tail+n])
	return n, tail+n == len(in)
}

// decrypted feeds received bytes to a side's tls.Conn, and delivers the
// plaintext.
func (f *flow) decrypted(w *workspace, d direction, in []byte) {
	t := f.sides[d].tls
	in, unread := t.whole(in), t.unread
	t.feed.in, t.unread = in, false
	n, err := 0, error(nil)
	f.lend(w, d.from(), func() {
		for err == nil {
			var k int
			k, err = t.conn.Read(w.plain[n:])
			n += k
		}
		t.follow(in, n, unread)
	})
	t.feed.in = nil
	if n > 0 {
		f.deliver(w, d, w.plain[:n])
	}
	switch {
	case f.ledger.Over || err == errWouldBlock:
	case err == io.EOF:
		f.fin(w, d)
	default:
		f.failed(d.from(), ledger.TLSFailure(err))
	}
}

// lend calls work with an output buffer for the side's tls.Conn, and then sends
// the records in it: those that work writes, and answers of crypto/tls, like
// those to a KeyUpdate.
func (f *flow) lend(w *workspace, side Side, work func()) {
	i := int(side) - 1
	t := f.sides[i].tls
	w.out = w.out[:0]
	t.feed.out = &w.out
	work()
	t.feed.out = nil
	if t.shadow != nil {
		t.shadow.Sent(w.out)
	}
	if len(w.out) > 0 && f.ledger.Sides[i].Broken == nil {
		f.put(w, 1-direction(i), w.out)
	}
}

// deliver sends bytes of direction d to the other side and counts them. The other
// side holds those that it does not accept now.
func (f *flow) deliver(w *workspace, d direction, b []byte) {
	f.settleAtFirstByte(d)
	dst := &f.sides[1-d]
	if dst.tls == nil {
		f.count(w, d, f.put(w, d, b))
		return
	}
	var err error
	w.large()
	f.lend(w, d.to(), func() { _, err = dst.tls.conn.Write(b) })
	switch {
	case err != nil && !f.ledger.Over:
		f.writeFailed(w, d, ledger.TLSFailure(err))
	case f.ledger.Sides[1-d].Broken == nil:
		dst.tls.owed = min(len(b), len(dst.held))
		f.count(w, d, len(b)-dst.tls.owed)
	}
}

// settleAtFirstByte settles the session at the first byte from upstream.
func (f *flow) settleAtFirstByte(d direction) {
	if d == down && !f.settling {
		f.settling, f.dueSettled = true, true
	}
}

// put sends bytes to the destination of direction d, which holds the rest. It
// returns how many were sent.
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

// flush sends the bytes that the destination of direction d holds. When none are
// left, the direction continues: with its FIN, or with reading.
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
		// Move the rest to the front, so that the capacity is what it costs.
		if dst.held = dst.held[:copy(dst.held, dst.held[min(n, len(dst.held)):])]; len(dst.held) == 0 {
			dst.held = nil
		}
		if dst.tls != nil { // records are longer than their content, so n overcounts until all are sent
			n = min(n, dst.tls.owed)
			dst.tls.owed -= n
		}
		f.count(w, d, n)
	}
	if dst.holding() || f.ledger.Sides[1-d].Refusing() || f.ledger.Over {
		return
	}
	if f.ledger.Sides[d].EOF {
		f.passOrHoldFIN(w, d)
	} else {
		f.pump(w, d, f.sides[d].hung)
	}
}

func (f *flow) count(w *workspace, d direction, n int) {
	if n > 0 {
		f.moved[d].Add(int64(n))
		f.last[d].Store(max(w.now-f.start, f.last[1-d].Load()+1)) // later than what moved before in the same batch of events
	}
}

// fin handles the FIN of a side, TLS or not: the other direction may continue.
func (f *flow) fin(w *workspace, d direction) {
	if f.end(f.ledger.FIN(d.from(), f.sides[d].finKind())) {
		return
	}
	if f.accepts(d) {
		f.passOrHoldFIN(w, d)
	}
	if d == down && f.heldFIN && !f.ledger.Over && f.accepts(up) {
		f.passFIN(w, up)
	}
}

// accepts reports whether the destination of direction d can be sent something now.
func (f *flow) accepts(d direction) bool {
	return !f.sides[1-d].holding() && f.ledger.Sides[1-d].Broken == nil
}

// passOrHoldFIN passes a FIN on, or holds that of the downstream back as holdFIN says.
func (f *flow) passOrHoldFIN(w *workspace, d direction) {
	if d == down || f.holdFIN == 0 || f.ledger.Sides[down].EOF {
		f.passFIN(w, d)
		return
	}
	f.heldFIN = true
	f.last[d].Store(max(w.now-f.start, 1))
	f.loop.clock.set(f, f.start+int64(f.next()))
}

// passFIN passes a FIN on after all bytes before it were sent: close_notify first
// if there is TLS. The second FIN ends the session.
func (f *flow) passFIN(w *workspace, d direction) {
	src, dst := &f.sides[d], &f.sides[1-d]
	if d == up {
		f.holdFIN, f.heldFIN = 0, false
	}
	if src.hung && !f.ledger.Sides[1-d].Passed && !f.ledger.Sides[d].Clean {
		if errno := pendingError(src.fd); errno != 0 { // a RST followed the FIN, and epoll may not report it again
			f.failed(d.from(), ioError("read", errno))
			return
		}
	}
	if t := dst.tls; t != nil && !t.notified {
		t.notified = true
		w.large()
		f.lend(w, d.to(), func() { t.conn.CloseWrite() })
		t.transport.shut.Store(true)
		if dst.holding() || f.ledger.Over {
			return // flush calls again, or the session ends
		}
	}
	if f.end(f.ledger.Passed(d.from())) {
		return
	}
	shutdownWrite(dst.fd)
	if f.limits.HalfCloseIdle > 0 {
		f.last[d].Store(max(w.now-f.start, 1))
		f.loop.clock.set(f, f.start+int64(f.next()))
	}
}

// writeFailed ends direction d, whose destination does not accept bytes any more, or
// not our close_notify.
func (f *flow) writeFailed(w *workspace, d direction, err error) {
	dst := &f.sides[1-d]
	dst.held = nil
	if dst.pipe != nil {
		w.put(dst.pipe)
		dst.pipe = nil
	}
	if dst.tls != nil && dst.tls.notified {
		f.end(f.ledger.NotifyFailed(d.to(), err))
	} else {
		f.end(f.ledger.WriteFailed(d.to(), err))
	}
}

// failed ends the session because of an error of side.
func (f *flow) failed(side Side, err error) { f.end(f.ledger.Failed(side, err)) }

// conclude ends the session. Only the first call has an effect.
func (f *flow) conclude(r Result) { f.end(f.ledger.Conclude(r)) }

// end closes both sockets if the session is over: with RST, unless both sides have
// ended. It returns over.
func (f *flow) end(over bool) bool {
	if over {
		f.close(f.ledger.Result.End != EndClosed)
	}
	return over
}

// close closes both sockets, after the ending is decided, and makes the result
// final.
func (f *flow) close(reset bool) {
	f.loop.clock.remove(f)
	for i := range f.sides {
		s := &f.sides[i]
		f.loop.engine.table.at(s.fd).Store(nil)
		if !reset {
			setLingerOff(s.fd)
		}
		closeFD(s.fd)
		if s.pipe != nil {
			s.pipe.close()
		}
		*s = side{fd: -1}
	}
	f.account()
	r := f.ledger.Result
	r.Settled = f.settling
	r.Up, r.Down, r.Duration = f.Up(), f.Down(), time.Duration(f.loop.engine.now()-f.start)
	f.dueDone = true
}

// release unlocks the flow and makes the calls that are due.
func (f *flow) release() {
	f.releaseWith(func() { f.owner.Done(*f.ledger.Result) })
}

func (f *flow) releaseWith(done func()) {
	if f.dueSettled {
		f.dueSettled, f.inSettled = false, true
		f.mu.Unlock()
		if f.owner != nil {
			f.owner.Settled()
		}
		f.mu.Lock()
		f.inSettled = false
	}
	over := f.dueDone && !f.inSettled
	f.dueDone = f.dueDone && !over
	f.mu.Unlock()
	if over && f.owner != nil {
		done()
	}
}

// contain turns a panic into the end of one session.
func (f *flow) contain() {
	if v := recover(); v != nil {
		f.conclude(Result{End: EndInternal, Err: &PanicError{v, debug.Stack()}})
	}
}

// Stop ends the session with a RST on both sides.
func (f *flow) Stop(cause error) {
	f.mu.Lock()
	f.conclude(Result{End: EndStopped, Cause: cause})
	f.releaseWith(func() { go f.owner.Done(*f.ledger.Result) }) // never from within Stop
}

// FinishIfIdle ends an idle session with a FIN on both sides.
func (f *flow) FinishIfIdle(atLeast time.Duration, cause error) bool {
	f.mu.Lock()
	silent, _ := f.Quiet()
	a, b := &f.sides[0], &f.sides[1]
	idle := !f.ledger.Over && silent >= atLeast && !f.ledger.Sides[0].EOF && !f.ledger.Sides[1].EOF && !a.holding() && !b.holding()
	if idle {
		f.ledger.Conclude(Result{End: EndStopped, Cause: cause})
		f.sendCloseNotify()
		f.close(false)
	}
	f.releaseWith(func() { go f.owner.Done(*f.ledger.Result) }) // never from within FinishIfIdle
	return idle
}

// sendCloseNotify writes close_notify to TLS sides. An idle socket has room for
// it; if one has not, it is left out.
func (f *flow) sendCloseNotify() {
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

// tick checks the limits, and sets the next deadline.
func (f *flow) tick() {
	f.mu.Lock()
	defer f.release()
	if f.ledger.Over {
		return
	}
	now := time.Duration(f.loop.engine.now() - f.start)
	if now >= SettleAfter && !f.aged {
		f.age()
	}
	if end, reached := f.limits.reached(now, f.lastMoved(), f.ledger.HalfClosed()); reached {
		f.conclude(Result{End: end})
		return
	}
	if f.heldFIN && now-f.lastMoved() >= f.holdFIN {
		w := f.loop.engine.workspace()
		f.passFIN(w, up)
		f.loop.engine.workspaces.Put(w)
		f.rearm()
		if f.ledger.Over {
			return
		}
	}
	if next := f.next(); next < forever {
		f.loop.clock.set(f, f.start+int64(next))
	}
}

// age settles a session that has lived for SettleAfter, and sets the socket
// options that were delayed until then.
func (f *flow) age() {
	f.aged = true
	if !f.settling {
		f.settling, f.dueSettled = true, true
	}
	if f.late != nil {
		setKeepAlive(f.sides[1].fd, f.late)
		f.late = nil
	}
}

// next is when, after the start, a limit could next be reached.
func (f *flow) next() time.Duration {
	next := f.limits.next(f.lastMoved(), f.ledger.HalfClosed())
	if !f.aged {
		next = min(next, SettleAfter)
	}
	if f.heldFIN {
		next = min(next, f.lastMoved()+f.holdFIN)
	}
	return next
}

func (f *flow) lastMoved() time.Duration {
	return time.Duration(max(f.last[up].Load(), f.last[down].Load()))
}

// rearm changes the events that epoll watches, as needed.
func (f *flow) rearm() {
	if f.ledger.Over {
		return
	}
	f.account()
	for i := range f.sides {
		d, s := direction(i), &f.sides[i]
		var mask uint16
		if f.flowing(d) {
			mask = unix.EPOLLIN | unix.EPOLLRDHUP
		}
		if s.holding() {
			mask |= unix.EPOLLOUT
		}
		// Epoll reports a hang-up again and again, whatever events are watched: the
		// socket is removed until there is something to do with it.
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
		if errno := epollCtl(f.epfd, op, s.fd, uint32(mask)); errno != 0 {
			f.conclude(Result{End: EndInternal, Err: ioError("epoll_ctl", errno)})
			return
		}
	}
}

// move moves the flow's sockets to another loop. It returns false, and changes
// nothing, if from does not have them or the move fails. An event that from has
// already received may still be handled there.
func (f *flow) move(from, to *loop) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ledger.Over || f.epfd != from.epfd || from == to {
		return false
	}
	for i := range f.sides {
		if s := &f.sides[i]; s.known && epollCtl(to.epfd, unix.EPOLL_CTL_ADD, s.fd, uint32(s.mask)) != 0 {
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
