package l4

import (
	"container/list"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// silence is where the sessions of a route are whose client is waited for, and has
// not said a word. They hold no goroutine, no stack and no place in Go's
// poller: only their socket, which an engine's loop watches, and their place here.
type silence struct {
	mu    sync.Mutex
	all   list.List   // guarded by mu; of *session, the oldest first, whose time is up first
	timer *time.Timer // guarded by mu; nil before the first
	armed bool        // guarded by mu; the timer runs
}

// errSilent is the end of a client that has not said a word in time.
var errSilent = errors.New("the client has not said a word")

// park lets a session wait without a goroutine for the first word of its client,
// where that is waited for. It is then begun again by wake, or ended by stop or
// at the end of timeouts.handshake. From then on the caller has nothing to do with it.
func (s *session) park() bool {
	cfg := &s.route.cfg
	if !cfg.speaksFirst() && !cfg.SNI || cfg.proxied() && !s.fromProxy() { // who is refused is so at once
		return false
	}
	socket, ok := s.downstream.(awaiter)
	if !ok {
		return false
	}
	s.at(StageGreet)
	s.waited = true
	if s.await(socket, nil) {
		return true
	}
	s.waited = false
	return false
}

// unpark ends the waiting, for the first who calls it, and gives the runner that
// rests; nil: the session has to begin again.
func (s *session) unpark() (r *runner, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok = s.runner, s.parked
	s.runner, s.parked = nil, false
	return r, ok
}

// heard gives the session's place up: its client has said all, or says no more.
func (s *session) heard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.place != nil {
		s.route.silence.leave(s.place)
		s.place = nil
	}
}

// wake goes on with a session whose client has said something, or has left. The
// loop calls it.
func (s *session) wake() {
	if r, ok := s.unpark(); ok {
		s.goOn(r)
	}
}

// goOn runs a session that was unparked.
func (s *session) goOn(r *runner) {
	if r != nil {
		s.server.runners.wake(r)
		return
	}
	s.server.runners.run(s.server.ctx, s)
}

// rest lets the session wait for more from its client, who has begun to speak,
// without a goroutine. It is for who runs on a loop still; false: wait as others do.
func (s *session) rest(ctx context.Context) bool {
	l, ok := ctx.Value(waiting{}).(*leave)
	socket, is := s.downstream.(awaiter)
	if !ok || !is || l.left.Load() {
		return false
	}
	if !l.rested {
		l.rested = true
		s.hold(restCost)
	}
	if !s.await(socket, l.runner) {
		return false
	}
	l.yield(stepRest)
	return true
}

// await parks the session, to be begun again or, with a runner, to go on.
func (s *session) await(socket awaiter, r *runner) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Whose time is up may have lost its place.
	if s.stopped != nil || s.server.ctx.Err() != nil || !time.Now().Before(s.patience()) || !socket.Await(s.wake) {
		return false
	}
	if s.place == nil {
		s.place = s.route.silence.enter(s)
	}
	s.parked, s.runner = true, r
	if r == nil {
		s.cancel = nil // whose run is over
	}
	return true
}

// awaiter is a socket that a loop can wait for.
type awaiter interface {
	Await(f func()) bool
	ReadNow(b []byte) (n int, err error, ok bool)
	WriteNow(b []byte) (n int, err error, ok bool)
}

// patient is the client's connection for who reads from it on a loop, and rests
// there until there is something to read.
type patient struct {
	awaiter
	net.Conn
	session *session
	ctx     context.Context
	took    int // bytes that were read
}

func (c *patient) Read(b []byte) (int, error) {
	for {
		if n, err, ok := c.ReadNow(b); ok {
			c.count(n)
			return n, err
		}
		if !time.Now().Before(c.session.patience()) {
			return 0, os.ErrDeadlineExceeded
		}
		if !c.session.rest(c.ctx) {
			mayWait(c.ctx)
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
func (c *patient) count(n int) {
	before := max(c.took, freeRead)
	c.took += n
	if c.took > before {
		c.session.hold(int64(c.took-before) * readCost)
	}
}

func (c *patient) Write(b []byte) (int, error) {
	n, err, ok := c.WriteNow(b)
	if ok {
		return n, err
	}
	mayWait(c.ctx)
	more, err := c.Conn.Write(b[n:])
	return n + more, err
}

// enter adds a session.
func (q *silence) enter(s *session) *list.Element {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := q.all.PushBack(s)
	q.arm(time.Now())
	return at
}

func (q *silence) leave(at *list.Element) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all.Remove(at)
}

// arm lets the timer fire for the first. One that fires too early, because what it
// was for has left, is cheaper than one that is set for each. Mu is held.
func (q *silence) arm(now time.Time) {
	first := q.all.Front()
	if first == nil || q.armed {
		return
	}
	wait := first.Value.(*session).patience().Sub(now)
	q.armed = true
	if q.timer == nil {
		q.timer = time.AfterFunc(wait, q.expire) // holds nothing once all have left
		return
	}
	q.timer.Reset(wait)
}

// expire ends those whose time is up, or lets them go on who may be silent.
func (q *silence) expire() {
	now := time.Now()
	for _, s := range q.due(now) {
		switch r, ok := s.unpark(); {
		case !ok:
		case r != nil: // it finds out itself that its time is up
			s.goOn(r)
		case s.route.cfg.speaksFirst():
			s.close(&Error{Stage: StageGreet, Reason: ReasonHandshakeTimeout, Err: errSilent})
		default: // without a name for rules
			s.server.runners.run(s.server.ctx, s)
		}
	}
}

// due takes out those whose time is up.
func (q *silence) due(now time.Time) (out []*session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.armed = false
	for at := q.all.Front(); at != nil && !at.Value.(*session).patience().After(now); at = q.all.Front() {
		out = append(out, q.all.Remove(at).(*session))
	}
	q.arm(now)
	return out
}

// patience is when the client must have said its part.
func (s *session) patience() time.Time { return s.rec.Start.Add(s.route.handshake()) }
