package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/nameserver"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/l4/tlscause"
	"ambassador/l4/tlsrecord"
	"ambassador/policy"
)

// Upstream is one named remote service: its addresses, how to connect to them, and
// the results of the last attempts.
type Upstream struct {
	// Static after construction.
	cfg              Config
	protocol         *starttls.Protocol // nil: none
	localHeader      string             // the PROXY header of connections without a client; empty: none is sent
	endpoints        []*endpoint
	destinationCache *destinationCache // destination cache of a dynamic upstream, which has no endpoints; else nil
	resolver         *nameserver.Resolver
	dial             netconn.DialFunc
	dials            *netconn.OwnDials
	pacing           *task.Pacing
	observer         Observer
	guard            task.Guard
	variants         tlscause.Variants // of cfg.TLS; has a lock of its own
	secrets          tlsrecord.KeyLog  // of its handshakes; has a lock of its own
	log              *slog.Logger
	balancer         policy.Balancer
	born             time.Time
	retire           context.CancelFunc // ends run when a reload drops the upstream
	kill             func(*Address)     // ends the sessions of an address; nil: nothing does
	preconnectedPool *preconnectedPool  // preconnected connections; nil: none are kept
	demand           chan struct{}      // asks reach for a trial; nil: reach waits for no demand

	judging    sync.Mutex                     // held while a prober judges
	publishing sync.Mutex                     // held while published is published
	probers    *probers                       // guarded by publishing; nil while run does not run
	lastLogged atomic.Pointer[outcome.Reason] // why it was not reached, as logged last
	published  atomic.Pointer[[]member]       // the addresses to choose from
	reached    atomic.Pointer[time.Time]      // when it was first reached; nil: not yet
}

// Deps are the dependencies that a server gives to an Upstream. The zero
// value is for tests.
type Deps struct {
	Log      *slog.Logger // nil: nothing is logged
	Observer Observer
	Guard    task.Guard
	Dial     netconn.DialFunc
	Marked   func(mark int) netconn.DialFunc // nil: dial is used, without a mark
	Dials    *netconn.OwnDials               // nil: connections are not recorded
	Pacing   *task.Pacing                    // nil: the upstream makes its own
	Kill     func(*Address)                  // ends the sessions of an address that is down; nil: nothing does
	HasRoom  func() bool                     // reports whether a preconnected connection may be made; nil: it may
}

// New makes an upstream that does nothing until Start or ConnectFor. The error names the
// upstream and what is wrong with cfg.
func New(cfg Config, o Deps) (*Upstream, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dial, err := o.dialFor(&cfg)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
	}
	u := &Upstream{cfg: cfg, observer: o.Observer, guard: o.Guard, log: o.Log, dial: dial, dials: o.Dials, kill: o.Kill, born: time.Now(),
		pacing: cmp.Or(o.Pacing, task.NewPacing()), resolver: NewResolver(cfg.DNSServers, o.Guard)}
	if cfg.ProxyProtocol != 0 {
		header, err := (*preface.Origin)(nil).Format(byte(cfg.ProxyProtocol))
		if err != nil {
			return nil, fmt.Errorf("upstream %s: proxy_protocol: %w", cfg.Name, err)
		}
		u.localHeader = string(header)
	}
	u.balancer.Method = cfg.Balance
	if cfg.Health.OnFailure {
		u.demand = make(chan struct{}, 1)
	}
	if cfg.StartTLS != "" {
		p, err := starttls.New(cfg.StartTLS, cfg.StartTLSOptions)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
		}
		if cfg.TLS == nil {
			return nil, fmt.Errorf("upstream %s: starttls %s: there is no TLS to start", cfg.Name, cfg.StartTLS)
		}
		if p.NeedsClient && cfg.Preconnect.Connections > 0 {
			return nil, fmt.Errorf("upstream %s: preconnect: with starttls %s no connection is ready before its client has spoken", cfg.Name, cfg.StartTLS)
		}
		u.protocol = p
	}
	if cfg.Health.LogIn != nil && (u.protocol == nil || !u.protocol.LogsIn) {
		return nil, fmt.Errorf("upstream %s: health: no login without a starttls protocol that has one", cfg.Name)
	}
	if cfg.ProxyProtocol != 0 && cfg.Preconnect.Connections > 0 {
		return nil, fmt.Errorf("upstream %s: a connection that is made before its client cannot say in a PROXY header whose it is; turn preconnect or proxy_protocol off", cfg.Name)
	}
	for _, ec := range cfg.Endpoints {
		e, err := u.newEndpoint(ec)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: endpoint %s: %w", cfg.Name, ec.Address, err)
		}
		u.endpoints = append(u.endpoints, e)
	}
	switch {
	case cfg.Dynamic && len(u.endpoints) > 0:
		return nil, fmt.Errorf("upstream %s: dynamic dials what clients ask for, so it has no endpoints", cfg.Name)
	case cfg.Dynamic && (cfg.Health.Interval > 0 || cfg.Preconnect.Connections > 0 || cfg.Required):
		return nil, fmt.Errorf("upstream %s: dynamic has nowhere to go before a client asks; turn health, preconnect and required off", cfg.Name)
	case cfg.Dynamic:
		u.destinationCache = &destinationCache{byName: map[string]*cached{}}
	case len(u.endpoints) == 0:
		return nil, fmt.Errorf("upstream %s: no endpoint", cfg.Name)
	}
	if cfg.Preconnect.Connections > 0 {
		u.preconnectedPool = newPreconnectedPool(u, o.HasRoom)
	}
	u.publish()
	return u, nil
}

