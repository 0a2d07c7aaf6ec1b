package relay

import (
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// direction is also the index of the leg that it reads.
type direction int

const (
	up   direction = 0 // from downstream to upstream
	down direction = 1
)

// from is the side that a direction reads; to is the side that it writes.
func (d direction) from() Side { return Side(d + 1) }
func (d direction) to() Side   { return Side(2 - d) }

// portable is the engine with two goroutines per session: for systems without
// epoll, for connections that are not sockets, and as the reference in tests.
type portable struct {
	buffers sync.Pool
}

// bufferSize is the size of a read: a power of two above the usual 16 KiB of a TLS
// record.
const bufferSize = 32 << 10

func (e *portable) buffer() *[]byte {
	if b, ok := e.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, bufferSize)
	return &b
}

func (e *portable) start(c Config, budget *Budget) Session {
	s := &pumped{engine: e, budget: budget, cfg: c, legs: [2]Leg{c.Downstream, c.Upstream}, start: time.Now(), pumps: 2}
	for i := range s.legs {
		l := &s.legs[i]
		l.raw = pollable(l.raw)
		if l.transport != nil {
			l.transport.handOver()
		}
	}
	s.mu.Lock()
	s.timer = time.AfterFunc(s.untilNext(), s.tick)
	s.mu.Unlock()
	go s.pump(up)   // finish waits for it
	go s.pump(down) // finish waits for it
	return s
}

// pumped is a Session of the portable engine.
type pumped struct {
	// Static after start.
	engine *portable
	budget *Budget
	legs   [2]Leg
	cfg    Config
	start  time.Time

	moved [2]atomic.Int64 // bytes delivered, by direction
	last  [2]atomic.Int64 // when a byte last moved, by direction, in nanoseconds after start
	held  [2]atomic.Bool  // bytes are read but not written yet, by direction

	mu       sync.Mutex
	timer    *time.Timer // guarded by mu, like all below
	result   Result
	over     bool     // result.End is decided
	settling bool     // Settled was called
	ended    [2]bool  // directions whose source has sent a FIN
	finished [2]bool  // directions that have passed it on
	broken   [2]error // the error of a failed write to a leg, by the leg's index
	refused  [2]error // the error of our close_notify to a leg
	pumps    int      // running pumps, and a running call of Settled
}

// Up is the number of bytes delivered to the upstream so far.
func (s *pumped) Up() int64 { return s.moved[up].Load() }

// Down is the number of bytes delivered to the downstream so far.
func (s *pumped) Down() int64 { return s.moved[down].Load() }

// HalfClosed reports whether exactly one side has ended.
func (s *pumped) HalfClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.halfClosed()
}

func (s *pumped) halfClosed() bool { return s.ended[up] != s.ended[down] }

// hold records that bytes of a direction are read but not written yet.
func (s *pumped) hold(d direction) {
	s.held[d].Store(true)
	s.budget.Add(bufferSize)
}

func (s *pumped) release(d direction) {
	s.held[d].Store(false)
	s.budget.Add(-bufferSize)
}

// Held is about how many bytes the session holds.
func (s *pumped) Held() (n int64) {
	for i := range s.held {
		if s.held[i].Load() {
			n += bufferSize
		}
	}
	return n
}

// Quiet is how long no byte has moved, and which side sent the last one.
func (s *pumped) Quiet() (time.Duration, Side) {
	return quiet(time.Since(s.start), s.last[up].Load(), s.last[down].Load())
}

// Stop ends the session with a RST on both sides.
func (s *pumped) Stop(cause error) {
	s.end(Result{End: EndStopped, Cause: cause})
}

// FinishIfIdle ends an idle session with a FIN on both sides.
func (s *pumped) FinishIfIdle(atLeast time.Duration, cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	silent, _ := s.Quiet()
	if s.over || silent < atLeast || s.ended[up] || s.ended[down] || s.held[up].Load() || s.held[down].Load() {
		return false
	}
	s.decide(Result{End: EndStopped, Cause: cause})
	go s.closeWithFIN() // bounded by notifyTimeout
	return true
}

