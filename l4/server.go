package l4

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/carry"
	"ambassador/l4/descriptors"
	"ambassador/l4/limits"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/task"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// Options configures a Server for its whole life.
type Options struct {
	// Log receives state changes; the records of sessions go to Observer.Ended. If nil,
	// nothing is logged.
	Log      *slog.Logger
	Observer Observer
	// Inherited are the sockets passed by systemd, by name. The server does not close
	// them.
	Inherited map[string][]*os.File
	// Carried is the state of the program before this one in the same process: the first
	// Apply takes its sockets and sessions over. If nil, there is none. Adopting is called
	// by that Apply once it can no longer fail, and before it changes anything.
	Carried  *carry.Server
	Adopting func()
	// Guarded returns further addresses that no client may be connected to, besides
	// those of the listeners: the addresses of the admin API. If nil, there are none.
	Guarded func() []netip.AddrPort
	// Dial replaces the dialling of real sockets in tests. If nil, real sockets are
	// dialled.
	Dial netconn.DialFunc
}

// Server accepts connections, makes a session of each, and keeps track of all sessions.
type Server struct {
	// Static after construction.
	opts    Options
	deps    upstream.Deps
	log     *slog.Logger
	ctx     context.Context // parent of all work; cancelled when Shutdown ends
	cancel  context.CancelFunc
	engine  *relay.Engine
	prefix  string // of session IDs
	tasks   task.Pool
	turns   *limits.Turns // of TLS handshakes with clients
	inbound clientTLS     // has locks of its own
	lookups *limits.Turns // bounds lookups of names that clients ask for
	memory  memory
	recent  outcome.Recent
	seq     atomic.Uint64 // of the last session
	ending  atomic.Int64  // sessions that have left sessions, and whose record is not counted yet
	tracing atomic.Pointer[Tracing]
	loops   sync.WaitGroup // accept loops and upstreams

	applying sync.Mutex // held by Apply, by Freeze until thaw, and while listeners are being closed
	carried  *carried   // guarded by applying; nil: there is nothing to take over

	takenOver Carriable // static after the first Apply

	mu        sync.Mutex
	cfg       Config                  // guarded by mu
	listeners []*listener             // guarded by mu; all sockets, in the configuration's order
	upstreams []*upstream.Upstream    // guarded by mu; in the configuration's order
	sessions  map[uint64]*session     // guarded by mu
	traffic   map[trafficKey]*traffic // guarded by mu
	limit     int                     // guarded by mu
	slots     int                     // guarded by mu; number of sessions that count for limit
	draining  bool                    // guarded by mu
	stopAt    time.Time               // guarded by mu; when a drain stops accepting; zero: no drain has begun
	quiet     chan struct{}           // guarded by mu; closed and set to nil when the last session ends
}

type trafficKey struct{ listener, upstream string }

// traffic counts the active sessions and what ended ones have moved. Guarded by
// Server.mu.
type traffic struct {
	active   int
	up, down int64
}

// New makes a server that does nothing until Apply. When ctx is cancelled, the server
// ends at once: sessions are reset with outcome.Shutdown.
func New(ctx context.Context, o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	engine := relay.New()
	deps := upstream.Deps{Log: o.Log, Observer: o.Observer.Upstream, Guard: task.Guard{Log: o.Log, Count: o.Observer.Panicked}, Dials: &netconn.OwnDials{}, Pacing: task.NewPacing()}
	if given := o.Dial; given == nil {
		deps.Dial = netconn.Dialer(engine, 0)
		deps.Marked = func(mark int) netconn.DialFunc { return netconn.Dialer(engine, mark) }
	} else {
		deps.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			task.Leave(ctx)
			return given(ctx, network, address)
		}
	}
	s := &Server{opts: o, deps: deps, log: o.Log, engine: engine, turns: limits.NewTurns(runtime.GOMAXPROCS(0)), lookups: limits.NewTurns(descriptors.Lookups(descriptors.Limit())), prefix: rand.Text()[:4] + "-",
		sessions: map[uint64]*session{}, traffic: map[trafficKey]*traffic{}}
	if o.Carried != nil {
		s.carried = &carried{Server: o.Carried, begin: o.Adopting}
	}
	s.deps.Kill, s.deps.HasRoom = s.killSessionsOf, s.hasRoom
	s.memory.waiting, s.memory.Over, engine.Budget = map[*session]bool{}, s.relieve, &s.memory.Budget
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, s.end)
	return s
}