// Config returns the configuration. The caller does not change it.
func (u *Upstream) Config() *Config { return &u.cfg }

// Protocol returns the STARTTLS protocol; nil if there is none.
func (u *Upstream) Protocol() *starttls.Protocol { return u.protocol }

// Start returns the function that keeps the upstream's addresses, health and
// preconnected connections up to date until ctx ends or Retire is called. The caller
// runs it in a goroutine of its own.
func (u *Upstream) Start(ctx context.Context) (run func()) {
	ctx, u.retire = context.WithCancel(ctx)
	return func() { u.run(ctx) }
}

// Retire ends what Start has begun, for an upstream that a reload has dropped. Its
// sessions go on.
func (u *Upstream) Retire() {
	u.retire()
	u.emptyCache()
}

// Preconnected returns the number of preconnected connections.
func (u *Upstream) Preconnected() int {
	if u.preconnectedPool == nil {
		return 0
	}
	return u.preconnectedPool.count()
}

// age returns how long the upstream has existed, in nanoseconds: a point in time in
// 8 bytes.
func (u *Upstream) age(now time.Time) int64 { return int64(now.Sub(u.born)) }

// run keeps addresses, health and preconnected connections up to date until ctx ends,
// and tries a required upstream until it is reached once. The server waits for run.
func (u *Upstream) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	if u.cfg.Health.Interval > 0 {
		defer u.ask(ctx)()
	}
	for _, e := range u.endpoints {
		if e.discovery != nil {
			work.Go(func() { u.keepFollowing(ctx, e) })
		} else if !e.literal {
			work.Go(func() { u.guard.Keep(ctx, PartResolver, func() { u.refresh(ctx, e) }) })
		}
	}
	if u.demand != nil || u.cfg.Required && u.cfg.Health.Interval == 0 {
		work.Go(func() { u.guard.Keep(ctx, PartUpstream, func() { u.reach(ctx) }) })
	}
	if u.preconnectedPool != nil {
		work.Go(func() { u.guard.Keep(ctx, PartPreconnect, func() { u.preconnectedPool.run(ctx) }) })
	}
	<-ctx.Done()
}

// progress is called at each stage of an attempt, for the session's record. Endpoint is
// empty before one is chosen.
type progress func(stage outcome.Stage, endpoint, address string, attempt int)

// tell calls f with the names of a candidate.
func (f progress) tell(stage outcome.Stage, c candidate, attempt int) {
	endpoint := ""
	if c.endpoint != nil {
		endpoint = c.endpoint.address
	}
	f(stage, endpoint, c.String(), attempt)
}

// Want is what a session needs from an upstream.
type Want struct {
	Session        string         // the session's ID, for Observer.Phase
	Header         string         // the PROXY header that names the client; empty: localHeader
	To             *target        // in a dynamic upstream; else nil
	Connect        ConnectConfig  // the upstream's, or lower bounds
	NoPreconnected bool           // do not use a preconnected connection
	Trace          *outcome.Trace // gets the phases; nil: nothing does
	// Exact means that the client itself has set Connect.Attempts: no more are made.
	Exact bool
}