// notifyTimeout bounds the write of close_notify to an idle peer.
const notifyTimeout = time.Second

func (s *pumped) closeWithFIN() {
	for i := range s.legs {
		l := &s.legs[i]
		l.raw.SetWriteDeadline(time.Now().Add(notifyTimeout))
		l.closeWrite()
		l.raw.Close()
	}
}

// end decides how the session ends and resets both sides; only the first call has
// an effect.
func (s *pumped) end(r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.decide(r)
	for i := range s.legs {
		s.legs[i].reset()
	}
}

// decide is called with mu held, once.
func (s *pumped) decide(r Result) {
	r.FirstClose, r.Truncated = s.result.FirstClose, s.result.Truncated
	if r.FirstClose == None {
		r.FirstClose = r.ErrSide
	}
	s.result, s.over = r, true
	s.timer.Stop()
}

// pump moves one direction until it ends. The last pump to end calls Done.
func (s *pumped) pump(d direction) {
	defer s.finish()
	defer func() {
		if v := recover(); v != nil {
			s.end(Result{End: EndInternal, Err: &PanicError{v, debug.Stack()}})
		}
	}()
	src, dst := &s.legs[d], &s.legs[1-d]
	if len(src.early) > 0 && !s.deliver(d, src.early) {
		return
	}
	src.early = nil
	p := pump{session: s, direction: d, src: src, dst: dst}
	if err := p.run(); err != nil {
		s.readFailed(d, err)
	}
}

// deliver writes bytes to the other side and counts them.
func (s *pumped) deliver(d direction, b []byte) bool {
	if d == down {
		s.settle()
	}
	s.hold(d)
	n, err := s.legs[1-d].stream().Write(b)
	s.release(d)
	s.count(d, int64(n))
	if err != nil {
		s.writeFailed(d, err)
	}
	return err == nil
}

func (s *pumped) count(d direction, n int64) {
	if n > 0 {
		s.moved[d].Add(n)
		s.last[d].Store(int64(time.Since(s.start)))
	}
}