// end closes the listeners and ends all sessions at once.
func (s *Server) end() {
	s.closeListeners()
	s.tasks.Close()
	s.cancel()
	s.stopAll(errShutdown) // last, because no session is parked from here on
}

// Apply makes cfg the server's configuration. New sockets are bound before old ones
// close; unchanged sockets are kept; routed sessions are not touched. A session that is
// not routed before Apply returns is judged by cfg: see renewRoute. On an error nothing
// has changed.
func (s *Server) Apply(cfg Config) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.isDraining() {
		return fmt.Errorf("draining: no new configuration is taken")
	}
	upstreams, fresh, err := s.makeUpstreams(cfg)
	if err != nil {
		return err
	}
	sockets, bound, err := s.bind(&cfg)
	if err != nil {
		return err
	}
	s.warnOfDescriptors(&cfg)
	listeners := slices.Concat(sockets...)
	old := s.publish(cfg, sockets, upstreams)
	parked := s.takeOver()
	for _, u := range fresh {
		s.loops.Go(u.Start(s.ctx))
	}
	for _, sess := range parked {
		sess.begin()
	}
	for _, l := range bound {
		s.loops.Go(l.acceptLoop)
	}
	for _, l := range old.listeners {
		if !slices.Contains(listeners, l) {
			l.removed.Store(true)
			l.close()
		}
	}
	for _, u := range old.upstreams {
		if !slices.Contains(upstreams, u) {
			u.Retire()
		}
	}
	return nil
}

// makeUpstreams keeps the unchanged upstreams and makes the others.
func (s *Server) makeUpstreams(cfg Config) (all, fresh []*upstream.Upstream, err error) {
	for _, c := range cfg.Upstreams {
		i := slices.IndexFunc(s.upstreams, func(u *upstream.Upstream) bool { return u.Config().Name == c.Name && u.Config().Key == c.Key })
		if i >= 0 {
			all = append(all, s.upstreams[i])
			continue
		}
		u, err := upstream.New(c, s.deps)
		if err != nil {
			return nil, nil, err
		}
		u.Inherit(s.upstreams)
		if m := s.carried.left().Upstream(c.Name); m != nil {
			u.Recall(m)
		}
		all, fresh = append(all, u), append(fresh, u)
	}
	return all, fresh, nil
}

type generation struct {
	listeners []*listener
	upstreams []*upstream.Upstream
}

// publish makes cfg the configuration of new sessions.
func (s *Server) publish(cfg Config, sockets [][]*listener, upstreams []*upstream.Upstream) (old generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old = generation{s.listeners, s.upstreams}
	s.cfg, s.listeners, s.upstreams = cfg, slices.Concat(sockets...), upstreams
	s.memory.SetLimit(cmp.Or(cfg.MaxMemory, DefaultMemory))
	s.limit = cfg.maxSessions(descriptors.Limit())
	s.tracing.Store(&cfg.Tracing)
	redirected := func(c ListenerConfig) bool { return c.Request == RequestOriginal }
	s.deps.Dials.Wanted.Store(slices.ContainsFunc(cfg.Listeners, redirected))
	used := map[*limits.Limiter]bool{}
	for i, c := range cfg.Listeners {
		limiter := limiterOf(sockets[i], used)
		for _, l := range sockets[i] {
			l.limiter = limiter
			l.route.Store(s.newRoute(c, l, upstreams))
		}
	}
	return old
}

// limiterOf returns the limiter of a listener: that of a socket which it keeps, unless
// another listener uses it, or a new one.
func limiterOf(sockets []*listener, used map[*limits.Limiter]bool) *limits.Limiter {
	for _, l := range sockets {
		if l.limiter != nil && !used[l.limiter] {
			used[l.limiter] = true
			return l.limiter
		}
	}
	return &limits.Limiter{}
}