// hopeless reports whether e is caused by the client's destination, so that another
// attempt would fail in the same way.
func (w *Want) hopeless(e *outcome.Error) bool {
	var dns *net.DNSError
	return e.Reason == outcome.SpecialAddress || e.Reason == outcome.Loop || w.To != nil && errors.As(e, &dns) && dns.IsNotFound
}

// ConnectFor makes a connection to the upstream that is ready for the client's bytes, as
// one session wants it. It makes at most Connect.Attempts attempts within
// Connect.Timeout, each to another address while there is one. It sends no byte of the
// client, so it can repeat an attempt safely. The caller owns the connection.
func (u *Upstream) ConnectFor(ctx context.Context, w Want, report progress) (*Conn, *outcome.Error) {
	ctx, cancel := task.WithTimeout(ctx, cmp.Or(w.Connect.Timeout, DefaultConnectTimeout))
	defer cancel()
	start, plan := time.Now(), plan{upstream: u, want: w}
	if w.Connect.Timeout != u.cfg.Connect.Timeout {
		plan.clientTimeout = ctx
	}
	if u.preconnectedPool != nil && !w.NoPreconnected && u.permit() == nil {
		task.Leave(ctx)
		if conn := u.preconnectedPool.take(); conn != nil {
			report.tell(outcome.StageTLS, conn.candidate, 1)
			u.timed(w.Session, PhaseTotal, start)
			return conn, nil
		}
	}
	var last *outcome.Error
	for made, most := 0, cmp.Or(w.Connect.Attempts, DefaultAttempts); made < most || plan.hasUntried(); {
		conn, err := u.attempt(ctx, &plan, made+1, report)
		switch {
		case err == nil:
			u.timed(w.Session, PhaseTotal, start)
			return conn, nil
		case last == nil || err.Stage != outcome.StagePermit:
			made, last = made+1, err
			if err.Stage == outcome.StagePermit || err.Ours() || w.hopeless(err) || ctx.Err() != nil {
				return nil, last
			}
			if err.Reason != outcome.DNS {
				continue
			}
			plan.rounds++
			if u.pauseBefore(ctx, plan.rounds) != nil {
				return nil, last
			}
		case !u.awaitTurn(ctx, &plan, last, err):
			return nil, last // err says only that nothing can be tried now
		}
	}
	return nil, last
}

// awaitTurn waits until a session that failed before with last may try again, where err
// says that nothing can be tried now. It waits for the pause before the next round, or for
// the trial of a breaker that opened meanwhile: not if the only address refused. A direct
// client would have its refusal by now, and new sessions are refused at once, too. It
// returns false if the session cannot try again.
func (u *Upstream) awaitTurn(ctx context.Context, plan *plan, last, err *outcome.Error) bool {
	switch {
	case errors.Is(err, ending.ErrTriedAll) && plan.again():
		return u.pauseBefore(ctx, plan.rounds) == nil
	case last.Reason == outcome.Refused && len(plan.known()) == 1:
		return false
	case err.Reason == outcome.NoEndpoint, err.Reason == outcome.BreakerOpen:
		return plan.awaitTrial(ctx)
	}
	return false
}

// pauseBefore waits for the pause before repetition n (1 is the first). If ctx ends
// first, it returns the error of ctx.
func (u *Upstream) pauseBefore(ctx context.Context, n int) error {
	backoff := policy.Backoff{Base: cmp.Or(u.cfg.Connect.Backoff, DefaultBackoff), Max: time.Second}
	return task.Wait(ctx, backoff.Pause(n-1, rand.Float64()), nil)
}

