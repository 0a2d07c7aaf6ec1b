package limits

import (
	"sync"
	"time"

	"ambassador/policy"
)

// Limits bounds the sessions of one listener. A limit of zero is off.
type Limits struct {
	// Connections is the maximum number of sessions at a time, PerClient the maximum
	// from one Source.
	Connections, PerClient int
	// PerSecond is the maximum number of sessions that begin in a second. They may all
	// begin at once.
	PerSecond int
}

// Limiter counts the sessions of a listener. A reload that changes the limits keeps the
// limiter.
type Limiter struct {
	mu      sync.Mutex
	live    int                   // guarded by mu
	clients map[policy.Source]int // guarded by mu; the sessions of each client, without zeros
	rate    policy.Rate           // guarded by mu
}

// Exceeded is a limit that a session would exceed.
type Exceeded struct {
	Key string // the key below the listener: "limits.per_client"
	Max int
}

// Enter counts a session, or returns the limit that it would exceed. The caller must
// call leave for a session that was counted.
func (l *Limiter) Enter(bounds Limits, client policy.Source, now time.Time) *Exceeded {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate.PerSecond = bounds.PerSecond
	switch {
	case !l.rate.Allow(now):
		return &Exceeded{"limits.connections_per_second", bounds.PerSecond}
	case bounds.Connections > 0 && l.live >= bounds.Connections:
		return &Exceeded{"limits.connections", bounds.Connections}
	case bounds.PerClient > 0 && l.clients[client] >= bounds.PerClient:
		return &Exceeded{"limits.per_client", bounds.PerClient}
	}
	if l.clients == nil {
		l.clients = map[policy.Source]int{}
	}
	l.live++
	l.clients[client]++
	return nil
}

// Adopt counts a session that another program has counted, whatever the limits.
func (l *Limiter) Adopt(client policy.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients == nil {
		l.clients = map[policy.Source]int{}
	}
	l.live++
	l.clients[client]++
}

// Become reassigns a session to another client, or returns the limit if that client has
// too many sessions.
func (l *Limiter) Reassign(bounds Limits, from, to policy.Source) *Exceeded {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.decrement(from)
	if bounds.PerClient > 0 && l.clients[to] >= bounds.PerClient {
		l.clients[from]++
		return &Exceeded{"limits.per_client", bounds.PerClient}
	}
	l.clients[to]++
	return nil
}

// decrement decrements the count of a client. mu is held.
func (l *Limiter) decrement(client policy.Source) {
	if l.clients[client]--; l.clients[client] <= 0 {
		delete(l.clients, client)
	}
}

// Leave stops counting a session.
func (l *Limiter) Leave(client policy.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live--
	l.decrement(client)
}

// Counts returns how many sessions are counted, and of how many clients.
func (l *Limiter) Counts() (sessions, clients int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live, len(l.clients)
}
