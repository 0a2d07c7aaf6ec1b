package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// direction is also the index of the leg that it reads from.
type direction int

const (
	up   direction = 0 // from downstream to upstream
	down direction = 1
)

// from is the side that a direction reads, to the one it writes.
func (d direction) from() Side { return Side(d + 1) }
func (d direction) to() Side   { return Side(2 - d) }

// Session is one pair of connections being relayed.
type Session struct {
	// Static after Start.
	engine                        *Engine
	legs                          [2]Leg
	done                          func(Result)
	settled                       func()
	start                         time.Time
	idle, halfCloseIdle, lifetime time.Duration

	moved [2]atomic.Int64 // bytes delivered, by direction
	last  atomic.Int64    // when a byte last moved, in nanoseconds after start

	mu       sync.Mutex
	timer    *time.Timer // guarded by mu, like all below
	result   Result
	over     bool     // result.End is decided
	settling bool     // Settled was called
	ended    [2]bool  // directions whose source has sent a FIN
	finished [2]bool  // directions that have passed it on
	broken   [2]error // legs that a write failed on, by the leg's index
	pumps    int      // running
}

// Up is the number of bytes delivered to the upstream so far.
func (s *Session) Up() int64 { return s.moved[up].Load() }

// Down is the number of bytes delivered to the downstream so far.
func (s *Session) Down() int64 { return s.moved[down].Load() }

// HalfClosed says whether one side has ended and the other has not.
func (s *Session) HalfClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.halfClosed()
}

func (s *Session) halfClosed() bool { return s.ended[up] != s.ended[down] }

// Stop ends the session with a RST on both sides. The first cause counts; after
// the end it does nothing.
func (s *Session) Stop(cause error) {
	s.end(Result{End: EndStopped, Cause: cause})
}

// FinishIfIdle ends the session with a FIN on both sides if no byte has moved
// since Up and Down together were moved and neither side has ended. It returns
// whether it did. A byte that arrives at that very moment may meet a closed
// connection, as it would with a server that closes an idle connection.
func (s *Session) FinishIfIdle(moved int64, cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.Up()+s.Down() != moved || s.ended[up] || s.ended[down] {
		return false
	}
	s.decide(Result{End: EndStopped, Cause: cause})
	go s.closeGently() // bounded by gentleTimeout
	return true
}

// gentleTimeout bounds writing close_notify to an idle peer.
const gentleTimeout = time.Second

func (s *Session) closeGently() {
	for i := range s.legs {
		l := &s.legs[i]
		l.raw.SetWriteDeadline(time.Now().Add(gentleTimeout))
		l.closeWrite()
		l.raw.Close()
	}
}

