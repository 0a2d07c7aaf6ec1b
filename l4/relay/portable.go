package relay

import (
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/relay/ledger"
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
		if l.shadow != nil {
			l.shadow.Abandon()
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
	last  [2]atomic.Int64 // when bytes last began to move, by direction, in nanoseconds after start
	wrote atomic.Int64    // when bytes last ended to move: not for each direction, or the answer to them could be older
	held  [2]atomic.Bool  // bytes are read but not written yet, by direction

	mu       sync.Mutex
	timer    *time.Timer // guarded by mu, like all below
	ledger   ledger.Ledger
	settling bool // Settled was called
	heldFIN  bool // the downstream's FIN is not passed on yet, because of Config.HoldFIN
	pumps    int  // running pumps, and a running call of Settled
}

// Up is the number of bytes delivered to the upstream so far.
func (s *pumped) Up() int64 { return s.moved[up].Load() }

// Down is the number of bytes delivered to the downstream so far.
func (s *pumped) Down() int64 { return s.moved[down].Load() }

// HalfClosed reports whether exactly one side has ended.
func (s *pumped) HalfClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.HalfClosed()
}

// hold records that bytes of a direction are read but not written yet. They have moved
// now: a session whose bytes are on their way is not one that has been quiet since the
// bytes before them.
func (s *pumped) hold(d direction) {
	s.last[d].Store(int64(time.Since(s.start)))
	s.held[d].Store(true)
	s.budget.Add(bufferSize)
}

// release gives back what hold counted, if that is not done yet.
func (s *pumped) release(d direction) {
	if s.held[d].Swap(false) {
		s.budget.Add(-bufferSize)
	}
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
	now := time.Since(s.start)
	_, last := quiet(now, s.last[up].Load(), s.last[down].Load())
	return now - s.lastMoved(), last
}

// Stop ends the session with a RST on both sides.
func (s *pumped) Stop(cause error) {
	s.end(func(l *ledger.Ledger) bool { return l.Conclude(Result{End: EndStopped, Cause: cause}) })
}