// attempt makes one connection to one address: permit → dial → proxy → starttls → tls.
// The bound is connect.attempt_timeout; starttls_options.timeout, if it is set, is the
// bound of proxy and starttls instead. If connect.attempt_timeout is not configured and
// no other address is left to try, only ctx bounds the attempt. A second attempt at a
// slow address would only lose the progress of the first. If TLS needs the client's
// first message, attempt ends before TLS, and the session begins TLS. A failure is
// settled here, a success when the connection settles.
func (u *Upstream) attempt(ctx context.Context, plan *plan, n int, report progress) (*Conn, *outcome.Error) {
	parent := ctx
	ctx, cancel := task.WithTimeout(ctx, u.attemptTimeout(false))
	defer func() { cancel() }()
	conn := &Conn{upstream: u, opening: &opening{session: plan.want.Session, header: plan.want.Header, to: plan.want.To}}
	defer conn.CloseOnPanic()
	fail := func(stage outcome.Stage, err error) (*Conn, *outcome.Error) {
		e := u.failed(ctx, stage, conn.candidate, err)
		if parent.Err() != context.Canceled { // else the session's end says why the phase ended
			plan.want.Trace.End(e.Reason, e.Err)
		}
		conn.settleUnless(parent.Err() == context.Canceled || plan.clientGaveUp(), e) // the client does not wait any more
		plan.failed(conn.candidate, e)
		conn.closeRaw()
		return nil, e
	}
	if err := u.awaitPermit(ctx); err != nil {
		return fail(outcome.StagePermit, err)
	}
	c, err := plan.next(ctx)
	if refused, is := errors.AsType[*outcome.Refusal](err); is && refused.Stage == outcome.StageRoute {
		return nil, u.failed(ctx, outcome.StageRoute, c, err)
	}
	if err != nil && c.endpoint == nil {
		return nil, u.failed(ctx, outcome.StagePermit, c, err) // no attempt was made
	}
	conn.candidate = c
	report.tell(outcome.StageDial, c, n)
	if err != nil {
		return fail(outcome.StageDial, err)
	}
	plan.begin(outcome.StageDial, c, n)
	within := func(d time.Duration) context.Context {
		cancel()
		ctx, cancel = task.WithTimeout(parent, d)
		return ctx
	}
	last := plan.isLast(c)
	if u.cfg.Connect.AttemptTimeout == 0 && last {
		within(u.attemptTimeout(last))
	}
	if err = u.dialTo(ctx, plan, conn); err != nil {
		return fail(outcome.StageDial, err)
	}
	conn.forget = u.dials.Add(conn.raw)
	plan.want.Trace.End("", nil)
	tell := func(stage outcome.Stage) {
		report.tell(stage, conn.candidate, n)
		plan.begin(stage, conn.candidate, n)
	}
	steps := preparation{tell: tell, within: within, rest: u.attemptTimeout(last)}
	stage, err := conn.prepare(ctx, steps)
	if err != nil && conn.refusesToResume(ctx, err) {
		plan.want.Trace.End(ending.Classify(stage, err), err)
		plan.begin(outcome.StageDial, conn.candidate, n)
		stage, err = conn.prepareAgain(ctx, steps)
	}
	if err != nil {
		return fail(stage, err)
	}
	plan.want.Trace.End("", nil)
	return conn, nil
}

// preparation is what an attempt gives to prepare.
type preparation struct {
	tell   func(outcome.Stage)                   // of each stage as it begins
	within func(d time.Duration) context.Context // replaces the bound of the attempt
	rest   time.Duration                         // the bound of TLS, if the dialogue had one of its own
}

// prepare does what follows the dial: proxy → starttls → tls. An error is that of the
// stage.
func (c *Conn) prepare(ctx context.Context, steps preparation) (outcome.Stage, error) {
	u := c.upstream
	if d := u.cfg.StartTLSTimeout; d != 0 {
		ctx = steps.within(d)
	}
	if u.cfg.ProxyProtocol != 0 {
		steps.tell(outcome.StageProxy)
		if err := c.announce(ctx); err != nil {
			return outcome.StageProxy, err
		}
	}
	if u.protocol != nil {
		steps.tell(outcome.StageStartTLS)
		if err := c.startTLS(ctx); err != nil {
			return outcome.StageStartTLS, err
		}
	}
	if u.cfg.StartTLSTimeout != 0 {
		ctx = steps.within(steps.rest)
	}
	if u.cfg.TLS == nil || c.needsClient() {
		return "", nil
	}
	steps.tell(outcome.StageTLS)
	return outcome.StageTLS, c.originate(ctx)
}

// permit returns an error if our identity is not ready: no attempt is made without it.
func (u *Upstream) permit() error {
	if u.cfg.IdentityReady == nil {
		return nil
	}
	if err := u.cfg.IdentityReady(); err != nil {
		return &outcome.NotReadyError{Err: err}
	}
	return nil
}

