package l4

import (
	"fmt"

	"ambassador/l4/outcome"
)

// isCurrent reports whether the session's route is still the listener's.
func (s *session) isCurrent() bool {
	l := s.route.listener
	return l.route.Load() == s.route && !l.removed.Load()
}

// renewRoute moves a session whose greeting is complete to the configuration in use, if
// it was accepted under an older one. A client that connected before a reload must not
// bypass the new rules. If the listener now greets clients differently, the session
// ends: what the client proved or said answered another question. That case and a
// removed listener are outcome.NoRoute, and the client can connect again. Only Run
// calls renewRoute, after greet, when the session is not parked.
func (s *session) renewRoute() *outcome.Error {
	if s.isCurrent() {
		return nil
	}
	now := s.route.listener.route.Load()
	if why := s.outdated(now); why != "" {
		return &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.NoRoute,
			Err: fmt.Errorf("a reload has %s listener %s since the client connected; let it connect again", why, s.route.cfg.Name)}
	}
	if now.traffic != s.route.traffic {
		s.server.countAt(s, now.traffic)
	}
	s.mu.Lock()
	s.route = now
	s.mu.Unlock()
	return nil
}

// outdated says what a reload has done to the listener so that the client's greeting no
// longer counts; empty if it still does.
func (s *session) outdated(now *route) string {
	switch {
	case s.route.listener.removed.Load():
		return "removed"
	case now.cfg.Greeting != s.route.cfg.Greeting || now.cfg.Users != s.downstream.users:
		return "changed"
	}
	return ""
}
