package l4

import (
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/limits"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/policy"
)

// DefaultMemory is used if Config.MaxMemory is zero. It leaves room for the process
// itself in a container of 128 MiB.
const DefaultMemory = 64 << 20

// memory bounds what is held for clients, whatever their number. For a session that is
// not relayed yet (a goroutine, buffers, certificates) it counts costs that were
// measured. For a relayed session it counts the bytes that a slow side has not taken.
// If the bound is exceeded, the largest sessions end. Among sessions that hold no more
// than usual, the oldest ends, since an honest client is connected within a second.
// Among relayed sessions, the one that has moved no byte for the longest time ends.
// Both are taken from the source that holds most, so that a source with many sessions
// ends its own. Each of the two kinds has half of the bound for itself, so that neither
// ends sessions of the other.
type memory struct {
	relay.Budget
	relieving atomic.Bool // a goroutine is ending sessions

	mu      sync.Mutex        // the innermost lock: no other lock is taken while it is held
	waiting map[*session]bool // guarded by mu; the sessions that hold something before the relay; true: being stopped
}

// The cost of a session before the relay, in bytes.
const (
	leaveCost   = 16 << 10 // a goroutine
	suspendCost = 10 << 10 // a suspended coroutine
)

// errMemory ends a session when too much memory is held in total and this session holds
// most of it, or has held it for the longest time.
var errMemory = &ending.Stop{Reason: outcome.Limit, Text: "too much memory was held for clients that were not connected yet or did not take their bytes, and this one held most of it, or for the longest time"}

// HeldBytes is how many bytes are held for clients now. Config.MaxMemory bounds them.
func (s *Server) HeldBytes() int64 { return s.memory.Used() }

// hold counts n more bytes for a session that is not relayed yet.
func (s *session) hold(n int64) {
	m := &s.server.memory
	if s.held.Add(n) == n {
		m.mu.Lock()
		m.waiting[s] = false
		m.mu.Unlock()
	}
	m.Add(n)
}

// letGo stops counting for the session: the relay has taken it, or it has ended.
func (s *session) letGo() {
	n := s.held.Swap(0)
	if n == 0 {
		return
	}
	m := &s.server.memory
	m.mu.Lock()
	delete(m.waiting, s)
	m.mu.Unlock()
	m.Add(-n)
}

// relieve ends sessions until the held bytes are within the bound. It does not wait.
func (s *Server) relieve() {
	if s.memory.relieving.Swap(true) {
		return
	}
	go func() { // ends when enough sessions have ended, or when none is left to end
		for {
			for s.endLargest() {
			}
			s.memory.relieving.Store(false)
			if !s.isOverMemory() || s.memory.relieving.Swap(true) {
				return
			}
		}
	}()
}

// holder is a session that holds something.
type holder = limits.Holder[*session]

// isOverMemory reports whether the held bytes exceed the bound. It does not count
// sessions that are being stopped.
func (s *Server) isOverMemory() bool {
	_, _, over := s.waitingHolders()
	return over > 0
}

// waitingHolders returns the sessions that are not relayed yet, the sum of what they
// hold, and by how much all held bytes exceed the bound. Sessions that are being
// stopped are left out of all three.
func (s *Server) waitingHolders() (all []holder, sum, over int64) {
	all, going := s.memory.holders(time.Now())
	for i := range all {
		all[i].From = all[i].Session.sourceByName() // without memory.mu: a session takes that with its own mu held
		sum += all[i].Bytes
	}
	return all, sum, s.memory.Used() - going - s.memory.Limit()
}

// holders returns the sessions that are not relayed yet, without their sources, and how
// much is held by those that are being stopped.
func (m *memory) holders(now time.Time) (all []holder, going int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for sess, stopped := range m.waiting {
		n := sess.held.Load()
		if stopped {
			going += n
			continue
		}
		all = append(all, holder{Session: sess, Bytes: n, Age: now.Sub(sess.rec.Start())})
	}
	return all, going
}

// relayedHolders returns the sessions whose relay holds something, and the sum of that.
func (s *Server) relayedHolders() (all []holder, sum int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.sessions {
		if flow := sess.relayed(); flow != nil {
			if n := flow.Held(); n > 0 {
				quiet, _ := flow.Quiet()
				all, sum = append(all, holder{Session: sess, From: sess.sourceByName(), Bytes: n, Age: quiet}), sum+n
			}
		}
	}
	return all, sum
}

// endLargest ends sessions that together hold the excess and an eighth of the bound
// more, so that the bound is not exceeded again at once. It reports whether it ended
// any.
func (s *Server) endLargest() (any bool) {
	limit := s.memory.Limit()
	victims, waiting, over := s.waitingHolders()
	if limit == 0 || over <= 0 {
		return false
	}
	relayed, held := s.relayedHolders()
	switch {
	case waiting <= limit/2:
		victims = relayed
	case held > limit/2:
		victims = append(victims, relayed...)
	}
	for _, v := range limits.Largest(victims, over+limit/8) {
		v.Session.giveUpForMemory(&s.memory)
		any = true
	}
	return any
}

// sourceByName is the source of the client in the record.
func (s *session) sourceByName() policy.Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, _ := netip.ParseAddrPort(s.rec.Copy().Client)
	return policy.SourceOf(at.Addr())
}

// giveUpForMemory stops the session for errMemory.
func (s *session) giveUpForMemory(m *memory) {
	m.mu.Lock()
	if _, ok := m.waiting[s]; ok {
		m.waiting[s] = true
	}
	m.mu.Unlock()
	s.note(func(r *outcome.Record) { r.Limit = "limits.memory" })
	s.stop(errMemory)
}

// metered counts what is read from a side of a dialogue as held by the session.
func (s *session) metered(side io.ReadWriter) io.ReadWriter {
	return &limits.Metered{ReadWriter: side, Hold: s.hold}
}