// attemptTimeout returns the bound of an attempt, without StartTLSTimeout. Last says that
// no other address is left to try.
func (u *Upstream) attemptTimeout(last bool) time.Duration {
	if last {
		return u.soleTimeout()
	}
	return cmp.Or(u.cfg.Connect.AttemptTimeout, DefaultAttemptTimeout)
}

// soleTimeout returns the bound of a step that cannot be repeated at another address.
func (u *Upstream) soleTimeout() time.Duration {
	return cmp.Or(u.cfg.Connect.AttemptTimeout, u.cfg.Connect.Timeout, DefaultConnectTimeout)
}

// awaitPermit is permit, but first waits with AwaitIdentity for an identity that is
// expected at once.
func (u *Upstream) awaitPermit(ctx context.Context) error {
	err := u.permit()
	if err == nil || u.cfg.AwaitIdentity == nil {
		return err
	}
	task.Leave(ctx)
	if err := u.cfg.AwaitIdentity(ctx); err != nil {
		return &outcome.NotReadyError{Err: err}
	}
	return nil
}

// failed returns the *outcome.Error of an attempt that ended at stage.
func (u *Upstream) failed(ctx context.Context, stage outcome.Stage, c candidate, err error) *outcome.Error {
	reason := ending.Classify(stage, err)
	if ctx.Err() == context.DeadlineExceeded && reason != outcome.DNS && stage != outcome.StagePermit && stage != outcome.StageRoute {
		reason = outcome.Timeout
	}
	e := &outcome.Error{Stage: stage, Reason: reason, Upstream: u.cfg.Name, Address: c.String(), Err: ending.Explain(u.protocol, c.port(), stage, reason, err)}
	if c.endpoint != nil {
		e.Endpoint = c.endpoint.address
	}
	var refused *outcome.Refusal
	if errors.As(err, &refused) {
		e.Limit, e.RetryIn = refused.Limit, refused.RetryIn
	}
	return e
}

// settled records the result of an attempt. It is called once for each. Reason
// outcome.OK is success. An empty reason means that the result is not known, because
// we or the client ended the attempt. The error is nil for both.
func (u *Upstream) settled(c candidate, reason outcome.Reason, err error, verdict policy.Outcome) {
	if c.at != nil && !c.probe {
		why := attemptSucceeded
		if err != nil {
			why = err.Error()
		}
		if c.at.settle(c.ticket, verdict, why) && (verdict == policy.Failure || !u.cfg.Health.asks()) {
			c.at.proved.Store(verdict == policy.Success)
		}
		if verdict == policy.Failure {
			c.endpoint.unreached()
		}
		switch {
		case verdict == policy.Success:
			c.at.answered(c.began)
		case verdict == policy.Failure && reason == outcome.Timeout:
			c.at.timedOut(time.Now())
		}
	}
	if reason == "" {
		return
	}
	if reason == outcome.OK {
		u.reachedAt(c)
		if c.at != nil && !c.probe {
			c.at.served.Store(true)
		}
	}
	if c.endpoint != nil {
		c.endpoint.note(c, reason, err)
	}
	if u.observer.Attempt != nil && !c.probe {
		u.observer.Attempt(u.cfg.Name, reason)
	}
}

// reachedAt records and logs the first time that the upstream is reached.
func (u *Upstream) reachedAt(c candidate) {
	if u.reached.Load() != nil {
		return
	}
	now := time.Now()
	if u.reached.CompareAndSwap(nil, &now) {
		u.log.Info("upstream reached", "upstream", u.cfg.Name, "address", c.String())
	}
}

// giveUp settles an attempt that has no connection to close, and releases its place.
// A nil error is neutral.
func (u *Upstream) giveUp(c candidate, e *outcome.Error) {
	if e == nil {
		u.settled(c, "", nil, policy.Neutral)
	} else {
		u.settled(c, e.Reason, e, ending.OutcomeOf(e.Reason, e, false))
	}
	c.release()
}