// readFailed ends direction d: after a FIN the other direction may continue, any
// other error ends the session.
func (s *pumped) readFailed(d direction, err error) {
	src := &s.legs[d]
	if err != io.EOF {
		s.end(Result{End: ending(d.from(), err), Err: err, ErrSide: d.from()})
		return
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	if s.result.FirstClose == None {
		s.result.FirstClose = d.from()
	}
	s.ended[d] = true
	s.result.Truncated = s.result.Truncated || src.transport != nil && src.transport.cut()
	broken := s.broken[d]
	clean := src.sentCloseNotify()
	if broken == nil && !clean {
		broken = s.refused[d]
	}
	if broken == nil && !clean && !s.ended[1-d] && wasReset(src.raw) {
		broken = errResetUnseen // the other pump's write got the error, but has not recorded it yet
	}
	s.mu.Unlock()
	if broken != nil { // it closed both ways, and then refused our bytes
		s.end(Result{End: ending(d.from(), broken), Err: broken, ErrSide: d.from()})
		return
	}
	if err := s.legs[1-d].closeWrite(); err != nil && s.notifyFailed(1-d, err) {
		return
	}
	s.passedFIN(d)
}

// notifyFailed records that the leg which direction d reads has refused our
// close_notify. This write may have consumed the error that the leg's reader
// would have got. If the reader has already ended, without close_notify, the
// session ends with a reset.
func (s *pumped) notifyFailed(d direction, err error) bool {
	s.mu.Lock()
	s.refused[d] = err
	reset := s.ended[d] && !s.legs[d].sentCloseNotify()
	s.mu.Unlock()
	if reset {
		s.end(Result{End: ending(d.from(), err), Err: err, ErrSide: d.from()})
	}
	return reset
}

// passedFIN ends the session if both directions have ended.
func (s *pumped) passedFIN(d direction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished[d] = true
	if s.over {
		return
	}
	if s.finished[1-d] {
		s.decide(Result{End: EndClosed})
		return
	}
	if s.cfg.HalfCloseIdle > 0 {
		s.last[d].Store(int64(time.Since(s.start)))
		s.timer.Reset(s.untilNext())
	}
}

// writeFailed ends direction d, whose destination does not accept bytes any more.
// Bytes that the destination sent before may still be in the kernel, so its own
// reader goes on and finds how it ended. If it has ended already, the failure is
// its reset.
func (s *pumped) writeFailed(d direction, err error) {
	side := d.to()
	s.mu.Lock()
	s.broken[1-d] = err
	readerEnded, other := s.ended[1-d], s.broken[d]
	s.mu.Unlock()
	switch {
	case other != nil: // both refuse bytes, so neither is read: the first to refuse counts
		s.end(Result{End: ending(d.from(), other), Err: other, ErrSide: d.from()})
	case readerEnded || !isReset(err):
		s.end(Result{End: ending(side, err), Err: err, ErrSide: side})
	}
}

// settle calls Settled the first time. Done waits for it like for a pump.
func (s *pumped) settle() {
	s.mu.Lock()
	first := !s.settling && !s.over
	if first {
		s.settling = true
		s.pumps++
	}
	s.mu.Unlock()
	if !first {
		return
	}
	defer s.finish()
	if s.cfg.Owner != nil {
		s.cfg.Owner.Settled()
	}
}

// finish ends a pump, and with the last one the session.
func (s *pumped) finish() {
	s.mu.Lock()
	s.pumps--
	last := s.pumps == 0
	s.mu.Unlock()
	if !last {
		return
	}
	for i := range s.legs {
		s.legs[i].raw.Close()
	}
	s.mu.Lock()
	if !s.over {
		s.decide(Result{End: EndInternal, Err: errors.New("relay: internal error: no ending was decided")})
	}
	r := s.result
	r.Settled = s.settling
	s.mu.Unlock()
	r.Up, r.Down, r.Duration = s.Up(), s.Down(), time.Since(s.start)
	if s.cfg.Owner != nil {
		s.cfg.Owner.Done(r)
	}
}

// tick checks the limits and sets the timer for the next.
func (s *pumped) tick() {
	if time.Since(s.start) >= SettleAfter {
		s.settle()
	}
	if e, reached := s.limitReached(); reached {
		s.end(Result{End: e})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.timer.Reset(s.untilNext())
	}
}

// limitReached reports which of the session's limits has been reached.
func (s *pumped) limitReached() (End, bool) {
	s.mu.Lock()
	half := s.halfClosed()
	s.mu.Unlock()
	return s.cfg.reached(time.Since(s.start), s.lastMoved(), half)
}

func (s *pumped) lastMoved() time.Duration {
	return time.Duration(max(s.last[up].Load(), s.last[down].Load()))
}

// untilNext returns the time until a limit could next be reached. Mu is held, or
// the session is not started yet.
func (s *pumped) untilNext() time.Duration {
	now := time.Since(s.start)
	next := s.cfg.next(s.lastMoved(), s.halfClosed())
	if !s.settling {
		next = min(next, SettleAfter)
	}
	return max(next-now, time.Millisecond)
}

// closeWrite passes a FIN on: close_notify first if there is TLS, whose error it
// returns. A connection that cannot end one direction alone stays open until the
// end.
func (l *Leg) closeWrite() (err error) {
	if l.tls != nil {
		err = l.tls.CloseWrite()
		l.transport.shut.Store(true)
	}
	if c, ok := l.raw.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
	return err
}

// sentCloseNotify reports whether a leg that has ended sent close_notify: a later
// failure of its socket does not affect the bytes that it sent.
func (l *Leg) sentCloseNotify() bool { return l.transport != nil && !l.transport.cut() }

// reset closes with RST if the transport has one.
func (l *Leg) reset() {
	if c, ok := l.raw.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	l.raw.Close()
}