// end decides how the session ends and resets both sides; later calls do nothing.
func (s *Session) end(r Result) {
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
func (s *Session) decide(r Result) {
	r.FirstClose, r.Truncated = s.result.FirstClose, s.result.Truncated
	if r.FirstClose == None {
		r.FirstClose = r.ErrSide
	}
	s.result, s.over = r, true
	s.timer.Stop()
}

// pump moves one direction until it ends. The last pump to end calls Done.
func (s *Session) pump(d direction) {
	defer s.finish()
	defer func() {
		if v := recover(); v != nil {
			s.end(Result{End: EndInternal, Err: fmt.Errorf("panic: %v\n%s", v, debug.Stack())})
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

// deliver writes what was read to the other side and counts it.
func (s *Session) deliver(d direction, b []byte) bool {
	if d == down {
		s.settle()
	}
	n, err := s.legs[1-d].stream().Write(b)
	s.count(d, int64(n))
	if err != nil {
		s.writeFailed(d, err)
	}
	return err == nil
}

func (s *Session) count(d direction, n int64) {
	if n > 0 {
		s.moved[d].Add(n)
		s.last.Store(int64(time.Since(s.start)))
	}
}

// readFailed ends direction d: at a FIN the other may go on, anything else is
// the end of the session.
func (s *Session) readFailed(d direction, err error) {
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
	s.mu.Unlock()
	if broken != nil { // it closed both ways, and then refused our bytes
		s.end(Result{End: ending(d.from(), broken), Err: broken, ErrSide: d.from()})
		return
	}
	s.legs[1-d].closeWrite()
	s.passedFIN(d)
}

// passedFIN ends the session when both directions have ended.
func (s *Session) passedFIN(d direction) {
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
	if s.halfCloseIdle > 0 {
		s.last.Store(int64(time.Since(s.start)))
		s.timer.Reset(s.untilNext())
	}
}

// writeFailed ends direction d, whose destination takes no more. What that side
// had sent before may still be in the kernel, so its own reader goes on and
// finds out how it ended; if it has ended already, this was its reset.
func (s *Session) writeFailed(d direction, err error) {
	side := d.to()
	s.mu.Lock()
	s.broken[1-d] = err
	readerEnded, other := s.ended[1-d], s.broken[d]
	s.mu.Unlock()
	switch {
	case other != nil: // both take no more, so nobody reads: the first to refuse began it
		s.end(Result{End: ending(d.from(), other), Err: other, ErrSide: d.from()})
	case readerEnded || !isReset(err):
		s.end(Result{End: ending(side, err), Err: err, ErrSide: side})
	}
}

// settle calls Settled the first time.
func (s *Session) settle() {
	s.mu.Lock()
	first := !s.settling && !s.over
	s.settling = s.settling || first
	s.mu.Unlock()
	if first && s.settled != nil {
		s.settled()
	}
}

// finish is the end of a pump, and with the last one that of the session.
func (s *Session) finish() {
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
	if s.done != nil {
		s.done(r)
	}
}

// tick looks which limit is reached and arms the timer for the next.
func (s *Session) tick() {
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

// limitReached says which of the session's limits has been reached.
func (s *Session) limitReached() (End, bool) {
	now := time.Since(s.start)
	quiet := now - time.Duration(s.last.Load())
	switch {
	case s.lifetime > 0 && now >= s.lifetime:
		return EndLifetime, true
	case s.halfCloseIdle > 0 && quiet >= s.halfCloseIdle && s.HalfClosed():
		return EndHalfCloseIdle, true
	case s.idle > 0 && quiet >= s.idle:
		return EndIdle, true
	}
	return 0, false
}

// forever is for a timer that need not fire.
const forever = 1 << 62 * time.Nanosecond

// untilNext is the time to the next moment at which a limit could be reached.
// Mu is held, or nobody else knows the session yet.
func (s *Session) untilNext() time.Duration {
	now, last := time.Since(s.start), time.Duration(s.last.Load())
	next := time.Duration(forever)
	at := func(t time.Duration) { next = min(next, max(t-now, time.Millisecond)) }
	if !s.settling {
		at(SettleAfter)
	}
	if s.idle > 0 {
		at(last + s.idle)
	}
	if s.halfCloseIdle > 0 && s.halfClosed() {
		at(last + s.halfCloseIdle)
	}
	if s.lifetime > 0 {
		at(s.lifetime)
	}
	return next
}

// closeWrite passes a FIN on: close_notify first where there is TLS. A
// connection that cannot end one direction alone stays open until the end.
func (l *Leg) closeWrite() {
	if l.tls != nil {
		l.tls.CloseWrite()
	}
	if c, ok := l.raw.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// reset closes with RST where there is one.
func (l *Leg) reset() {
	if c, ok := l.raw.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	l.raw.Close()
}

// ending names how a side ended that answered with err.
func ending(side Side, err error) End {
	lost := isLost(err)
	switch {
	case side == Downstream && lost:
		return EndDownstreamLost
	case side == Downstream:
		return EndDownstreamReset
	case lost:
		return EndUpstreamLost
	}
	return EndUpstreamReset
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isLost says whether the network gave the peer up: keepalive or retransmission
// went unanswered.
func isLost(err error) bool {
	for _, n := range []syscall.Errno{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, n) {
			return true
		}
	}
	return false
}