// note records the result of the last attempt at the endpoint, for its status.
func (e *endpoint) note(c candidate, reason outcome.Reason, err error) {
	now := time.Now()
	why := ""
	if reason != outcome.OK {
		why = err.Error()
	}
	if c.at != nil {
		if cause, _ := c.at.lastFailure(); cause == why {
			why = cause // keep one copy of the text
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last.LastAddress, e.last.LastReason, e.last.LastError = c.String(), reason, why
	if reason == outcome.OK {
		e.succeeded = now
		return
	}
	e.failed = now
}

// Deliver sends packet, a PostgreSQL CancelRequest, over first and over a new
// connection to each other address of the upstream. It waits until the servers close
// the connections, which they do after they have acted on the request. It returns
// the number of successful deliveries, and the error of one that failed.
func (u *Upstream) Deliver(ctx context.Context, first *Conn, packet []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(u.cfg.Connect.Timeout, DefaultConnectTimeout))
	defer cancel()
	plans := u.others(first)
	results := make(chan error, len(plans)+1)
	collect := func(deliver func() error) { // the loop below receives each result
		var err error
		if panicked := u.guard.Catch(PartUpstream, func() { err = deliver() }); panicked != nil {
			err = panicked
		}
		results <- err
	}
	task.Go(ctx, func() { collect(func() error { return first.hand(ctx, packet) }) })
	for _, p := range plans {
		go collect(func() error {
			conn, err := u.attempt(ctx, p, 1, noProgress)
			if err != nil {
				return err
			}
			defer conn.closePolitely()
			defer conn.CloseOnPanic()
			return conn.hand(ctx, packet)
		})
	}
	n, failed := 0, error(nil)
	for range cap(results) {
		if err := <-results; err != nil {
			failed = err
		} else {
			n++
		}
	}
	return n, failed
}

// others returns one plan for each address except that of the given connection. Each
// plan tries only its address.
func (u *Upstream) others(but *Conn) (out []*plan) {
	for _, m := range (&plan{upstream: u, want: Want{To: but.to}}).members() {
		if m.Address != but.candidate.at {
			out = append(out, &plan{upstream: u, only: m.Address, want: Want{Header: but.header}})
		}
	}
	return out
}

// reachInterval is the pause between trials of an upstream that was not reached yet.
const reachInterval = time.Second

// reach tries a required upstream that has no probers until a trial or a session has
// reached it once. If demand is not nil, it waits for a demand before each trial. A
// trial goes through all stages of an attempt. If the server locks out hosts for
// trials, reach makes no more of them than a prober: maxGreetings. It ends with ctx.
func (u *Upstream) reach(ctx context.Context) {
	for counted := 0; u.reached.Load() == nil && ctx.Err() == nil && counted < maxGreetings; {
		if !u.awaitDemand(ctx) {
			continue
		}
		conn, err := u.attempt(ctx, &plan{upstream: u}, 1, noProgress)
		if u.countsTrial(err) {
			counted++
		}
		if err == nil {
			err = conn.tryAlone(ctx)
		}
		if err != nil && ctx.Err() == nil {
			u.notReached(err)
			task.Wait(ctx, reachInterval, nil)
		}
		if counted == maxGreetings {
			u.log.Warn("upstream not reached yet", "upstream", u.cfg.Name, "cause", enoughGreetings)
		}
	}
}

// Try asks for a trial of an upstream with Health.OnFailure that was not reached yet. It
// does not wait for the result.
func (u *Upstream) Try() {
	if u.demand == nil || u.reached.Load() != nil {
		return
	}
	select {
	case u.demand <- struct{}{}:
	default: // a trial is wanted already
	}
}

// awaitDemand waits for a demand, if trials need one. It returns false if no trial is
// needed any more.
func (u *Upstream) awaitDemand(ctx context.Context) bool {
	if u.demand == nil {
		return true
	}
	select {
	case <-u.demand:
		return u.reached.Load() == nil
	case <-ctx.Done():
		return false
	}
}

// tryAlone finishes a trial without a session, and closes the connection.
func (c *Conn) tryAlone(ctx context.Context) *outcome.Error {
	defer c.closePolitely()
	defer c.CloseOnPanic()
	err := c.protectAlone(ctx)
	if err == nil {
		_, err = c.hear(hearTimeout)
	}
	if err == nil {
		c.Succeeded()
	}
	return err
}

func (u *Upstream) timed(session string, p Phase, start time.Time) {
	if u.observer.Phase != nil {
		u.observer.Phase(u.cfg.Name, session, p, time.Since(start))
	}
}
