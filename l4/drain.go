package l4

import (
	"context"
	"time"

	"ambassador/l4/relay"
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
	// than fit into Timeout, they are ended closer together.
	drainPace = 20 * time.Millisecond
)

// Shutdown drains and returns when no session is left. When ctx is cancelled,
// what is left is reset at once. It does not wait for Observer calls in flight.
func (s *Server) Shutdown(ctx context.Context, d Drain) {
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

// refuse makes the server unready, and closes the listeners after the delay.
func (s *Server) refuse(ctx context.Context, d Drain) {
	s.mu.Lock()
	already := s.draining
	s.draining = true
	s.mu.Unlock()
	if !already {
		s.log.Info("draining", "sessions", s.active(), "delay", d.Delay)
		pause(ctx, d.Delay)
	}
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
	start := time.Now()
	idle := s.baseline()
	pace := min(drainPace, timeout*8/10/time.Duration(len(idle)+1))
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
		for i, b := range idle {
			if b.flow != nil && time.Since(start) >= idleAfter+time.Duration(i)*pace {
				b.flow.FinishIfIdle(b.moved, errDrained)
				idle[i].flow = nil
			}
		}
	}
}

// baseline is what a session had moved when the drain began. One that has moved
// since is busy, and may finish.
type baseline struct {
	flow  *relay.Session
	moved int64
}

func (s *Server) baseline() []baseline {
	var out []baseline
	for _, sess := range s.live() {
		if moved, flow := sess.moved(); flow != nil {
			out = append(out, baseline{flow, moved})
		}
	}
	return out
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
