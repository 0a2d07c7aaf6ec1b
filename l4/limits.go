package l4

import (
	"fmt"
	"time"

	"ambassador/l4/limits"
	"ambassador/l4/outcome"
	"ambassador/l4/peer"
	"ambassador/policy"
)

// enter counts the session at its listener, if the listener has limits.
func (s *session) enter() error {
	bounds := s.route.cfg.Limits
	if bounds == (limits.Limits{}) {
		return nil
	}
	client := peer.Source(s.downstream.conn)
	if s.route.cfg.proxied() {
		bounds.PerClient = 0 // the peer is the proxy; reassign checks the client
	}
	exceeded := s.route.limiter.Enter(bounds, client, time.Now())
	if exceeded == nil {
		s.mu.Lock()
		s.countedAs = &client
		s.mu.Unlock()
		return nil
	}
	return s.exceeds(outcome.StageAdmit, exceeded)
}

// exceeds returns the error of a session that exceeds a limit of its listener.
func (s *session) exceeds(stage outcome.Stage, exceeded *limits.Exceeded) error {
	key := "listeners." + s.route.cfg.Name + "." + exceeded.Key
	return &outcome.Error{Stage: stage, Reason: outcome.Limit, Limit: key, Err: fmt.Errorf("%s is %d", key, exceeded.Max)}
}

// reassign reassigns the session to the client that a PROXY header has named.
func (s *session) reassign(client policy.Source) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.countedAs == nil {
		return nil
	}
	if exceeded := s.route.limiter.Reassign(s.route.cfg.Limits, *s.countedAs, client); exceeded != nil {
		return s.exceeds(outcome.StageGreet, exceeded)
	}
	s.countedAs = &client
	return nil
}

// leave stops counting the session, if it was counted.
func (s *session) leave() {
	s.mu.Lock()
	client, limiter := s.countedAs, s.route.limiter
	s.countedAs = nil
	s.mu.Unlock()
	if client != nil {
		limiter.Leave(*client)
	}
}
