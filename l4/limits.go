package l4

import (
	"fmt"
	"sync"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// ListenerLimits bounds the sessions of one listener. A limit of zero is off.
type ListenerLimits struct {
	// Connections is the maximum number of sessions at a time, PerClient the maximum
	// from one Source.
	Connections, PerClient int
	// PerSecond is the maximum number of sessions that begin in a second. They may all
	// begin at once.
	PerSecond int
}

// limiter counts the sessions of a listener. A reload that changes the limits keeps the
// limiter.
type limiter struct {
	mu      sync.Mutex
	live    int                   // guarded by mu
	clients map[policy.Source]int // guarded by mu; the sessions of each client, without zeros
	rate    policy.Rate           // guarded by mu
}

// met is a limit that a session would exceed.
type met struct {
	key string // the key below the listener: "limits.per_client"
	max int
}

// enter counts a session, or returns the limit that it would exceed. The caller must
// call leave for a session that was counted.
func (l *limiter) enter(limits ListenerLimits, client policy.Source, now time.Time) *met {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate.PerSecond = limits.PerSecond
	switch {
	case !l.rate.Allow(now):
		return &met{"limits.connections_per_second", limits.PerSecond}
	case limits.Connections > 0 && l.live >= limits.Connections:
		return &met{"limits.connections", limits.Connections}
	case limits.PerClient > 0 && l.clients[client] >= limits.PerClient:
		return &met{"limits.per_client", limits.PerClient}
	}
	if l.clients == nil {
		l.clients = map[policy.Source]int{}
	}
	l.live++
	l.clients[client]++
	return nil
}

// become reassigns a session to another client, or returns the limit if that client has
// too many sessions.
func (l *limiter) become(limits ListenerLimits, from, to policy.Source) *met {
	l.mu.Lock()
	defer l.mu.Unlock()
	if limits.PerClient > 0 && l.clients[to] >= limits.PerClient {
		return &met{"limits.per_client", limits.PerClient}
	}
	l.clients[to]++
	l.discount(from)
	return nil
}

// discount decrements the count of a client. mu is held.
func (l *limiter) discount(client policy.Source) {
	if l.clients[client]--; l.clients[client] <= 0 {
		delete(l.clients, client)
	}
}

// leave stops counting a session.
func (l *limiter) leave(client policy.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live--
	l.discount(client)
}

// enter counts the session at its listener, if the listener has limits.
func (s *session) enter() error {
	limits := s.route.cfg.Limits
	if limits == (ListenerLimits{}) {
		return nil
	}
	client := sourceOf(s.downstream.conn)
	if s.route.cfg.proxied() {
		limits.PerClient = 0 // the peer is the proxy; become checks the client
	}
	met := s.route.limiter.enter(limits, client, time.Now())
	if met == nil {
		s.mu.Lock()
		s.entered = &client
		s.mu.Unlock()
		return nil
	}
	return s.exceeds(outcome.StageAdmit, met)
}

// exceeds returns the error of a session that exceeds a limit of its listener.
func (s *session) exceeds(stage outcome.Stage, met *met) error {
	key := "listeners." + s.route.cfg.Name + "." + met.key
	return &outcome.Error{Stage: stage, Reason: outcome.Limit, Limit: key, Err: fmt.Errorf("%s is %d", key, met.max)}
}

// become reassigns the session to the client that a PROXY header has named.
func (s *session) become(client policy.Source) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entered == nil {
		return nil
	}
	if met := s.route.limiter.become(s.route.cfg.Limits, *s.entered, client); met != nil {
		return s.exceeds(outcome.StageGreet, met)
	}
	s.entered = &client
	return nil
}

// leave stops counting the session, if it was counted.
func (s *session) leave() {
	s.mu.Lock()
	client, limiter := s.entered, s.route.limiter
	s.entered = nil
	s.mu.Unlock()
	if client != nil {
		limiter.leave(*client)
	}
}
