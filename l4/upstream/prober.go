package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/healthcheck"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// prober checks one address, unless sessions do: the results of sessions within an
// interval count as the check. A probe goes through the stages of a session's attempt.
// It then reads for a short time, because a TLS 1.3 server refuses our certificate only
// after the handshake.
type prober struct {
	// Static after construction.
	upstream *Upstream
	address  *Address
	report   progress
	patience time.Duration // with the server's first bytes

	// Owned by run.
	first     string        // the first bytes of the server's last answer
	seen      time.Time     // the last result, of a probe or of a session
	mysql     bool          // the server greets like MySQL, or its starttls says so and no probe logs in
	greetings int           // probes that a MySQL server counted as failed clients, since the last good client
	unready   string        // why no probe can log in, as logged last
	reached   time.Duration // the bound that the last probe has reached; 0: none
}

const (
	// maxGreetings is how many probes in a row a MySQL server gets. The server locks out
	// a host after max_connect_errors (100; 10 before MySQL 5.6) connections that ended
	// during the greeting. A good connection resets that count.
	maxGreetings    = 10
	enoughGreetings = "a MySQL server locks hosts out whose connections end early, and 10 trials did; only sessions tell from now on"
	// hearTimeout is how long a probe waits for a refusal after the handshake: a round
	// trip and the server's decision.
	hearTimeout = 250 * time.Millisecond
)

// run checks the address until ctx ends. The upstream waits for it.
func (p *prober) run(ctx context.Context) {
	p.address.asked.Store(true)
	defer p.address.asked.Store(false)
	defer p.upstream.pacing.Enter()()
	for ctx.Err() == nil {
		if p.upstream.guard.Catch(PartProber, func() { p.step(ctx) }) != nil {
			p.address.asked.Store(false) // sessions make the trials until the next probe begins
		}
		task.Wait(ctx, p.wait(), nil)
	}
}

// wait returns the time to the next step. A required upstream that was not reached yet
// is checked more often, because the process is not ready without it.
func (p *prober) wait() time.Duration {
	d := p.upstream.cfg.Health.Interval
	if !p.upstream.reachedOnce() && !p.upstream.cfg.Health.OnFailure {
		d = min(d, reachInterval)
	}
	return p.upstream.pacing.Wait(time.Now(), d, rand.Float64())
}

// reachedOnce reports whether the upstream was reached once, or is not required:
// readiness waits for required upstreams only.
func (u *Upstream) reachedOnce() bool { return !u.cfg.Required || u.reached.Load() != nil }

// step updates the verdict once.
func (p *prober) step(ctx context.Context) {
	h, a, now := p.upstream.cfg.Health, p.address, time.Now()
	lastResult, cause := a.takeResult()
	if a.served.Swap(false) { // not set by a full server, which has had no good client
		p.greetings = 0
	}
	if lastResult != policy.Neutral {
		p.seen = now
	}
	closed := a.breaker.State() == policy.Closed
	calm := a.verdict() == policy.Healthy && closed && !a.isSlow(now)
	if calm && lastResult == policy.Neutral && !h.asks() && now.Sub(p.seen) < h.IdleInterval {
		return
	}
	if h.OnFailure && p.leaveToSessions(lastResult, closed, now) {
		return
	}
	p.reached = 0
	passive := lastResult != policy.Neutral && a.verdict() != policy.Unhealthy && closed && !h.talks()
	switch {
	case passive:
	case p.mysql && calm && p.upstream.reachedOnce(): // it is healthy, and would count the probe as a failed client
		lastResult = policy.Success
	case p.greetings >= maxGreetings:
		p.giveUp(now)
		return
	default:
		lastResult, cause = p.probe(ctx)
	}
	if lastResult == policy.Success {
		if err := p.check(ctx); err != nil {
			lastResult, cause = policy.Failure, err.Error()
		}
	}
	if lastResult != policy.Neutral && ctx.Err() == nil {
		p.seen = now
		p.upstream.judging.Lock() // one after the other: two must not each take the other for the one that is left
		defer p.upstream.judging.Unlock()
		if lastResult == policy.Success || !p.mayTakeLonger() {
			p.upstream.judge(a, lastResult == policy.Success, cause, time.Now())
		}
	}
}

// mayTakeLonger reports whether the last probe has reached its bound, and the next one has a
// later one: the address has become the last that is left.
func (p *prober) mayTakeLonger() bool { return p.reached != 0 && p.timeout() > p.reached }

// leaveToSessions implements health.OnFailure: without trouble, only the successes of
// sessions count, and their failures are left to the breaker. It returns false if the
// address is to be probed.
func (p *prober) leaveToSessions(lastResult policy.Outcome, closed bool, now time.Time) bool {
	a := p.address
	sole := len(p.upstream.members()) == 1
	a.asked.Store(!sole)
	if !sole && (a.verdict() == policy.Unhealthy || !closed || a.isSlow(now)) {
		return false
	}
	if lastResult == policy.Success {
		p.upstream.judge(a, true, attemptSucceeded, now)
	}
	return true
}

