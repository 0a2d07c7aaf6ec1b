package l4

import (
	"cmp"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/policy"
)

// DefaultMemory is Config.MaxMemory where that is zero. It leaves room for the
// process itself in a container of 128 MiB.
const DefaultMemory = 64 << 20

// memory bounds what is held for clients, whatever their number: for sessions that
// are not relayed yet (a goroutine, buffers, certificates), by what they have cost
// when it was measured, and for relayed ones what a slow side has not taken. Beyond
// the bound the largest sessions end. Of those that hold no more than is usual, the
// oldest end: an honest client is connected within a second. Of relayed ones that is
// the one that has moved no byte for the longest time. Both are of the source that
// holds most, so that a crowd ends its own. Each of the two kinds has half of the bound
// for itself, so that neither ends the other's.
type memory struct {
	relay.Budget
	relieving atomic.Bool // a goroutine ends sessions

	mu      sync.Mutex        // the innermost: nothing else is locked while it is held
	waiting map[*session]bool // guarded by mu; those that hold something before the relay; true: it is being stopped
}

// What a session costs before the relay, in bytes.
const (
	leaveCost   = 16 << 10 // that it has a goroutine
	suspendCost = 10 << 10 // that its coroutine is suspended
	readCost    = 3        // each byte of a request or a greeting: what was read, and what is made of it

	// usualHold is what a client may hold that sends what clients mostly send.
	usualHold = 64 << 10
)

// errMemory ends a session that holds more than others where all hold too much.
var errMemory = &stopError{outcome.Limit, "too much memory was held for clients that were not connected yet or did not take their bytes, and this one held most of it, or for the longest time"}

// HeldBytes is how many bytes are held for clients now; Config.MaxMemory bounds them.
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

// letGo counts nothing more for the session: the relay has it, or it has ended.
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

// relieve ends sessions until what is held is within its bound. It does not wait.
func (s *Server) relieve() {
	if s.memory.relieving.Swap(true) {
		return
	}
	go func() { // ends once enough has ended, or nothing is left to end
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

// holder is a session with what it holds, and for how long.
type holder struct {
	*session
	from  policy.Source
	bytes int64
	age   time.Duration
}

// isOverMemory says whether more is held than may be, but for what is on its way out.
func (s *Server) isOverMemory() bool {
	_, _, over := s.waitingHolders()
	return over > 0
}

// waitingHolders are the sessions that are not relayed yet, with what they hold
// together, and by how much all that is held is over its bound; those that were
// stopped already are left out.
func (s *Server) waitingHolders() (all []holder, sum, over int64) {
	all, going := s.memory.holders(time.Now())
	for i := range all {
		all[i].from = all[i].sourceByName() // without memory's lock, which a session takes under its own
		sum += all[i].bytes
	}
	return all, sum, s.memory.Used() - going - s.memory.Limit()
}

// holders are the sessions that are not relayed yet, without their sources, and how
// much those hold that were stopped already.
func (m *memory) holders(now time.Time) (all []holder, going int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for sess, stopped := range m.waiting {
		n := sess.held.Load()
		if stopped {
			going += n
			continue
		}
		all = append(all, holder{session: sess, bytes: n, age: now.Sub(sess.rec.Start)})
	}
	return all, going
}

// relayedHolders are the sessions whose relay holds something.
func (s *Server) relayedHolders() (all []holder, sum int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.sessions {
		if flow := sess.relayed(); flow != nil {
			if n := flow.Held(); n > 0 {
				quiet, _ := flow.Quiet()
				all, sum = append(all, holder{sess, sess.sourceByName(), n, quiet}), sum+n
			}
		}
	}
	return all, sum
}

// endLargest ends as many sessions as free what is too much and an eighth of the
// bound more, so that the next do not follow at once. It says whether it ended any.
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
	for _, v := range largest(victims, over+limit/8) {
		v.giveUpForMemory(&s.memory)
		any = true
	}
	return any
}

// largest are sessions that hold so many bytes together: again and again of the source
// that holds most, the one that holds most, or, of those that hold what is usual, for
// the longest time. It changes the order of all.
func largest(all []holder, bytes int64) (victims []holder) {
	slices.SortFunc(all, func(a, b holder) int {
		return cmp.Or(cmp.Compare(max(b.bytes, usualHold), max(a.bytes, usualHold)), cmp.Compare(b.age, a.age))
	})
	type share struct {
		bytes int64
		all   []holder
	}
	shares := map[policy.Source]*share{}
	for _, h := range all {
		s := shares[h.from]
		if s == nil {
			s = &share{}
			shares[h.from] = s
		}
		s.bytes, s.all = s.bytes+h.bytes, append(s.all, h)
	}
	for bytes > 0 && len(victims) < len(all) {
		var most *share
		for _, s := range shares {
			if len(s.all) > 0 && (most == nil || s.bytes > most.bytes) {
				most = s
			}
		}
		h := most.all[0]
		most.bytes, most.all = most.bytes-h.bytes, most.all[1:]
		bytes, victims = bytes-h.bytes, append(victims, h)
	}
	return victims
}

// sourceByName is the source of the client that the record names.
func (s *session) sourceByName() policy.Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, _ := netip.ParseAddrPort(s.rec.Client)
	return policy.SourceOf(at.Addr())
}

// giveUpForMemory ends the session.
func (s *session) giveUpForMemory(m *memory) {
	m.mu.Lock()
	if _, ok := m.waiting[s]; ok {
		m.waiting[s] = true
	}
	m.mu.Unlock()
	s.note(func(r *outcome.Record) { r.Limit = "limits.memory" })
	s.stop(errMemory)
}

// metered counts what is read from a side of a dialogue as held for a session.
type metered struct {
	io.ReadWriter
	session *session
}

func (c *metered) Read(b []byte) (int, error) {
	n, err := c.ReadWriter.Read(b)
	if n > 0 {
		c.session.hold(int64(n) * readCost)
	}
	return n, err
}

// meteredConn is metered for a whole connection.
type meteredConn struct {
	net.Conn
	session *session
}

func (c *meteredConn) Read(b []byte) (int, error) { return (&metered{c.Conn, c.session}).Read(b) }
