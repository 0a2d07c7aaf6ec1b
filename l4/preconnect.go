package l4

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
	"ambassador/policy"
)

// PreconnectConfig is how many connections are kept ready. If Connections is zero,
// none is.
type PreconnectConfig struct {
	// Connections is how many, over all addresses.
	Connections int
	// MaxAge is the age at which one is replaced, up to a fifth sooner. It must be
	// shorter than what the server allows for silence before a login. If zero,
	// DefaultPreconnectAge.
	MaxAge time.Duration
}

// PreconnectResult is what became of a session's wish for a spare connection.
type PreconnectResult string

// The results. A stale spare was found dead when it was wanted; the session then
// gets another, or an ordinary attempt.
const (
	PreconnectHit   PreconnectResult = "hit"
	PreconnectMiss  PreconnectResult = "miss"
	PreconnectStale PreconnectResult = "stale"
)

// spare is a connection that is ready for a client's bytes. One goroutine reads
// from it until it is taken, so that an end or an alert is noticed; what a server
// says unasked is kept for the client.
type spare struct {
	// Static after construction.
	conn  *upstreamConn
	made  time.Time
	until time.Time
	gone  chan struct{} // closed when watch has ended

	// Owned by watch until gone is closed.
	early []byte
	err   error // why watch has ended
}

const (
	// spareEarlyMax bounds what a spare's server may say unasked: greetings are
	// shorter, and who says more does not wait for a client.
	spareEarlyMax = 16 << 10
	// sparesTick is how often the spares are looked over.
	sparesTick = time.Second
)

// spares are the connections that an upstream keeps ready. Sessions take the oldest
// first; nobody waits for one.
type spares struct {
	// Static after construction.
	upstream *Upstream
	room     func() bool   // whether the process has room for one more
	changed  chan struct{} // has one message when there is something to do

	mu     sync.Mutex
	ready  []*spare  // guarded by mu; the oldest first
	making int       // guarded by mu
	failed int       // guarded by mu; in a row
	after  time.Time // guarded by mu; no new one before
	mysql  bool      // guarded by mu; a server greeted as MySQL does: to it an unused spare is a failed client
	unused int       // guarded by mu; spares that nobody got, since a session last came

	total atomic.Int64 // ready and being made
}

func newSpares(u *Upstream, room func() bool) *spares {
	return &spares{upstream: u, room: room, changed: make(chan struct{}, 1)}
}

