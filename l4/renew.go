package l4

import (
	"fmt"

	"ambassador/l4/outcome"
)

// isCurrent says whether the session's route is the one that its listener has now.
func (s *session) isCurrent() bool {
	l := s.route.listener
	return l.route.Load() == s.route && !l.removed.Load()
}

// renewRoute lets a session whose client has said its part be judged by the
// configuration in use, though it was accepted by an older one: who was connected before
// a reload must not get past the new rules. Where the client was greeted otherwise than
// it would be now, the session ends: what it proved or said was an answer to another
// question. That and a listener that is gone are outcome.NoRoute, and connecting again
// helps. The caller is the session's run, after greet, when no silence has the session.
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

// outdated is what has become of the listener since it greeted the client, where that
// counts for nothing now; empty if it does.
func (s *session) outdated(now *route) string {
	switch {
	case s.route.listener.removed.Load():
		return "removed"
	case now.cfg.Greeting != s.route.cfg.Greeting || now.cfg.Users != s.downstream.users:
		return "changed"
	}
	return ""
}
