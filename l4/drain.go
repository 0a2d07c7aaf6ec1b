package l4

import (
	"context"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// Drain says how to stop without cutting anybody off.
type Drain struct {
	// Delay is how long connections are still accepted after the server has said
	// that it is not ready any more, so that who balances load can notice.
	Delay time.Duration
	// Timeout bounds the rest: idle sessions are ended in its course, the others
	// may finish, and what is left at its end is reset. If zero, that is at once.
	Timeout time.Duration
}

const (
	// idleAfter is how long a session must have been silent to count as idle.
	idleAfter = time.Second
	// drainTick is how often draining looks at the sessions.
	drainTick = 50 * time.Millisecond
	// drainPace is the pause between two idle sessions that are ended, so that
	// their clients do not all come back in one moment. Where there are more
	// than fit into the window, 4/5 of Timeout, they are ended closer together.
	drainPace = 20 * time.Millisecond
)

// Shutdown drains and returns when no session is left. When ctx is cancelled,
// what is left is reset at once. It does not wait for Observer calls in flight.
func (s *Server) Shutdown(ctx context.Context, d Drain) {
	defer s.engine.Close()
	defer s.tasks.Close()
	defer s.loops.Wait()
	defer s.cancel() // ends reach, and with it the last of loops
	s.drain(ctx, d)
}

// Drain is the first half of Shutdown: the server is unready at once, and after
// d.Delay it stops accepting. It stays, and so do its sessions; Shutdown may
// follow. It returns at once.
func (s *Server) Drain(d Drain) {
	s.loops.Go(func() { s.refuse(s.ctx, d) })
}

// refuse makes the server unready, and closes the listeners after the delay: that
// of the first call, of which a later one waits for what is left.
func (s *Server) refuse(ctx context.Context, d Drain) {
	s.mu.Lock()
	first := s.refuseAt.IsZero()
	if first {
		s.refuseAt = time.Now().Add(d.Delay)
	}
	s.draining = true
	wait := time.Until(s.refuseAt)
	s.mu.Unlock()
	if first {
		s.log.Info("draining", "sessions", s.active(), "delay", d.Delay)
	}
	task.Wait(ctx, wait, nil)
	s.closeListeners()
	s.log.Info("stopped accepting", "sessions", s.active())
}

func (s *Server) drain(ctx context.Context, d Drain) {
	s.refuse(ctx, d)
	s.drainSessions(ctx, d.Timeout)
	cause := errDrainTimeout
	if ctx.Err() != nil {
		cause = errShutdown
	}
	s.stopAll(cause)
	<-s.empty()
	s.log.Info("drained")
}

// drainSessions returns when no session is left, after timeout, or with ctx.
func (s *Server) drainSessions(ctx context.Context, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	window := timeout * 4 / 5
	p := pacer{start: time.Now(), pace: min(drainPace, window/time.Duration(s.active()+1))}
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for {
		select {
		case <-s.empty():
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		elapsed := time.Since(p.start)
		for _, sess := range s.live() {
			if p.may(elapsed) && sess.finishIfIdle(elapsed < window) {
				p.ended++
			}
		}
	}
}

// pacer spreads the ends of idle sessions.
type pacer struct {
	start time.Time
	pace  time.Duration
	ended int
}

// may says whether another idle session may be ended, so long after the start.
func (p *pacer) may(elapsed time.Duration) bool {
	return elapsed >= idleAfter+time.Duration(p.ended)*p.pace
}

// finishIfIdle ends the session with a FIN if it is idle, and says whether it
// was. Patient: not if the client had the last word, for then the answer is due,
// however long the server thinks.
func (s *session) finishIfIdle(patient bool) bool {
	flow := s.relayed()
	if flow == nil {
		return s.endIfSilent()
	}
	if _, last := flow.Quiet(); patient && last == relay.Downstream {
		return false
	}
	return flow.FinishIfIdle(idleAfter, errDrained)
}

// endIfSilent ends a session whose client has not said a word, though it has to, and
// says whether it was one.
func (s *session) endIfSilent() bool {
	s.mu.Lock()
	silent := s.parked && s.suspended == nil
	s.mu.Unlock()
	if silent {
		s.stop(errDrained)
	}
	return silent
}

// empty is closed once there is no session.
func (s *Server) empty() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if s.quiet == nil {
		s.quiet = make(chan struct{})
	}
	return s.quiet
}
