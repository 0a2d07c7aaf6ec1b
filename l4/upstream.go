package l4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// Upstream is one named remote service: its addresses, how to connect to them, and
// the results of the last attempts.
type Upstream struct {
	// Static after construction.
	cfg         UpstreamConfig
	protocol    *starttls.Protocol // nil: none
	localHeader string             // the PROXY header of connections without a client; empty: none is sent
	endpoints   []*endpoint
	visited     *visited // destination cache of a dynamic upstream, which has no endpoints; else nil
	resolver    *resolver
	dial        DialFunc
	dials       *ownDials
	rhythm      *rhythm
	observer    Observer
	log         *slog.Logger
	balancer    policy.Balancer
	born        time.Time
	retire      context.CancelFunc // ends run when a reload drops the upstream
	kill        func(*address)     // ends the sessions of an address; nil before run
	spares      *spares            // preconnected connections; nil: none are kept; set before run

	gathering sync.Mutex                     // held while roster is published
	probers   *probers                       // guarded by gathering; nil while run does not run
	said      atomic.Pointer[outcome.Reason] // why it was not reached, as logged last
	roster    atomic.Pointer[[]member]       // the addresses to choose from
	reached   atomic.Pointer[time.Time]      // when it was first reached; nil: not yet
}

// DialFunc opens a connection to a unix path or to an IP address with port.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// upstreamDeps are the dependencies that a server gives to an Upstream. The zero
// value is for tests.
type upstreamDeps struct {
	log      *slog.Logger // nil: nothing is logged
	observer Observer
	dial     DialFunc
	marked   func(mark int) DialFunc // nil: dial is used, without a mark
	dials    *ownDials               // nil: connections are not recorded
	rhythm   *rhythm                 // nil: the upstream makes its own
}

func newUpstream(cfg UpstreamConfig, o upstreamDeps) (*Upstream, error) {
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	dial, err := o.dialFor(&cfg)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
	}
	u := &Upstream{cfg: cfg, observer: o.observer, log: o.log, dial: dial, dials: o.dials, born: time.Now(),
		rhythm: cmp.Or(o.rhythm, newRhythm()), resolver: newResolver(cfg.DNSServers, panics{o.log, o.observer.Panicked})}
	if cfg.ProxyProtocol != 0 {
		header, err := (*preface.Origin)(nil).Format(byte(cfg.ProxyProtocol))
		if err != nil {
			return nil, fmt.Errorf("upstream %s: proxy_protocol: %w", cfg.Name, err)
		}
		u.localHeader = string(header)
	}
	u.balancer.Method = cfg.Balance
	if cfg.StartTLS != "" {
		p, ok := starttls.Lookup(cfg.StartTLS)
		if !ok {
			return nil, fmt.Errorf("upstream %s: starttls %s: unknown; this version has %v", cfg.Name, cfg.StartTLS, starttls.Names())
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
		u.visited = &visited{byName: map[string]*site{}}
	case len(u.endpoints) == 0:
		return nil, fmt.Errorf("upstream %s: no endpoint", cfg.Name)
	}
	u.gather()
	return u, nil
}

// inherit copies from the old upstream of the same name whether it was reached. A
// reload during an outage then does not make the process unready.
func (u *Upstream) inherit(from []*Upstream) {
	i := slices.IndexFunc(from, func(old *Upstream) bool { return old.cfg.Name == u.cfg.Name })
	if i >= 0 {
		u.reached.Store(from[i].reached.Load())
	}
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
		if !e.literal {
			work.Go(func() { u.panics().keep(ctx, PartResolver, func() { u.refresh(ctx, e) }) })
		}
	}
	if u.cfg.Required && u.cfg.Health.Interval == 0 {
		work.Go(func() { u.panics().keep(ctx, PartUpstream, func() { u.reach(ctx) }) })
	}
	if u.spares != nil {
		work.Go(func() { u.panics().keep(ctx, PartPreconnect, func() { u.spares.run(ctx) }) })
	}
	<-ctx.Done()
}

// progress is called at each stage of an attempt, for the session's record.
type progress func(stage outcome.Stage, c candidate, attempt int)

// connect makes a connection to the upstream that is ready for the client's
// bytes. It makes at most connect.attempts attempts within connect.timeout, each
// to another address while there is one. It sends no byte of the client, so it
// can repeat an attempt safely. The caller owns the connection.
func (u *Upstream) connect(ctx context.Context, tell progress) (*upstreamConn, *outcome.Error) {
	return u.connectFor(ctx, want{connect: u.cfg.Connect}, tell)
}

// want is what a session needs from an upstream.
type want struct {
	header  string        // the PROXY header that names the client; empty: localHeader
	to      *target       // in a dynamic upstream; else nil
	connect ConnectConfig // the upstream's, or lower bounds
	noSpare bool          // do not use a preconnected connection
}