// giveUp leaves the verdict to sessions, which use the address as if its health were
// unknown.
func (p *prober) giveUp(now time.Time) {
	p.address.asked.Store(false)
	p.upstream.forget(p.address, enoughGreetings, now)
}

// probe checks the address with an attempt like a session's. Neutral means that our
// side prevented the check, or ended it too early.
func (p *prober) probe(ctx context.Context) (policy.Outcome, string) {
	u, a := p.upstream, p.address
	a.asked.Store(true)
	if u.permit() != nil {
		return policy.Neutral, ""
	}
	bound := p.timeout()
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	watched, begun := a.breaker.Watch(), time.Now()
	err := p.walk(ctx)
	verdict, cause, jitter := policy.Success, "a health probe passed", 0.0
	if err != nil {
		if err.Reason == outcome.Timeout && ctx.Err() != nil {
			if p.reached = bound; p.mayTakeLonger() {
				return policy.Neutral, ""
			}
			err.Err = p.explainTimeout(err.Err, bound)
		}
		verdict, cause, jitter = ending.OutcomeOf(err.Reason, err, false), err.Error(), rand.Float64()
		u.notReached(err)
	}
	if verdict == policy.Success {
		a.answered(u.age(begun))
	}
	if f := u.observer.Probe; f != nil && verdict != policy.Neutral {
		f(u.cfg.Name, verdict == policy.Success)
	}
	a.logChange(a.breaker.Probed(watched, verdict, time.Now(), jitter), cause)
	return verdict, cause
}

// timeout returns the bound of a probe. By default a probe may take what an attempt of a
// session to this address may take now: a server that is slow, but that sessions reach,
// stays in use.
func (p *prober) timeout() time.Duration {
	if t := p.upstream.cfg.Health.Timeout; t != 0 {
		return t
	}
	return max(p.attemptTimeout(), DefaultHealthTimeout)
}

// attemptTimeout returns what an attempt of a session to this address may take now.
func (p *prober) attemptTimeout() time.Duration {
	one := candidate{endpoint: p.address.endpoint, at: p.address}
	return p.upstream.attemptTimeout((&plan{upstream: p.upstream}).isLast(one)) + p.upstream.cfg.StartTLSTimeout
}

// explainTimeout names the key, if a session may wait longer than a probe that ended after
// bound.
func (p *prober) explainTimeout(err error, bound time.Duration) error {
	most := p.attemptTimeout()
	if bound >= most {
		return err
	}
	return &ending.ExplainedError{Err: err, Advice: fmt.Sprintf("the probe ended after health.timeout (%v), where a session may take %v: if the server is only slow, raise or remove health.timeout", bound, most)}
}

// walk makes the connection, reads, and closes it in good order: PostgreSQL logs
// nothing about a client that closes after TLS without a byte.
func (p *prober) walk(ctx context.Context) *outcome.Error {
	u := p.upstream
	logIn, err := p.login()
	if err != nil {
		return err
	}
	conn, err := u.attempt(ctx, &plan{upstream: u, only: p.address, probe: true}, 1, p.report)
	if u.countsTrial(err) {
		p.greetings++
	}
	if err != nil {
		return err
	}
	defer conn.closePolitely()
	if err := conn.protectAlone(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, u.cfg.Health.questionTimeout())
	defer cancel()
	defer netconn.Bound(ctx, conn)()
	if logIn != nil {
		return logIn(ctx, conn)
	}
	h := &u.cfg.Health
	if h.Send != "" {
		if _, err := conn.Write([]byte(h.Send)); err != nil {
			return conn.failed(err)
		}
	}
	var first []byte
	if h.Expect != "" {
		first, err = conn.heard(healthcheck.Expect(conn, h.Expect, h.Send))
	} else {
		first, err = conn.hear(p.patience)
	}
	p.first = string(first[:min(len(first), 64)])
	p.recognize(first)
	if err == nil {
		conn.Succeeded()
	}
	return err
}

// login returns the function with which a probe logs in and quits; nil if probes do not
// log in. An error means that our side is not ready.
func (p *prober) login() (func(context.Context, *Conn) *outcome.Error, *outcome.Error) {
	u := p.upstream
	if u.cfg.Health.LogIn == nil {
		return nil, nil
	}
	user, password, err := u.cfg.Health.LogIn()
	if err != nil {
		if p.unready != err.Error() {
			p.unready = err.Error()
			p.address.log().Error("health: no probe can log in", "cause", p.unready)
		}
		return nil, &outcome.Error{Stage: outcome.StagePermit, Reason: outcome.NoIdentity, Upstream: u.cfg.Name, Err: err}
	}
	p.unready = ""
	return func(ctx context.Context, conn *Conn) *outcome.Error {
		if err := conn.dialogue.LogIn(conn, user, password); err != nil {
			return conn.DialogueError(ctx, err)
		}
		p.greetings = 0
		conn.Succeeded()
		return nil
	}, nil
}

