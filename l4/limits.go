package l4

import (
	"fmt"
	"sync"
	"time"

	"ambassador/l4/outcome"
	"ambassador/policy"
)

// ListenerLimits bound the sessions of one listener. Zero is none.
type ListenerLimits struct {
	// Connections is the most at a time, PerClient the most from one Source.
	Connections, PerClient int
	// PerSecond is the most that begin in a second; as many may begin at once.
	PerSecond int
}

// limiter counts the sessions of a listener. It stays when a reload changes the
// limits.
type limiter struct {
	mu      sync.Mutex
	live    int                   // guarded by mu
	clients map[policy.Source]int // guarded by mu; how many each client has, zeros left out
	rate    policy.Rate           // guarded by mu
}

// met is a limit that a session would exceed.
type met struct {
	key string // below the listener: "limits.per_client"
	max int
}

// enter counts a session in, or says which limit it would exceed. Who was counted
// in leaves.
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

// become counts a session as that of another client, or says that it has too many.
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

// discount counts a session of a client less. Mu is held.
func (l *limiter) discount(client policy.Source) {
	if l.clients[client]--; l.clients[client] <= 0 {
		delete(l.clients, client)
	}
}

// leave counts a session out.
func (l *limiter) leave(client policy.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live--
	l.discount(client)
}

// enter counts the session in at its listener, where that has limits.
func (s *session) enter() error {
	limits := s.route.cfg.Limits
	if limits == (ListenerLimits{}) {
		return nil
	}
	client := sourceOf(s.downstream.conn)
	if s.route.cfg.proxied() {
		limits.PerClient = 0 // that is the proxy; see become
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

// exceeds is the end of a session by a limit of its listener.
func (s *session) exceeds(stage outcome.Stage, met *met) error {
	key := "listeners." + s.route.cfg.Name + "." + met.key
	return &outcome.Error{Stage: stage, Reason: outcome.Limit, Limit: key, Err: fmt.Errorf("%s is %d", key, met.max)}
}

// become counts the session as the client's whom a PROXY header has named.
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

// leave counts the session out again, if it was counted in.
func (s *session) leave() {
	s.mu.Lock()
	client, limiter := s.entered, s.route.limiter
	s.entered = nil
	s.mu.Unlock()
	if client != nil {
		limiter.leave(*client)
	}
}