// hopeless reports whether e is caused by the client's destination, so that another
// attempt would fail in the same way.
func (w *want) hopeless(e *outcome.Error) bool {
	var dns *net.DNSError
	return e.Reason == outcome.SpecialAddress || e.Reason == outcome.Loop || w.to != nil && errors.As(e, &dns) && dns.IsNotFound
}

// connectFor is connect with the requirements of one session.
func (u *Upstream) connectFor(ctx context.Context, w want, tell progress) (*upstreamConn, *outcome.Error) {
	ctx, cancel := task.WithTimeout(ctx, orDefault(w.connect.Timeout, DefaultConnectTimeout))
	defer cancel()
	start, plan := time.Now(), plan{upstream: u, want: w}
	if w.connect.Timeout != u.cfg.Connect.Timeout {
		plan.patience = ctx
	}
	if u.spares != nil && !w.noSpare && u.permit() == nil {
		task.Leave(ctx)
		if conn := u.spares.take(); conn != nil {
			tell(outcome.StageTLS, conn.candidate, 1)
			u.timed(PhaseTotal, start)
			return conn, nil
		}
	}
	var last *outcome.Error
	for made, most := 0, orDefault(w.connect.Attempts, DefaultAttempts); made < most; {
		conn, err := u.attempt(ctx, &plan, made+1, tell)
		switch {
		case err == nil:
			u.timed(PhaseTotal, start)
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
		case !u.awaitTurn(ctx, &plan, err):
			return nil, last // err says only that nothing can be tried now
		}
	}
	return nil, last
}

// awaitTurn waits until a session that failed before may try again, where err says
// that nothing can be tried now. It waits for the pause before the next round, or for
// the trial of a breaker that opened meanwhile. It returns false if the session
// cannot try again.
func (u *Upstream) awaitTurn(ctx context.Context, plan *plan, err *outcome.Error) bool {
	switch {
	case errors.Is(err, errTriedAll) && plan.again():
		return u.pauseBefore(ctx, plan.rounds) == nil
	case err.Reason == outcome.NoEndpoint, err.Reason == outcome.BreakerOpen:
		return plan.awaitTrial(ctx)
	}
	return false
}

// pauseBefore waits for the pause before repetition n (1 is the first). If ctx ends
// first, it returns the error of ctx.
func (u *Upstream) pauseBefore(ctx context.Context, n int) error {
	backoff := policy.Backoff{Base: orDefault(u.cfg.Connect.Backoff, DefaultBackoff), Max: time.Second}
	return task.Wait(ctx, backoff.Pause(n-1, rand.Float64()), nil)
}

// attempt makes one connection to one address: permit → dial → proxy → starttls → tls.
// The bound is connect.attempt_timeout. If that is not configured and no other address
// is left to try, only ctx bounds the attempt. A second attempt at a slow address would
// only lose the progress of the first. If TLS needs the client's first message, attempt
// ends before TLS, and the session begins TLS. A failure is settled here, a success
// when the connection settles.
func (u *Upstream) attempt(ctx context.Context, plan *plan, n int, tell progress) (*upstreamConn, *outcome.Error) {
	parent := ctx
	ctx, cancel := task.WithTimeout(ctx, orDefault(u.cfg.Connect.AttemptTimeout, DefaultAttemptTimeout))
	defer func() { cancel() }()
	conn := &upstreamConn{upstream: u, header: plan.header, to: plan.to}
	defer conn.closeOnPanic()
	fail := func(stage outcome.Stage, err error) (*upstreamConn, *outcome.Error) {
		e := u.failed(ctx, stage, conn.candidate, err)
		conn.settleUnless(parent.Err() == context.Canceled || plan.impatient(), e) // the client does not wait any more
		plan.failed(conn.candidate, e)
		conn.closeRaw()
		return nil, e
	}
	if err := u.awaitPermit(ctx); err != nil {
		return fail(outcome.StagePermit, err)
	}
	c, err := plan.next(ctx)
	var refused *outcome.Refusal
	if errors.As(err, &refused) && refused.Stage == outcome.StageRoute {
		return nil, u.failed(ctx, outcome.StageRoute, c, err)
	}
	if err != nil && c.endpoint == nil {
		return nil, u.failed(ctx, outcome.StagePermit, c, err) // no attempt was made
	}
	conn.candidate = c
	tell(outcome.StageDial, c, n)
	if err != nil {
		return fail(outcome.StageDial, err)
	}
	if u.cfg.Connect.AttemptTimeout == 0 && plan.isLast(c) {
		cancel()
		ctx, cancel = task.WithTimeout(parent, orDefault(u.cfg.Connect.Timeout, DefaultConnectTimeout))
	}
	if err = u.dialTo(ctx, plan, conn); err != nil {
		return fail(outcome.StageDial, err)
	}
	conn.forget = u.dials.add(conn.raw)
	if u.cfg.ProxyProtocol != 0 {
		tell(outcome.StageProxy, conn.candidate, n)
		if err = conn.announce(ctx); err != nil {
			return fail(outcome.StageProxy, err)
		}
	}
	if u.protocol != nil {
		tell(outcome.StageStartTLS, conn.candidate, n)
		if err = conn.startTLS(ctx); err != nil {
			return fail(outcome.StageStartTLS, err)
		}
	}
	if u.cfg.TLS != nil && !conn.needsClient() {
		tell(outcome.StageTLS, conn.candidate, n)
		if err = conn.originate(ctx); err != nil {
			return fail(outcome.StageTLS, err)
		}
	}
	return conn, nil
}

