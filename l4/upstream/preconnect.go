package upstream

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/policy"
)

// PreconnectConfig says how many preconnected connections an upstream keeps. If
// Connections is zero, it keeps none.
type PreconnectConfig struct {
	// Connections is how many, over all addresses together.
	Connections int
	// MaxAge is the age at which a connection is replaced, or up to a fifth sooner. It
	// must be shorter than the server's timeout for a login. If zero,
	// DefaultPreconnectAge.
	MaxAge time.Duration
}

// PreconnectResult is the result of a session's request for a preconnected connection.
type PreconnectResult string

// The results. Stale means that the connection could not be used any more; the session
// then takes another one, or makes an ordinary attempt.
const (
	PreconnectHit   PreconnectResult = "hit"
	PreconnectMiss  PreconnectResult = "miss"
	PreconnectStale PreconnectResult = "stale"
)

// preconnected is a preconnected connection: it is ready for a client's bytes. A goroutine
// reads from it until a session takes it, and so notices its end or an alert. Bytes
// that the server sends unasked are kept for the client.
type preconnected struct {
	// Static after construction.
	conn  *Conn
	made  time.Time
	until time.Time
	gone  chan struct{} // closed when watch has ended

	// Owned by watch until gone is closed.
	early []byte
	err   error // why watch has ended
}

const (
	// preconnectedEarlyMax bounds the bytes that a preconnected connection's server may
	// send unasked. Greetings are shorter, and a server that sends more does not wait
	// for a client.
	preconnectedEarlyMax = 16 << 10
	// preconnectTick is how often all preconnected connections are checked.
	preconnectTick = time.Second
)

// preconnectedPool has the preconnected connections of an upstream. Sessions take the oldest
// first; no session waits for one.
type preconnectedPool struct {
	// Static after construction.
	upstream *Upstream
	room     func() bool   // whether the process has room for one more
	changed  chan struct{} // has one message when there is something to do

	mu     sync.Mutex
	ready  []*preconnected // guarded by mu; the oldest first
	making int             // guarded by mu
	failed int             // guarded by mu; in a row
	after  time.Time       // guarded by mu; no preconnected connection is made before
	mysql  bool            // guarded by mu; a server greeted like MySQL: it counts an unused preconnected connection as a failed client
	unused int             // guarded by mu; preconnected connections that no session took, since the last session

	total atomic.Int64 // ready and being made
}

func newPreconnectedPool(u *Upstream, room func() bool) *preconnectedPool {
	if room == nil {
		room = func() bool { return true }
	}
	return &preconnectedPool{upstream: u, room: room, changed: make(chan struct{}, 1)}
}

// run keeps the configured number of preconnected connections until ctx ends, and then
// closes them. The upstream waits for it.
func (s *preconnectedPool) run(ctx context.Context) {
	var work sync.WaitGroup
	defer s.close()
	defer work.Wait()
	tick := time.NewTicker(preconnectTick)
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

func (s *preconnectedPool) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// missing returns how many preconnected connections to make now, and counts them as being made.
func (s *preconnectedPool) missing(now time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.after) {
		return 0
	}
	want := s.upstream.cfg.Preconnect.Connections
	if s.mysql { // it locks out hosts with too many failed clients, and each preconnected connection may become one
		want = min(want, maxGreetings-s.unused)
	}
	if s.failed > 0 {
		want = min(want, len(s.ready)+1) // make one at a time until one succeeds
	}
	for len(s.ready)+s.making < want && s.room() {
		s.making++
		s.total.Add(1)
		n++
	}
	return n
}