// recognize counts the probes that a MySQL server counts as failed clients, if its
// greeting is not part of starttls.
func (p *prober) recognize(first []byte) {
	if p.upstream.protocol != nil {
		return
	}
	if p.mysql = p.mysql || starttls.IsMySQLGreeting(first); p.mysql && len(first) > 0 {
		p.greetings++
	}
}

// countsTrials reports whether the server, by its configured protocol, counts trials as
// failed clients.
func (u *Upstream) countsTrials() bool { return u.protocol != nil && u.protocol.CountsProbes }

// countsTrial reports whether the server counts a trial whose attempt ended with err as
// a failed client. It does if it had greeted, or was about to greet when we closed.
func (u *Upstream) countsTrial(err *outcome.Error) bool {
	var refused *starttls.RefusedError
	switch {
	case !u.countsTrials():
		return false
	case err == nil:
		return true
	case errors.As(err, &refused):
		return refused.Reply == nil // else it refused us instead of greeting
	}
	return err.Stage == outcome.StageStartTLS && !netconn.IsHangUp(err)
}

// noProgress is the progress function of an attempt without a session.
func noProgress(outcome.Stage, string, string, int) {}

// hear waits for bytes that the server sends unasked. An alert or the end of the
// connection is the same failure as for a session.
func (c *Conn) hear(wait time.Duration) ([]byte, *outcome.Error) {
	c.raw.SetReadDeadline(time.Now().Add(wait))
	return c.heard(healthcheck.Hear(c))
}

// heard returns the first bytes of an answer, and settles a probe that failed with err.
func (c *Conn) heard(first []byte, err error) ([]byte, *outcome.Error) {
	if err != nil {
		return first, c.failed(err)
	}
	return first, nil
}

// failed settles a probe that failed after the handshake.
func (c *Conn) failed(err error) *outcome.Error {
	stage := outcome.StageRelay
	if c.tls != nil {
		stage = outcome.StageTLS
	}
	e := c.Failure(stage, ending.EarlyReason(err), err)
	c.Settle(e.Reason, e)
	return e
}

// check calls HealthConfig.Check, if there is one.
func (p *prober) check(ctx context.Context) error {
	h := &p.upstream.cfg.Health
	if h.Check == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.questionTimeout())
	defer cancel()
	return h.Check(ctx, p.address.addr.Addr())
}

// probers are the probers of an upstream's addresses, while it runs.
type probers struct {
	ctx    context.Context
	work   sync.WaitGroup
	cancel map[*Address]context.CancelFunc
}

// ask starts a prober for each address, and for each that is published later. Stop ends
// the probers, and waits for them.
func (u *Upstream) ask(ctx context.Context) (stop func()) {
	p := &probers{ctx: ctx, cancel: map[*Address]context.CancelFunc{}}
	u.publishing.Lock()
	u.probers = p
	u.publishing.Unlock()
	u.publish()
	return func() {
		u.publishing.Lock()
		u.probers = nil
		u.publishing.Unlock()
		for _, cancel := range p.cancel {
			cancel()
		}
		p.work.Wait()
	}
}

// follow starts and ends probers until there is one for each of the given addresses.
// The caller holds publishing.
func (p *probers) follow(u *Upstream, members []member) {
	here := map[*Address]bool{}
	for _, m := range members {
		here[m.Address] = true
		if p.cancel[m.Address] == nil {
			ctx, cancel := context.WithCancel(p.ctx)
			p.cancel[m.Address] = cancel
			one := &prober{upstream: u, address: m.Address, report: noProgress, patience: hearTimeout, mysql: u.countsTrials() && u.cfg.Health.LogIn == nil}
			p.work.Go(func() { one.run(ctx) })
		}
	}
	for a, cancel := range p.cancel {
		if !here[a] {
			cancel()
			delete(p.cancel, a)
		}
	}
}

// notReached logs why a required upstream was not reached yet, when the reason changes.
func (u *Upstream) notReached(err *outcome.Error) {
	if u.reached.Load() != nil || !u.cfg.Required {
		return
	}
	if old := u.lastLogged.Swap(&err.Reason); old == nil || *old != err.Reason {
		u.log.Warn("upstream not reached yet", "upstream", u.cfg.Name, "reason", string(err.Reason), "cause", err.Error())
	}
}