// run keeps as many spares as are wanted until ctx ends, and then closes them. The
// upstream waits for it.
func (s *spares) run(ctx context.Context) {
	var work sync.WaitGroup
	defer s.close()
	defer work.Wait()
	tick := time.NewTicker(sparesTick)
	defer tick.Stop()
	for {
		s.sweep(time.Now())
		for range s.missing(time.Now()) {
			work.Go(func() { s.add(ctx) })
		}
		select {
		case <-s.changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *spares) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// missing is how many spares are to be made now. They count as being made.
func (s *spares) missing(now time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.after) {
		return 0
	}
	want := s.upstream.cfg.Preconnect.Connections
	if s.mysql { // it locks hosts out for too many: those that wait may be next
		want = min(want, maxGreetings-s.unused)
	}
	if s.failed > 0 {
		want = min(want, len(s.ready)+1) // one at a time, until one succeeds
	}
	for len(s.ready)+s.making < want && s.room() {
		s.making++
		s.total.Add(1)
		n++
	}
	return n
}

// add makes one spare.
func (s *spares) add(ctx context.Context) {
	u := s.upstream
	var conn *upstreamConn
	var err *outcome.Error
	if panicked := u.panics().catch(PartPreconnect, func() { conn, err = u.attempt(ctx, &plan{upstream: u}, 1, untold) }); panicked != nil {
		err = &outcome.Error{Reason: outcome.Internal, Err: panicked}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	s.making--
	if err != nil {
		s.total.Add(-1)
		if s.failedOnce(time.Now()); err.Reason == outcome.Limit {
			s.failed = 0 // the sessions that hold the places may end at any time
		}
		return
	}
	age := orDefault(u.cfg.Preconnect.MaxAge, DefaultPreconnectAge)
	now := time.Now()
	one := &spare{conn: conn, made: now, until: now.Add(policy.Backoff{Base: age}.Pause(0, rand.Float64()*2/5)), gone: make(chan struct{})}
	conn.candidate.at.spares.Add(1)
	s.ready = append(s.ready, one)
	go s.watch(one) // ends when the spare is taken or closed
}

// watch reads from a spare until it ends, or is taken.
func (s *spares) watch(one *spare) {
	defer s.wake()
	defer close(one.gone)
	if err := s.upstream.panics().catch(PartPreconnect, one.read); err != nil {
		one.err = err
	}
	if starttls.IsMySQLGreeting(one.early) {
		s.mu.Lock()
		s.mysql = true
		s.mu.Unlock()
	}
}

// read reads until the spare ends, is taken, or has said too much.
func (one *spare) read() {
	buf := make([]byte, 2048)
	for one.err == nil && len(one.early) < spareEarlyMax {
		var n int
		n, one.err = one.conn.Read(buf)
		if one.early = append(one.early, buf[:n]...); n > 0 {
			one.conn.succeeded()
		}
	}
}

// take gives a ready connection to a session, or nil. The session's bytes begin
// with those that the server has said already.
func (s *spares) take() *upstreamConn {
	s.mu.Lock()
	s.unused = 0
	s.mu.Unlock()
	best := s.upstream.bestPriority(time.Now())
	for {
		one := s.pop()
		if one == nil {
			s.tell(PreconnectMiss)
			return nil
		}
		if s.current(one, time.Now(), best) && one.claim() && one.conn.again() {
			s.tell(PreconnectHit)
			s.succeeded()
			return one.conn
		}
		s.tell(PreconnectStale)
		one.drop()
	}
}

func (s *spares) pop() *spare {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) == 0 {
		return nil
	}
	defer s.wake()
	one := s.ready[0]
	s.ready = s.ready[1:]
	s.total.Add(-1)
	one.conn.candidate.at.spares.Add(-1)
	return one
}

func (s *spares) tell(r PreconnectResult) {
	if f := s.upstream.observer.Preconnect; f != nil {
		f(s.upstream.cfg.Name, r)
	}
}

// count is how many there are, those that are being made included.
func (s *spares) count() int { return int(s.total.Load()) }

// sweep drops what may not be used any more, and settles what has lived long
// enough to count as a success.
func (s *spares) sweep(now time.Time) {
	for _, one := range s.outdated(now, s.upstream.bestPriority(now)) {
		one.drop()
	}
}

// outdated takes out the spares that may not be used any more.
func (s *spares) outdated(now time.Time, best int) (dropped []*spare) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, young := s.ready[:0:0], false
	for _, one := range s.ready {
		if one.ended() || !s.current(one, now, best) {
			one.conn.candidate.at.spares.Add(-1)
			s.total.Add(-1)
			dropped = append(dropped, one)
			young = young || one.ended() && now.Sub(one.made) < settleAfter
			continue
		}
		kept = append(kept, one)
		if now.Sub(one.made) >= settleAfter {
			one.conn.succeeded() // with mu held: nobody has taken it
			s.failed, s.after = 0, time.Time{}
		}
	}
	s.unused += len(dropped)
	if s.ready = kept; young {
		s.failedOnce(now) // as the next would
	}
	return dropped
}

// succeeded notes that a spare was of use.
func (s *spares) succeeded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed, s.after = 0, time.Time{}
}

// failedOnce puts the next spare off, longer each time. The caller holds mu.
func (s *spares) failedOnce(now time.Time) {
	pause := policy.Backoff{Base: 200 * time.Millisecond, Max: 5 * time.Second}
	s.after = now.Add(pause.Pause(s.failed, rand.Float64()))
	s.failed++
}