// add makes one preconnected connection.
func (s *preconnectedPool) add(ctx context.Context) {
	u := s.upstream
	var conn *Conn
	var err *outcome.Error
	if panicked := u.guard.Catch(PartPreconnect, func() { conn, err = u.attempt(ctx, &plan{upstream: u}, 1, noProgress) }); panicked != nil {
		err = &outcome.Error{Reason: outcome.Internal, Err: panicked}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	s.making--
	if err != nil {
		s.total.Add(-1)
		if s.failedOnce(time.Now()); err.Reason == outcome.Limit {
			s.failed = 0 // the sessions that hold the places may end at any time
		}
		return
	}
	age := cmp.Or(u.cfg.Preconnect.MaxAge, DefaultPreconnectAge)
	now := time.Now()
	one := &preconnected{conn: conn, made: now, until: now.Add(policy.Backoff{Base: age}.Pause(0, rand.Float64()*2/5)), gone: make(chan struct{})}
	conn.candidate.at.preconnected.Add(1)
	s.ready = append(s.ready, one)
	go s.watch(one) // ends when the preconnected connection is taken or closed
}

// watch reads from a preconnected connection until the preconnected connection ends or
// a session takes it.
func (s *preconnectedPool) watch(one *preconnected) {
	defer s.notify()
	defer close(one.gone)
	if err := s.upstream.guard.Catch(PartPreconnect, one.read); err != nil {
		one.err = err
	}
	if starttls.IsMySQLGreeting(one.early) {
		s.mu.Lock()
		s.mysql = true
		s.mu.Unlock()
	}
}

// read reads until the preconnected connection ends, a session takes it, or the server
// has sent too much.
func (one *preconnected) read() {
	buf := make([]byte, 2048)
	for one.err == nil && len(one.early) < preconnectedEarlyMax {
		var n int
		n, one.err = one.conn.Read(buf)
		if one.early = append(one.early, buf[:n]...); n > 0 {
			one.conn.Succeeded()
		}
	}
}

// take returns a preconnected connection for a session, or nil. Bytes that the server
// has already sent are the first that the session reads from it.
func (s *preconnectedPool) take() *Conn {
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

func (s *preconnectedPool) pop() *preconnected {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) == 0 {
		return nil
	}
	defer s.notify()
	one := s.ready[0]
	s.ready = s.ready[1:]
	s.total.Add(-1)
	one.conn.candidate.at.preconnected.Add(-1)
	return one
}

func (s *preconnectedPool) tell(r PreconnectResult) {
	if f := s.upstream.observer.Preconnect; f != nil {
		f(s.upstream.cfg.Name, r)
	}
}

// count returns the number of preconnected connections, with those that are being made.
func (s *preconnectedPool) count() int { return int(s.total.Load()) }

// sweep drops preconnected connections that sessions may not use any more. It settles
// preconnected connections that are old enough to count as a success.
func (s *preconnectedPool) sweep(now time.Time) {
	for _, one := range s.outdated(now, s.upstream.bestPriority(now)) {
		one.drop()
	}
}

// outdated removes and returns the preconnected connections that sessions may not use any more.
func (s *preconnectedPool) outdated(now time.Time, best int) (dropped []*preconnected) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, young := s.ready[:0:0], false
	for _, one := range s.ready {
		if one.ended() || !s.current(one, now, best) {
			one.conn.candidate.at.preconnected.Add(-1)
			s.total.Add(-1)
			dropped = append(dropped, one)
			young = young || one.ended() && now.Sub(one.made) < relay.SettleAfter
			continue
		}
		kept = append(kept, one)
		if now.Sub(one.made) >= relay.SettleAfter {
			one.conn.Succeeded() // with mu held: no session has taken it
			s.failed, s.after = 0, time.Time{}
		}
	}
	s.unused += len(dropped)
	if s.ready = kept; young {
		s.failedOnce(now) // the next would end as soon
	}
	return dropped
}

// succeeded records that a session could use a preconnected connection: the next is
// made without a pause.
func (s *preconnectedPool) succeeded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed, s.after = 0, time.Time{}
}

// failedOnce delays the next preconnected connection, for longer each time. The caller holds mu.
func (s *preconnectedPool) failedOnce(now time.Time) {
	pause := policy.Backoff{Base: 200 * time.Millisecond, Max: 5 * time.Second}
	s.after = now.Add(pause.Pause(s.failed, rand.Float64()))
	s.failed++
}

