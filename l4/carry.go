package l4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/l4/carry"
	"ambassador/l4/ending"
	"ambassador/l4/limits"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/peer"
	"ambassador/l4/relay"
	"ambassador/l4/task"
	"ambassador/l4/unixsocket"
	"ambassador/l4/upstream"
)

// errUpgrade ends a session that the next program cannot continue.
var errUpgrade = &ending.Stop{Reason: outcome.Shutdown, Text: "the program was replaced, and the next one could not carry the session over"}

const (
	// establishWait is how long Freeze waits for sessions that are being established. No
	// connection is accepted meanwhile.
	establishWait = 2 * time.Second
	// restWait bounds each of the other waits of Freeze, which should take milliseconds.
	restWait = 2 * time.Second
	// restTick is how often Freeze checks.
	restTick = time.Millisecond
)

// Carriable says what Freeze would find now.
type Carriable struct {
	Carried      int `json:"carried"`      // sessions that another program can continue
	Ended        int `json:"ended"`        // relayed sessions that it cannot
	Establishing int `json:"establishing"` // sessions that are waited for, up to two seconds
}

// CanCarry reports whether the relay can carry sessions over at all.
func (s *Server) CanCarry() bool { return s.engine.Carries() }

// Carriable counts the sessions that an upgrade would carry over.
func (s *Server) Carriable() (n Carriable) {
	for _, sess := range s.live() {
		switch flow := sess.relayed(); {
		case flow == nil && sess.canFreeze():
			n.Carried++
		case flow == nil:
			n.Establishing++
		case s.engine.CanCarry(flow):
			n.Carried++
		default:
			n.Ended++
		}
	}
	return n
}

// DrainUncarriable waits until every relayed session can be carried, at most for
// timeout. Those that cannot are ended when they are idle, as by a drain.
func (s *Server) DrainUncarriable(ctx context.Context, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for s.Carriable().Ended > 0 && ctx.Err() == nil {
		for _, sess := range s.live() {
			if flow := sess.relayed(); flow != nil && !s.engine.CanCarry(flow) {
				sess.finishIfIdle(true)
			}
		}
		task.Wait(ctx, drainTick, nil)
	}
}

// Freeze stops the server where it is, and returns its state for another program that
// replaces this one in the same process: no connection is accepted, and no byte moves,
// until thaw. If the process ends meanwhile, or the next program does not know a
// session, both sides of the session get a RST. Sessions that are not established within
// two seconds have ended then, as well as those of the portable relay.
func (s *Server) Freeze(ctx context.Context) (state *carry.Server, thaw func(), err error) {
	s.applying.Lock()
	if s.isDraining() {
		s.applying.Unlock()
		return nil, nil, errors.New("the process is draining: no session would begin after an upgrade either; let it end, and start it again")
	}
	f := &freezer{server: s, state: &carry.Server{}, frozen: map[*session]bool{}}
	s.mu.Lock()
	f.listeners = s.listeners
	s.mu.Unlock()
	quiet := true
	for _, l := range f.listeners {
		quiet = l.Pause() && quiet
	}
	if !quiet {
		f.thaw()
		return nil, nil, f.failed("a connection was accepted, and its session did not begin in time, because of the load; another attempt may succeed")
	}
	f.await(ctx, establishWait, f.established)
	f.stopLeft()
	f.await(ctx, restWait, f.established) // until those are gone, the others do not stand still
	if !f.await(ctx, restWait, f.rest) {
		f.thaw()
		return nil, nil, f.failed("the sessions did not come to rest in time, because of the load; another attempt may succeed")
	}
	if err := f.describe(); err != nil {
		f.thaw()
		return nil, nil, err
	}
	return f.state, f.thaw, nil
}

// freezer is the progress of Freeze.
type freezer struct {
	server    *Server
	state     *carry.Server
	listeners []*listener
	frozen    map[*session]bool
}

// failed is the error of a Freeze that is undone. Sessions that stopLeft ended are gone.
func (f *freezer) failed(why string) error {
	if f.state.Stopped > 0 {
		return fmt.Errorf("%s; %d sessions that were not connected yet, or that the relay could not stop, have ended", why, f.state.Stopped)
	}
	return errors.New(why)
}

// await waits until done, at most for that long. It returns false if the time is over.
func (f *freezer) await(ctx context.Context, most time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for !done() {
		if ctx.Err() != nil {
			return false
		}
		task.Wait(ctx, restTick, nil)
	}
	return true
}