// current says whether a session may have the spare: it is young, its address is
// one that would be chosen, and our identity is the one it was made with.
func (s *spares) current(one *spare, now time.Time, best int) bool {
	c := one.conn
	m, ok := s.upstream.member(c.candidate.at)
	return ok && now.Before(one.until) && !m.down.Load() && m.breaker.State() != policy.Open && m.priority <= best && c.configIsCurrent()
}

// close drops all spares, for good.
func (s *spares) close() {
	for one := s.pop(); one != nil; one = s.pop() {
		one.drop()
	}
}

// ended says whether the server has ended the spare, or said too much.
func (one *spare) ended() bool {
	select {
	case <-one.gone:
		return true
	default:
		return false
	}
}

// claim takes the spare from its watch. False: it is dead.
func (one *spare) claim() bool {
	one.conn.SetDeadline(time.Unix(1, 0)) // writes too: a read may have to answer a KeyUpdate
	<-one.gone
	one.conn.SetDeadline(time.Time{})
	if one.err == nil || !isTimeout(one.err) {
		return false
	}
	one.conn.early = one.early
	return one.conn.silent()
}

// silent says whether nothing has come since watch ended, or only what a live
// server says: it waits a moment where something has, to see what.
func (c *upstreamConn) silent() bool {
	data, ended := peek(c.raw)
	if !data {
		return !ended
	}
	c.raw.SetReadDeadline(time.Now().Add(peekTimeout))
	defer c.raw.SetReadDeadline(time.Time{})
	buf := make([]byte, 2048)
	n, err := c.stream().Read(buf)
	c.early = append(c.early, buf[:n]...)
	return err == nil || isTimeout(err)
}

// peekTimeout is for reading what has come already: TLS needs whole records.
const peekTimeout = 5 * time.Millisecond

// drop ends a spare that nobody gets. One that ended by itself, too early, is the
// failure that it would be for a session.
func (one *spare) drop() {
	defer one.conn.closePolitely()
	if !one.ended() {
		one.conn.settle("", nil)
		return
	}
	if one.err != nil && !isTimeout(one.err) {
		e := one.conn.error(outcome.StageTLS, earlyReason(one.err), one.err)
		one.conn.settle(e.Reason, e)
	}
	one.conn.settle("", nil)
}

// again makes the connection a session's: where the attempt that made it has
// settled, the session's own outcome has a ticket of its own. False: the breaker
// does not permit it.
func (c *upstreamConn) again() bool {
	if !c.told.Load() {
		return true
	}
	now := time.Now()
	ticket, change, ok := c.candidate.at.breaker.Permit(now)
	if ok {
		c.candidate.at.turned(change, "the next trial was due")
		c.candidate.ticket, c.candidate.began = ticket, c.upstream.age(now)
		c.told.Store(false)
	}
	return ok
}

// configIsCurrent says whether a connection made now would be made with the same
// identity: the configuration is the same as long as that is.
func (c *upstreamConn) configIsCurrent() bool {
	if c.tls == nil {
		return true
	}
	now, err := c.upstream.cfg.TLS(c.candidate.endpoint.host, c.candidate.String())
	return err == nil && now == c.config
}

// bestPriority is the lowest priority of which an address can be used.
func (u *Upstream) bestPriority(now time.Time) int {
	best, found := 0, false
	for _, m := range u.members() {
		if (!found || m.priority < best) && m.usable(now) {
			best, found = m.priority, true
		}
	}
	return best
}

// member is the address as it stands now; false if it is gone.
func (u *Upstream) member(a *address) (member, bool) {
	for _, m := range u.members() {
		if m.address == a {
			return m, true
		}
	}
	return member{}, false
}

// settleAfter is how long a connection must have lived to count as a success.
const settleAfter = time.Second
