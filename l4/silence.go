package l4

import (
	"container/list"
	"errors"
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
	socket, ok := s.downstream.(interface{ Await(f func()) bool })
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped != nil || s.server.ctx.Err() != nil || !socket.Await(s.wake) {
		return false
	}
	s.waited = true
	s.parked, s.cancel = s.route.silence.enter(s), nil
	s.rec.Stage = StageGreet
	return true
}

// unpark ends the waiting, for the first who calls it.
func (s *session) unpark() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked == nil {
		return false
	}
	s.route.silence.leave(s.parked)
	s.parked = nil
	return true
}

// wake goes on with a session whose client has said something, or has left. The
// loop calls it.
func (s *session) wake() {
	if s.unpark() {
		s.server.runners.run(s.server.ctx, s)
	}
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
		switch {
		case !s.unpark():
		case s.route.cfg.speaksFirst():
			s.close(&Error{Stage: StageGreet, Reason: ReasonHandshakeTimeout, Err: errSilent})
		default: // without a name for rules
			s.server.runners.run(s.server.ctx, s)
		}
	}
}

// due takes out those whose time is up, for unpark.
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
