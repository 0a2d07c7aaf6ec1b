package l4

import (
	"container/list"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/task"
)

// parkedSessions are the sessions of a route whose client has to speak and has not
// finished, the one with the first handshake deadline first. A session that is parked
// before the first byte holds no goroutine, no stack and no place in Go's poller: only
// its socket, which an engine's loop watches, and its place here.
type parkedSessions struct {
	mu    sync.Mutex
	all   list.List   // guarded by mu; of *session, in the order of their deadlines
	timer *time.Timer // guarded by mu; nil before the first
	armed bool        // guarded by mu; the timer runs
}

// errSilent is the end of a client that sends nothing.
var errSilent = errors.New("the client sent nothing before timeouts.handshake")

// park lets a session wait without a goroutine for the first byte of a client that has
// to speak. The session is then run by wake, or ended by stop or at its handshake
// deadline, and the caller must not use it any more. False: it has to run now.
func (s *session) park() bool {
	cfg := &s.route.cfg
	if !cfg.speaksFirst() && !cfg.SNI || cfg.proxied() && !s.fromProxy() { // a client that is refused is refused at once
		return false
	}
	socket, ok := s.downstream.conn.(awaiter)
	if !ok {
		return false
	}
	s.at(outcome.StageGreet)
	return s.await(socket, nil)
}

// unpark ends the wait, for the first caller. It returns the suspended task; nil: the
// session has not run yet.
func (s *session) unpark() (t *task.Task, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok = s.suspended, s.parked
	s.suspended, s.parked = nil, false
	return t, ok
}

// unlist gives up the session's place: its client has finished, or sends no more.
func (s *session) unlist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.place != nil {
		s.route.parked.remove(s.place)
		s.place = nil
	}
}

// wake resumes a session whose client has sent something, or has closed. The loop
// calls it.
func (s *session) wake() {
	if t, ok := s.unpark(); ok {
		s.resume(t)
	}
}

// resume runs a session that was unparked.
func (s *session) resume(t *task.Task) {
	if t != nil {
		t.Resume()
		return
	}
	s.server.tasks.Run(s.server.ctx, s)
}

// suspend lets a session on a loop wait without a goroutine for more of what its client
// has begun to send. False: wait in another way.
func (s *session) suspend(ctx context.Context, socket awaiter) bool {
	return task.Suspend(ctx, func(t *task.Task) bool {
		if !s.suspendedBefore {
			s.suspendedBefore = true
			s.hold(suspendCost)
		}
		return s.await(socket, t)
	})
}

// await parks the session: to run, or to resume with t.
func (s *session) await(socket awaiter, t *task.Task) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// After the deadline the session may have lost its place.
	if s.stopped != nil || s.server.ctx.Err() != nil || !time.Now().Before(s.handshakeDeadline()) || !socket.Await(s.wake) {
		return false
	}
	if s.place == nil {
		s.place = s.route.parked.add(s)
	}
	s.parked, s.suspended = true, t
	return true
}

// awaiter is a socket that a loop can wait for.
type awaiter interface {
	Await(f func()) bool
	ReadNow(b []byte) (n int, err error, ok bool)
}

// suspendingConn is the client's connection for a reader on a loop: the session is
// suspended until there is something to read.
type suspendingConn struct {
	awaiter
	net.Conn
	session *session
	ctx     context.Context
	took    int // bytes that were read
}

func (c *suspendingConn) Read(b []byte) (int, error) {
	for {
		if n, err, ok := c.ReadNow(b); ok {
			c.count(n)
			return n, err
		}
		if !time.Now().Before(c.session.handshakeDeadline()) {
			return 0, os.ErrDeadlineExceeded
		}
		if !c.session.suspend(c.ctx, c.awaiter) {
			n, err := c.Conn.Read(b)
			c.count(n)
			return n, err
		}
	}
}

// freeRead is how much of a request is not counted as held: as much as usual ones
// have, which are over before they could hold anything.
const freeRead = 2 << 10

// count counts what was read as held by the session.
func (c *suspendingConn) count(n int) {
	before := max(c.took, freeRead)
	c.took += n
	if c.took > before {
		c.session.hold(int64(c.took-before) * readCost)
	}
}

// add adds a session, and returns its place.
func (p *parkedSessions) add(s *session) *list.Element {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.all.PushBack(s)
	p.arm(time.Now())
	return at
}

func (p *parkedSessions) remove(at *list.Element) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all.Remove(at)
}

// arm lets the timer fire for the first session. A timer that fires too early, since
// its session has left, is cheaper than one for each session. Mu is held.
func (p *parkedSessions) arm(now time.Time) {
	first := p.all.Front()
	if first == nil || p.armed {
		return
	}
	wait := first.Value.(*session).handshakeDeadline().Sub(now)
	p.armed = true
	if p.timer == nil {
		p.timer = time.AfterFunc(wait, p.expire) // holds nothing once all sessions have left
		return
	}
	p.timer.Reset(wait)
}

// expire ends the sessions whose deadline has passed; those whose client need not
// speak go on.
func (p *parkedSessions) expire() {
	now := time.Now()
	for _, s := range p.due(now) {
		switch t, ok := s.unpark(); {
		case !ok:
		case t != nil: // its next read fails with the deadline
			s.resume(t)
		case s.route.cfg.speaksFirst():
			s.close(&outcome.Error{Stage: outcome.StageGreet, Reason: outcome.HandshakeTimeout, Err: errSilent})
		default: // without a ClientHello for the rules
			s.resume(nil)
		}
	}
}

// due takes out the sessions whose deadline has passed.
func (p *parkedSessions) due(now time.Time) (out []*session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = false
	for at := p.all.Front(); at != nil && !at.Value.(*session).handshakeDeadline().After(now); at = p.all.Front() {
		out = append(out, p.all.Remove(at).(*session))
	}
	p.arm(now)
	return out
}

// handshakeDeadline is when the client must have finished its part.
func (s *session) handshakeDeadline() time.Time { return s.rec.Start.Add(s.route.handshake()) }
