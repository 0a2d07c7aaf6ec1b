package l4

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"ambassador/l4/limits"
	"ambassador/l4/outcome"
	"ambassador/l4/task"
)

// errSilent ends a session whose client sends nothing.
var errSilent = errors.New("the client sent nothing before timeouts.handshake")

// park lets a session wait without a goroutine for the first byte of a client that has
// to speak. After true, the caller must not use the session: resumeParked runs it, or stop or
// the handshake deadline ends it. After false, the caller must run it now.
func (s *session) park() bool {
	cfg := &s.route.cfg
	if !cfg.speaksFirst() && !cfg.SNI && !cfg.proxied() || cfg.proxied() && !s.fromProxy() { // others are refused at once
		return false
	}
	socket, ok := s.downstream.conn.(awaiter)
	if !ok {
		return false
	}
	s.at(outcome.StageGreet)
	return s.await(socket, nil)
}

// unpark ends the wait. Only the first caller gets ok. It returns the suspended task;
// nil if the session has not run yet.
func (s *session) unpark() (t *task.Task, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok = s.suspended, s.parked
	s.suspended, s.parked = nil, false
	return t, ok
}

// freezable is a socket that another program can continue: see relay.Socket.
type freezable interface {
	Freeze() (fd int, ok bool)
	Thaw()
}

// canFreeze reports whether the session waits for its client's first byte, on a socket
// that another program can continue.
func (s *session) canFreeze() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freezable() != nil
}

// freezable is the socket for canFreeze; nil if there is none. mu is held.
func (s *session) freezable() freezable {
	if !s.parked || s.suspended != nil || s.stopped != nil {
		return nil
	}
	socket, _ := s.downstream.conn.(freezable)
	return socket
}

// freeze ends the wait of a parked session, until thaw.
func (s *session) freeze() (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	socket := s.freezable()
	if socket == nil {
		return 0, false
	}
	fd, ok = socket.Freeze()
	s.parked = !ok
	return fd, ok
}

// thaw parks the session again, or runs it if it was stopped or its time is over.
func (s *session) thaw() {
	socket := s.downstream.conn
	socket.(freezable).Thaw()
	if !s.await(socket.(awaiter), nil) {
		s.resume(nil)
	}
}

// unlist removes the session from the route's list, after its client has finished or
// will send no more.
func (s *session) unlist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.place != nil {
		s.route.parked.Remove(s.place)
		s.place = nil
	}
}

// resumeParked resumes a session whose client has sent something or has closed. The loop calls
// it.
func (s *session) resumeParked() {
	if t, ok := s.unpark(); ok {
		s.resume(t)
	}
}

// beginParked runs a session that a TLS handshake begins, as a step of the loop or, if
// that has too many, on a goroutine.
func (s *session) beginParked(onLoop bool) {
	if _, ok := s.unpark(); !ok {
		return
	}
	if onLoop {
		s.server.tasks.Run(s.server.ctx, s)
	} else {
		s.server.tasks.Go(s.server.ctx, s)
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

// suspend lets a session on a loop wait without a goroutine for more bytes from its
// client. If it returns false, the caller has to wait in another way.
func (s *session) suspend(ctx context.Context, socket awaiter) bool {
	return task.Suspend(ctx, func(t *task.Task) bool { return s.await(socket, t) })
}

// await parks the session. When the client sends something, the session resumes with t,
// or runs if t is nil.
func (s *session) await(socket awaiter, t *task.Task) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// After its handshake deadline the session may already be off the list.
	if s.stopped != nil || s.server.ctx.Err() != nil || !time.Now().Before(s.handshakeDeadline()) {
		return false
	}
	if computes := t == nil && s.route.cfg.TLS != nil; computes && !socket.AwaitStep(s.beginParked) || !computes && !socket.Await(s.resumeParked) {
		return false
	}
	if s.place == nil {
		s.place = s.route.parked.Add(s)
	}
	s.parked, s.suspended = true, t
	return true
}

// awaiter is a socket that an event loop can watch.
type awaiter interface {
	Await(f func()) bool
	AwaitStep(f func(onLoop bool)) bool
	ReadNow(b []byte) (n int, err error, ok bool)
}

// suspendingConn is the client's connection for a session on a loop. Read suspends the
// session until there is something to read.
type suspendingConn struct {
	awaiter
	net.Conn
	session *session
	ctx     context.Context
	took    int // bytes read so far
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

// freeRead is how many bytes of a request are not counted as held. Usual requests have
// no more, and are over before they could hold anything.
const freeRead = 2 << 10

// count counts n bytes that were read as held by the session.
func (c *suspendingConn) count(n int) {
	before := max(c.took, freeRead)
	c.took += n
	if c.took > before {
		c.session.hold(int64(c.took-before) * limits.ReadCost)
	}
}

// expired ends parked sessions whose handshake deadline has passed. Sessions whose client
// need not speak continue.
func expired(due []*session) {
	for _, s := range due {
		switch t, ok := s.unpark(); {
		case !ok:
		case t != nil: // its next read returns the deadline error
			s.resume(t)
		case s.route.cfg.speaksFirst():
			s.close(&outcome.Error{Stage: outcome.StageGreet, Reason: outcome.HandshakeTimeout, Err: errSilent})
		default: // continue without a PROXY header, or without a ClientHello for the rules
			s.resume(nil)
		}
	}
}

// handshakeDeadline is when the client must have finished its part of the handshake.
func (s *session) handshakeDeadline() time.Time { return s.rec.Start().Add(s.route.handshake()) }