// newRoute makes the route of a socket of the listener c. mu is held.
func (s *Server) newRoute(c ListenerConfig, l *listener, upstreams []*upstream.Upstream) *route {
	asked, _ := askedIn(c) // bind has checked the error
	r := &route{cfg: c, listener: l, choices: map[string]choice{}, limiter: l.limiter, asked: asked, parked: limits.Deadlines[*session]{By: (*session).handshakeDeadline, Expired: expired}, resolver: upstream.NewResolver(c.DNSServers, s.guard())}
	r.established = &route{limiter: r.limiter}
	for _, name := range c.upstreams() {
		u := upstreams[slices.IndexFunc(upstreams, func(u *upstream.Upstream) bool { return u.Config().Name == name })]
		r.choices[name] = choice{u, s.trafficOf(c.Name, name)}
	}
	r.traffic, r.rules = s.trafficOf(c.Name, c.Upstream), c.Rules
	if u := r.choices[c.Upstream].upstream; u != nil && u.Config().Dynamic {
		r.rules = policy.NewRules([]policy.Rule{{Upstream: c.Upstream}}) // special addresses stay closed unless a rule opens them
	}
	return r
}

// trafficOf returns the counters of a listener and an upstream. mu is held.
func (s *Server) trafficOf(listener, to string) *traffic {
	key := trafficKey{listener, to}
	if s.traffic[key] == nil {
		s.traffic[key] = &traffic{}
	}
	return s.traffic[key]
}

// countAt moves the session to another traffic counter.
func (s *Server) countAt(sess *session, t *traffic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess.traffic.active--
	sess.traffic = t
	t.active++
}

// begin makes a session of an accepted connection and starts it. It does not wait.
func (s *Server) begin(l *listener, conn net.Conn) {
	route := l.route.Load()
	sess := &session{server: s, route: route, seq: s.seq.Add(1), downstream: &downstream{conn: conn}, traffic: route.traffic}
	sess.rec = outcome.NewAccount(outcome.Record{Start: time.Now(), Listener: route.cfg.Name, Client: clientName(conn, l), Stage: outcome.StageAccept})
	s.mu.Lock()
	s.sessions[sess.seq] = sess
	route.traffic.active++
	s.mu.Unlock()
	if f := s.opts.Observer.Opened; f != nil {
		f(route.cfg.Name)
	}
	sess.start()
}

// clientName is the client's address. On unix sockets clients have no address, and it
// is the listener's path.
func clientName(conn net.Conn, l *listener) string {
	switch c := conn.(type) {
	case interface{ RemoteAddrPort() netip.AddrPort }:
		// The string lives as long as the session. If it took only 16 bytes, it would
		// share a page with what greetings leave, and would keep that page in use.
		var text strings.Builder
		var room [48]byte
		text.Grow(32)
		text.Write(c.RemoteAddrPort().AppendTo(room[:0]))
		return text.String()
	case *net.TCPConn:
		return c.RemoteAddr().String()
	}
	return l.addr
}

// forget takes a session's final record and frees its slot. Only the first call for a
// session has an effect.
func (s *Server) forget(sess *session, rec *outcome.Record) {
	s.mu.Lock()
	if s.sessions[sess.seq] == nil {
		s.mu.Unlock()
		return
	}
	s.ending.Add(1)
	defer s.ending.Add(-1)
	delete(s.sessions, sess.seq)
	if sess.slot {
		s.slots--
	}
	t := sess.traffic
	t.active--
	t.up += rec.BytesUp
	t.down += rec.BytesDown
	if len(s.sessions) == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
	s.mu.Unlock()
	s.recent.Add(rec)
	if f := s.opts.Observer.Ended; f != nil {
		f(rec)
	}
}

func (s *Server) active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// hasRoom reports whether the process has room for one more preconnected connection.
func (s *Server) hasRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.slots
	for _, u := range s.upstreams {
		n += u.Preconnected()
	}
	return n < s.limit
}

// takeSlot counts the session for the limit, if there is room. A session that is being
// refused takes no slot, so that it does not keep another session out. forget gives the
// slot back.
func (s *Server) takeSlot(sess *session) (limit int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots >= s.limit {
		return s.limit, false
	}
	s.slots++
	sess.slot = true
	return s.limit, true
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// live returns the live sessions, the oldest first.
func (s *Server) live() []*session {
	s.mu.Lock()
	out := make([]*session, 0, len(s.sessions))
	for _, sess := range s.sessions {
		out = append(out, sess)
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b *session) int { return int(a.seq) - int(b.seq) })
	return out
}

func (s *Server) stopAll(cause error) {
	for _, sess := range s.live() {
		sess.stop(cause)
	}
}

// closeListeners stops accepting permanently.
func (s *Server) closeListeners() {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	listeners := s.listeners
	s.listeners, s.draining = nil, true
	s.mu.Unlock()
	for _, l := range listeners {
		l.close()
	}
}
