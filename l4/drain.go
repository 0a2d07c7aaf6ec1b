package l4

import (
	"context"
	"time"

	"ambassador/l4/relay"
	"ambassador/l4/task"
)

// Drain configures how to stop without cutting off sessions.
type Drain struct {
	// Delay is how long the server still accepts connections after it has become
	// unready, so that load balancers can notice.
	Delay time.Duration
	// Timeout bounds the rest of the drain. During it, idle sessions are ended and
	// others may finish; at its end the remaining sessions are reset. If zero, they are
	// reset at once.
	Timeout time.Duration
}

const (
	// idleAfter is how long a session must have moved no byte to count as idle.
	idleAfter = time.Second
	// drainTick is how often a drain checks the sessions.
	drainTick = 50 * time.Millisecond
	// drainPace is the pause between the ends of two idle sessions, so that their
	// clients do not all reconnect at the same moment. If more sessions are idle than
	// fit into the window, 4/5 of Timeout, the pause is shorter.
	drainPace = 20 * time.Millisecond
)

// Shutdown drains and returns when no session is left. When ctx is cancelled, the
// remaining sessions are reset at once. It does not wait for Observer calls in flight.
func (s *Server) Shutdown(ctx context.Context, d Drain) {
	defer s.engine.Close()
	defer s.tasks.Close()
	defer s.loops.Wait()
	defer s.cancel() // ends refuse, and with it the last of loops
	s.drain(ctx, d)
}

// Drain is the first half of Shutdown: the server is unready at once, and stops
// accepting after d.Delay. The server and its sessions continue; Shutdown may follow.
// Drain returns at once.
func (s *Server) Drain(d Drain) {
	s.loops.Go(func() { s.stopAccepting(s.ctx, d) })
}

// stopAccepting makes the server unready, and closes the listeners after d.Delay. The
// delay of the first call counts; a later call waits for the rest of it.
func (s *Server) stopAccepting(ctx context.Context, d Drain) {
	s.mu.Lock()
	first := s.stopAt.IsZero()
	if first {
		s.stopAt = time.Now().Add(d.Delay)
	}
	s.draining = true
	wait := time.Until(s.stopAt)
	s.mu.Unlock()
	if first {
		s.log.Info("draining", "sessions", s.active(), "delay", d.Delay)
	}
	task.Wait(ctx, wait, nil)
	s.closeListeners()
	s.log.Info("stopped accepting", "sessions", s.active())
}

func (s *Server) drain(ctx context.Context, d Drain) {
	s.stopAccepting(ctx, d)
	s.drainSessions(ctx, d.Timeout)
	cause := errDrainTimeout
	if ctx.Err() != nil {
		cause = errShutdown
	}
	s.stopAll(cause)
	<-s.empty()
	s.log.Info("drained")
}

// drainSessions returns when no session is left, after timeout, or when ctx ends.
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

// pacer spreads the ends of idle sessions over time.
type pacer struct {
	start time.Time
	pace  time.Duration
	ended int
}

// may reports whether another idle session may be ended when elapsed has passed since
// the start.
func (p *pacer) may(elapsed time.Duration) bool {
	return elapsed >= idleAfter+time.Duration(p.ended)*p.pace
}

// finishIfIdle ends the session with a FIN if it is idle, and reports whether it was.
// If patient, a session does not count as idle while the last bytes are the client's:
// the server's answer is due, however long that takes.
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

// endIfSilent ends a session whose client has to speak and has sent nothing. It reports
// whether the session was one.
func (s *session) endIfSilent() bool {
	s.mu.Lock()
	silent := s.parked && s.suspended == nil
	s.mu.Unlock()
	if silent {
		s.stop(errDrained)
	}
	return silent
}

// empty returns a channel that is closed when there is no session.
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