// established freezes the parked sessions, and reports whether the relay has all others.
func (f *freezer) established() bool {
	all := true
	for _, sess := range f.server.live() {
		all = (f.frozen[sess] || sess.relayed() != nil || f.freezeParked(sess)) && all
	}
	return all
}

// freezeParked freezes a session that waits for its client's first byte, and adds it to
// the state.
func (f *freezer) freezeParked(sess *session) bool {
	fd, ok := sess.freeze()
	if !ok {
		return false
	}
	f.frozen[sess] = true
	f.state.Parked = append(f.state.Parked, carry.Parked{Seq: sess.seq, Record: sess.rec.Copy(), Listener: sess.route.listener.key, Remote: netconn.Unmapped(sess.downstream.conn.RemoteAddr()), FD: fd})
	return true
}

// stopLeft ends the sessions that are not established, and those that cannot be frozen.
func (f *freezer) stopLeft() {
	for _, sess := range f.server.live() {
		flow := sess.relayed()
		if !f.frozen[sess] && (flow == nil || !relay.CanFreeze(flow)) {
			f.state.Stopped++
			sess.stop(errUpgrade)
		}
	}
}

// rest freezes the sessions that are not frozen yet, and reports whether all are.
func (f *freezer) rest() bool {
	all := true
	for _, sess := range f.server.live() {
		all = (f.frozen[sess] || f.freeze(sess)) && all
	}
	return all && f.server.ending.Load() == 0 // else a record is not counted yet
}

// freeze freezes a session and adds it to the state. It returns false if that is not
// possible now: the session is ending.
func (f *freezer) freeze(sess *session) bool {
	flow := sess.relayed()
	if flow == nil {
		return false
	}
	state, found := f.server.engine.Freeze(flow)
	if found != relay.FrozenWhole && found != relay.FrozenLost {
		return false
	}
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if sess.stopped != nil || sess.accounted {
		f.server.engine.Thaw(flow)
		return false
	}
	f.frozen[sess] = true
	if found == relay.FrozenLost {
		f.state.Ended = append(f.state.Ended, sess.recordOfUpgrade())
		return true
	}
	f.state.Sessions = append(f.state.Sessions, carry.Session{Seq: sess.seq, Record: sess.rec.Copy(), Trace: carry.TraceOf(sess.rec.Trace()), Source: sess.countedAs, Conn: sess.conn.Carried(), Flow: state})
	return true
}

// recordOfUpgrade is the record of a session that ends with this program. mu is held.
func (s *session) recordOfUpgrade() outcome.Record {
	r := s.rec.Copy()
	r.ID, r.Reason, r.Cause = s.id(), errUpgrade.Reason, errUpgrade.Text
	r.Duration = outcome.Seconds(time.Since(r.Start))
	r.BytesUp, r.BytesDown = s.moved()
	return r
}