// current reports whether a session may use the preconnected connection. The
// preconnected connection must be young, a session could choose its address, and our
// identity has not changed since.
func (s *preconnectedPool) current(one *preconnected, now time.Time, best int) bool {
	c := one.conn
	m, ok := s.upstream.member(c.candidate.at)
	return ok && now.Before(one.until) && !m.down.Load() && m.breaker.State() != policy.Open && m.priority <= best && c.configIsCurrent()
}

// close drops all preconnected connections, for good.
func (s *preconnectedPool) close() {
	for one := s.pop(); one != nil; one = s.pop() {
		one.drop()
	}
}

// ended reports whether the server has ended the preconnected connection, or sent too much.
func (one *preconnected) ended() bool {
	select {
	case <-one.gone:
		return true
	default:
		return false
	}
}

// claim stops the preconnected connection's watch. It returns false if the connection has ended.
func (one *preconnected) claim() bool {
	one.conn.SetDeadline(time.Unix(1, 0)) // for writes too: a read may have to answer a KeyUpdate
	<-one.gone
	one.conn.SetDeadline(time.Time{})
	if one.err == nil || !netconn.IsTimeout(one.err) {
		return false
	}
	one.conn.early = one.early
	return one.conn.silent()
}

// silent reports whether the connection is still open: the server has sent nothing
// since watch ended, or only data. If bytes have arrived, silent reads them for at most
// peekTimeout.
func (c *Conn) silent() bool {
	data, ended := netconn.Peek(c.raw)
	if !data {
		return !ended
	}
	c.raw.SetReadDeadline(time.Now().Add(peekTimeout))
	defer c.raw.SetReadDeadline(time.Time{})
	buf := make([]byte, 2048)
	n, err := c.stream().Read(buf)
	c.early = append(c.early, buf[:n]...)
	return err == nil || netconn.IsTimeout(err)
}

// peekTimeout bounds a read of bytes that have already arrived: TLS needs whole records.
const peekTimeout = 5 * time.Millisecond

// drop closes a preconnected connection that no session takes. If the server ended it
// before the attempt was settled, that is the same failure as for a session.
func (one *preconnected) drop() {
	defer one.conn.closePolitely()
	if !one.ended() {
		one.conn.Settle("", nil)
		return
	}
	if one.err != nil && !netconn.IsTimeout(one.err) {
		e := one.conn.Failure(outcome.StageTLS, ending.EarlyReason(one.err), one.err)
		one.conn.Settle(e.Reason, e)
	}
	one.conn.Settle("", nil)
}

// again prepares the connection for a session. If the attempt that made it is settled,
// the session's outcome needs another ticket. It returns false if the breaker does not
// permit that.
func (c *Conn) again() bool {
	if !c.settled.Load() {
		return true
	}
	now := time.Now()
	ticket, change, ok := c.candidate.at.breaker.Permit(now)
	if ok {
		c.candidate.at.logChange(change, "the next trial was due")
		c.candidate.ticket, c.candidate.began = ticket, c.upstream.age(now)
		c.settled.Store(false)
	}
	return ok
}

// configIsCurrent reports whether a connection made now would have the same identity:
// the TLS configuration stays the same as long as the identity does.
func (c *Conn) configIsCurrent() bool {
	if c.tls == nil {
		return true
	}
	now, err := c.upstream.cfg.TLS(c.candidate.endpoint.host, c.candidate.String())
	return err == nil && now == c.config
}

// bestPriority returns the lowest priority that has a usable address.
func (u *Upstream) bestPriority(now time.Time) int {
	best, found := 0, false
	for _, m := range u.members() {
		if (!found || m.priority < best) && m.usable(now) {
			best, found = m.priority, true
		}
	}
	return best
}

// member returns the published member of the address; false if it is gone.
func (u *Upstream) member(a *Address) (member, bool) {
	for _, m := range u.members() {
		if m.Address == a {
			return m, true
		}
	}
	return member{}, false
}