// permit returns an error if our identity is not ready: no attempt is made without it.
func (u *Upstream) permit() error {
	if u.cfg.IdentityReady == nil {
		return nil
	}
	if err := u.cfg.IdentityReady(); err != nil {
		return &notReadyError{err}
	}
	return nil
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
		return &notReadyError{err}
	}
	return nil
}

// failed returns the *outcome.Error of an attempt that ended at stage.
func (u *Upstream) failed(ctx context.Context, stage outcome.Stage, c candidate, err error) *outcome.Error {
	reason := classify(stage, err)
	if ctx.Err() == context.DeadlineExceeded && reason != outcome.DNS && stage != outcome.StagePermit {
		reason = outcome.Timeout
	}
	e := &outcome.Error{Stage: stage, Reason: reason, Upstream: u.cfg.Name, Address: c.String(), Err: u.explain(stage, c, reason, err)}
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
		why := string(reason)
		if err != nil {
			why = err.Error()
		}
		if c.at.settle(c.ticket, verdict, why) && (verdict == policy.Failure || !u.cfg.Health.asks()) {
			c.at.proved.Store(verdict == policy.Success)
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
		u.settled(c, e.Reason, e, outcomeOf(e.Reason, e, false))
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

// deliver sends packet, a PostgreSQL CancelRequest, over first and over a new
// connection to each other address of the upstream. It waits until the servers close
// the connections, which they do after they have acted on the request. It returns
// the number of successful deliveries, and the error of one that failed.
func (u *Upstream) deliver(ctx context.Context, first *upstreamConn, packet []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, orDefault(u.cfg.Connect.Timeout, DefaultConnectTimeout))
	defer cancel()
	plans := u.others(first)
	results := make(chan error, len(plans)+1)
	collect := func(deliver func() error) { // the loop below receives each result
		var err error
		if panicked := u.panics().catch(PartUpstream, func() { err = deliver() }); panicked != nil {
			err = panicked
		}
		results <- err
	}
	task.Go(ctx, func() { collect(func() error { return first.hand(ctx, packet) }) })
	for _, p := range plans {
		go collect(func() error {
			conn, err := u.attempt(ctx, p, 1, untold)
			if err != nil {
				return err
			}
			defer conn.closePolitely()
			defer conn.closeOnPanic()
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
func (u *Upstream) others(but *upstreamConn) (out []*plan) {
	for _, m := range (&plan{upstream: u, want: want{to: but.to}}).members() {
		if m.address != but.candidate.at {
			out = append(out, &plan{upstream: u, only: m.address, want: want{header: but.header}})
		}
	}
	return out
}

// reachInterval is the pause between trials of an upstream that was not reached yet.
const reachInterval = time.Second

// reach tries a required upstream that has no probers until a trial or a session has
// reached it once. A trial goes through all stages of an attempt. If the server locks
// out hosts for trials, reach makes no more of them than a prober: maxGreetings. It
// ends with ctx.
func (u *Upstream) reach(ctx context.Context) {
	for counted := 0; u.reached.Load() == nil && ctx.Err() == nil && counted < maxGreetings; {
		conn, err := u.attempt(ctx, &plan{upstream: u}, 1, untold)
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

// tryAlone finishes a trial without a session, and closes the connection.
func (c *upstreamConn) tryAlone(ctx context.Context) *outcome.Error {
	defer c.closePolitely()
	defer c.closeOnPanic()
	err := c.protectAlone(ctx)
	if err == nil {
		_, err = c.hear(hearTimeout)
	}
	if err == nil {
		c.succeeded()
	}
	return err
}

func (u *Upstream) timed(p Phase, start time.Time) {
	if u.observer.Phase != nil {
		u.observer.Phase(u.cfg.Name, p, time.Since(start))
	}
}

// orDefault returns v, or d if v is zero.
func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}