// describe adds everything but the sessions to the state.
func (f *freezer) describe() error {
	s := f.server
	for sess := range f.frozen {
		if sess.isStopped() { // a parked one: a stop waits for the lock of a relayed one
			return errors.New("a session was stopped meanwhile; another attempt may succeed")
		}
	}
	f.state.Prefix, f.state.Seq, f.state.Recent = s.prefix, s.seq.Load(), s.recent.List(1<<30)
	for _, l := range f.listeners {
		if err := f.describeListener(l); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, t := range s.traffic {
		f.state.Traffic = append(f.state.Traffic, carry.Traffic{Listener: key.listener, Upstream: key.upstream, Up: t.up, Down: t.down})
	}
	now := time.Now()
	for _, u := range s.upstreams {
		f.state.Upstreams = append(f.state.Upstreams, u.Memory(now))
	}
	return nil
}

// describeListener adds a socket. Those that systemd passed belong to the process.
func (f *freezer) describeListener(l *listener) error {
	if strings.HasPrefix(l.key, "systemd:") {
		return nil
	}
	out := carry.Listener{Key: l.key, Addr: l.addr}
	if l.socket != nil {
		out.File = l.socket.File()
	}
	f.state.Listeners = append(f.state.Listeners, out)
	at := &f.state.Listeners[len(f.state.Listeners)-1]
	return l.Control(func(fd uintptr) { at.FD = int(fd) })
}

// thaw undoes Freeze.
func (f *freezer) thaw() {
	for sess := range f.frozen {
		if flow := sess.relayed(); flow != nil {
			f.server.engine.Thaw(flow)
		} else {
			sess.thaw()
		}
	}
	for i := range f.state.Sessions {
		for k := range f.state.Sessions[i].Flow.Sides {
			clear(f.state.Sessions[i].Flow.Sides[k].TLS)
		}
	}
	for _, l := range f.listeners {
		l.Resume()
	}
	f.server.applying.Unlock()
}

// carried is the state of another program that the server continues: see
// Options.Carried.
type carried struct {
	*carry.Server
	begin func()      // Options.Adopting
	done  atomic.Bool // begin was called: nothing is left to take over
}

// left is what is not taken over yet; nil: nothing is.
func (c *carried) left() *carry.Server {
	if c == nil || c.done.Load() {
		return nil
	}
	return c.Server
}

// adopt makes the socket of another program the listener's. It reports whether it could:
// the file of a unix socket may be gone. The program's own descriptor stays open.
func (l *listener) adopt(c *carry.Listener, cfg *ListenerConfig) bool {
	ln, err := netconn.ListenerOf(c.FD)
	if err != nil {
		l.server.log.Warn("a listening socket cannot be carried over; it is bound anew", "address", c.Addr, "cause", err.Error())
		return false
	}
	if u, ok := ln.(*net.UnixListener); ok {
		if l.socket, err = unixsocket.Adopt(u, strings.TrimPrefix(c.Addr, "unix:"), c.File, cfg.Socket); err != nil {
			say := l.server.log.Warn
			if errors.Is(err, fs.ErrNotExist) { // in a restart systemd removes the runtime directory
				say = l.server.log.Info
			}
			say("a listening socket cannot be carried over; it is bound anew", "address", c.Addr, "cause", err.Error())
			return false
		}
		ln = l.socket.UnixListener
	}
	if l.take(ln) != nil {
		return false
	}
	l.addr = c.Addr
	return true
}

// takeOver continues the sessions and counters of another program. Apply calls it when
// it can no longer fail, and starts the parked sessions in the result.
func (s *Server) takeOver() []*session {
	c := s.carried
	if c == nil || c.done.Swap(true) {
		return nil
	}
	if c.begin != nil {
		c.begin()
	}
	s.prefix = c.Prefix
	s.seq.Store(c.Seq)
	for i := range c.Recent {
		s.recent.Add(&c.Recent[len(c.Recent)-1-i])
	}
	s.mu.Lock()
	for _, t := range c.Traffic {
		to := s.trafficOf(t.Listener, t.Upstream)
		to.up, to.down = to.up+t.Up, to.down+t.Down
	}
	for _, l := range s.listeners {
		if l.socket != nil {
			l.socket.Own()
		}
	}
	s.mu.Unlock()
	for i := range c.Ended {
		s.countEnded(&c.Ended[i])
	}
	a := adoption{server: s, routes: s.establishedRoutes(), gone: map[string]*upstream.Upstream{}}
	for i := range c.Sessions {
		a.adopt(&c.Sessions[i])
	}
	for i := range c.Parked {
		a.adoptParked(&c.Parked[i])
	}
	for _, l := range c.Listeners {
		syscall.Close(l.FD) // those in use were duplicated
	}
	s.carried = nil
	s.takenOver = Carriable{Carried: len(c.Sessions) + len(c.Parked) - a.lost, Ended: len(c.Ended) + c.Stopped + a.lost}
	return a.parked
}

// TakenOver returns how many sessions of the program before this one go on, and how many
// ended with it.
func (s *Server) TakenOver() Carriable { return s.takenOver }

// countEnded counts a session that could not be carried.
func (s *Server) countEnded(r *outcome.Record) {
	s.mu.Lock()
	t := s.trafficOf(r.Listener, r.Upstream)
	t.up, t.down = t.up+r.BytesUp, t.down+r.BytesDown
	s.mu.Unlock()
	s.opts.Observer.adopted()
	s.recent.Add(r)
	if f := s.opts.Observer.Ended; f != nil {
		f(r)
	}
}

// establishedRoutes returns what relayed sessions of each listener need.
func (s *Server) establishedRoutes() map[string]*route {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*route{}
	for _, l := range s.listeners {
		r := l.route.Load()
		out[r.cfg.Name] = r.established
	}
	return out
}

// adoption takes sessions of another program over.
type adoption struct {
	server *Server
	routes map[string]*route             // by the name of the listener
	gone   map[string]*upstream.Upstream // upstreams that the configuration does not have
	parked []*session                    // to be started
	lost   int                           // sessions that could not go on
}

// adopt continues a session.
func (a *adoption) adopt(c *carry.Session) {
	s, r := a.server, &c.Record
	c.Trace.Restore(r.Trace)
	sess := &session{server: s, seq: c.Seq, rec: outcome.NewAccount(*r), slot: true, countedAs: c.Source, route: a.routes[r.Listener]}
	if sess.route == nil {
		sess.route = &route{limiter: &limits.Limiter{}}
	}
	if c.Source != nil {
		sess.route.limiter.Adopt(*c.Source)
	}
	s.mu.Lock()
	s.sessions[sess.seq] = sess
	sess.traffic = s.trafficOf(r.Listener, r.Upstream)
	sess.traffic.active++
	s.slots++
	s.mu.Unlock()
	s.opts.Observer.adopted()
	u, err := a.upstream(r)
	if err == nil {
		err = sess.proceed(c, u)
	}
	if err != nil {
		s.log.Error("a session was lost in the upgrade", "id", sess.id(), "cause", err.Error())
		a.lost++
		sess.lose(&c.Flow, err)
	}
}

// adoptParked makes a parked session anew. Its client has the time that was left.
func (a *adoption) adoptParked(c *carry.Parked) {
	s := a.server
	sess := &session{server: s, seq: c.Seq, rec: outcome.NewAccount(c.Record), downstream: &downstream{conn: s.engine.AdoptSocket(c.FD, c.Remote, &netconn.KeepAlive)}, route: &route{limiter: &limits.Limiter{}}}
	s.mu.Lock()
	sess.traffic = s.trafficOf(c.Record.Listener, c.Record.Upstream)
	i := slices.IndexFunc(s.listeners, func(l *listener) bool { return l.key == c.Listener })
	if i >= 0 {
		sess.route = s.listeners[i].route.Load()
		sess.traffic = sess.route.traffic
	}
	sess.traffic.active++
	s.sessions[sess.seq] = sess
	s.mu.Unlock()
	s.opts.Observer.adopted()
	if i >= 0 && c.FD >= 0 { // else its descriptor has not arrived
		s.mu.Lock()
		sess.slot, s.slots = true, s.slots+1 // it was admitted before, whatever the limits
		s.mu.Unlock()
		if sess.route.cfg.Limits != (limits.Limits{}) {
			client := peer.Source(sess.downstream.conn)
			sess.route.limiter.Adopt(client)
			sess.countedAs = &client
		}
		a.parked = append(a.parked, sess)
		return
	}
	a.lost++
	sess.close(&outcome.Error{Stage: outcome.StageGreet, Reason: outcome.Shutdown, Err: errUpgrade})
}

// upstream returns the upstream of a session. One that the configuration does not have
// any more is made again, for its name.
func (a *adoption) upstream(r *outcome.Record) (u *upstream.Upstream, err error) {
	a.server.mu.Lock()
	for _, known := range a.server.upstreams {
		if known.Config().Name == r.Upstream {
			u = known
		}
	}
	a.server.mu.Unlock()
	if u != nil || a.gone[r.Upstream] != nil {
		return cmp.Or(u, a.gone[r.Upstream]), nil
	}
	u, err = upstream.New(upstream.Config{Name: r.Upstream, Endpoints: []upstream.EndpointConfig{{Address: r.Address}}}, a.server.deps)
	a.gone[r.Upstream] = u
	return u, err
}

// proceed lets the relay continue the session.
func (s *session) proceed(c *carry.Session, u *upstream.Upstream) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upstream, s.conn = u, u.Adopt(c.Conn, c.Record.Endpoint, c.Record.Address)
	s.flow, err = s.server.engine.Adopt(&c.Flow, s)
	if err != nil {
		s.flow = nil
		s.conn.Settle("", nil)
		s.conn.Release()
	}
	s.rec.Pack()
	return err
}

// lose ends a session that could not go on. The relay has closed its connections.
func (s *session) lose(flow *relay.Carried, err error) {
	s.mu.Lock()
	rec := s.rec.Copy()
	s.mu.Unlock()
	rec.BytesUp, rec.BytesDown = rec.BytesUp+flow.Up, rec.BytesDown+flow.Down
	rec.ID, rec.Reason, rec.Cause = s.id(), outcome.Shutdown, errUpgrade.Text+": "+err.Error()
	rec.Duration = outcome.Seconds(time.Since(rec.Start))
	s.leave()
	s.server.forget(s, &rec)
}