// FinishIfIdle ends an idle session with a FIN on both sides.
func (s *pumped) FinishIfIdle(atLeast time.Duration, cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	silent, _ := s.Quiet()
	if silent < atLeast || s.ledger.Sides[0].EOF || s.ledger.Sides[1].EOF || s.held[up].Load() || s.held[down].Load() ||
		!s.ledger.Conclude(Result{End: EndStopped, Cause: cause}) {
		return false
	}
	s.timer.Stop()
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

// end changes the ledger. If that ends the session, it closes both sides: with RST,
// unless both have ended. It reports whether the session is over, now or before.
func (s *pumped) end(change func(*ledger.Ledger) (over bool)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if change(&s.ledger) {
		s.timer.Stop()
		if s.ledger.Result.End != EndClosed {
			s.legs[0].reset()
			s.legs[1].reset()
			// The pumps return soon. Until then, who looks for sessions to end must not end
			// more of them for what these hold.
			s.release(up)
			s.release(down)
		}
	}
	return s.ledger.Over
}

// pump moves one direction until it ends. The last pump to end calls Done.
func (s *pumped) pump(d direction) {
	defer s.finish()
	defer func() {
		if v := recover(); v != nil {
			err := &PanicError{v, debug.Stack()}
			s.end(func(l *ledger.Ledger) bool { return l.Conclude(Result{End: EndInternal, Err: err}) })
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
	dst := &s.legs[1-d]
	n, err := dst.write(b)
	s.count(d, int64(n))
	s.release(d)
	if err != nil {
		s.writeFailed(d, dst.failure(err))
	}
	return err == nil
}

func (s *pumped) count(d direction, n int64) {
	if n > 0 {
		s.moved[d].Add(n)
		s.wrote.Store(int64(time.Since(s.start)))
	}
}

// readFailed ends direction d: after a FIN the other direction may continue, any
// other error ends the session.
func (s *pumped) readFailed(d direction, err error) {
	src := &s.legs[d]
	if err != io.EOF {
		s.end(func(l *ledger.Ledger) bool { return l.Failed(d.from(), src.failure(err)) })
		return
	}
	kind, held := src.transport.finKind(), false
	if s.end(func(l *ledger.Ledger) bool {
		if l.MayHideReset(d.from(), kind) && wasReset(src.raw) {
			return l.Failed(d.from(), errResetUnseen)
		}
		if d == up {
			held = s.cfg.HoldFIN > 0 && !l.Sides[down].EOF
			s.heldFIN = held
		}
		return l.FIN(d.from(), kind)
	}) {
		return
	}
	if held {
		s.restartIdle(d)
		return
	}
	s.passFIN(d)
	if d == down && s.takeHeldFIN() {
		s.passFIN(up)
	}
}

// takeHeldFIN reports whether the caller has to pass on the FIN that was held back.
func (s *pumped) takeHeldFIN() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.heldFIN && !s.ledger.Over
	s.heldFIN = false
	return held
}

// passFIN passes the FIN of direction d on.
func (s *pumped) passFIN(d direction) {
	if err := s.legs[1-d].closeWrite(); err != nil {
		s.end(func(l *ledger.Ledger) bool { return l.NotifyFailed(d.to(), err) })
	}
	if !s.end(func(l *ledger.Ledger) bool { return l.Passed(d.from()) }) && s.cfg.HalfCloseIdle > 0 {
		s.restartIdle(d)
	}
}

// passHeldFIN passes the downstream's FIN on where it was held back for long enough.
// Done waits for it like for a pump.
func (s *pumped) passHeldFIN() {
	s.mu.Lock()
	due := s.heldFIN && !s.ledger.Over && time.Since(s.start)-s.lastMoved() >= s.cfg.HoldFIN
	if due {
		s.heldFIN = false
		s.pumps++
	}
	s.mu.Unlock()
	if due {
		defer s.finish()
		s.passFIN(up)
	}
}

// restartIdle counts a FIN that has arrived or was passed on as activity.
func (s *pumped) restartIdle(d direction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[d].Store(int64(time.Since(s.start)))
	if !s.ledger.Over {
		s.timer.Reset(s.untilNext())
	}
}

// writeFailed ends direction d, whose destination does not accept bytes any more.
// Its own reader goes on.
func (s *pumped) writeFailed(d direction, err error) {
	s.end(func(l *ledger.Ledger) bool { return l.WriteFailed(d.to(), err) })
}

// settle calls Settled the first time. Done waits for it like for a pump.
func (s *pumped) settle() {
	s.mu.Lock()
	first := !s.settling && !s.ledger.Over
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
	if s.ledger.Conclude(Result{End: EndInternal, Err: errors.New("relay: internal error: no ending was decided")}) {
		s.timer.Stop()
	}
	r := *s.ledger.Result
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
		s.end(func(l *ledger.Ledger) bool { return l.Conclude(Result{End: e}) })
		return
	}
	s.passHeldFIN()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ledger.Over {
		s.timer.Reset(s.untilNext())
	}
}

// limitReached reports which of the session's limits has been reached.
func (s *pumped) limitReached() (End, bool) {
	s.mu.Lock()
	half := s.ledger.HalfClosed()
	s.mu.Unlock()
	return s.cfg.reached(time.Since(s.start), s.lastMoved(), half)
}

func (s *pumped) lastMoved() time.Duration {
	return time.Duration(max(s.last[up].Load(), s.last[down].Load(), s.wrote.Load()))
}

// untilNext returns the time until a limit could next be reached. Mu is held, or
// the session is not started yet.
func (s *pumped) untilNext() time.Duration {
	now := time.Since(s.start)
	next := s.cfg.next(s.lastMoved(), s.ledger.HalfClosed())
	if !s.settling {
		next = min(next, SettleAfter)
	}
	if s.heldFIN {
		next = min(next, s.lastMoved()+s.cfg.HoldFIN)
	}
	return max(next-now, time.Millisecond)
}

// write writes to the leg. A renegotiation that begins at the same moment makes
// crypto/tls refuse the bytes before it sends one of them; after it they are accepted.
func (l *Leg) write(b []byte) (int, error) {
	n, err := l.stream().Write(b)
	if err != nil && n == 0 && l.waits && l.tls.Handshake() == nil {
		n, err = l.tls.Write(b)
	}
	return n, err
}

// failure is an error of the leg, as it counts for the ending.
func (l *Leg) failure(err error) error {
	if l.tls == nil {
		return err
	}
	return ledger.TLSFailure(err)
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

// reset closes with RST if the transport has one.
func (l *Leg) reset() {
	if c, ok := l.raw.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	l.raw.Close()
}
