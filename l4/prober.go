package l4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// prober asks one address how it is, when nobody else does: what sessions saw
// within an interval counts as the answer. Its probes go the way of a session,
// and then listen shortly, since a TLS 1.3 server says only then that it refuses
// our certificate.
type prober struct {
	// Static after construction.
	upstream *Upstream
	address  *address

	// Owned by run.
	seen      time.Time // the last answer, from whomever
	mysql     bool      // the server greets as MySQL does, or is to by its starttls, and no probe logs in
	greetings int       // probes that a MySQL server took for a client that failed, since the last good client
	unready   string    // why no probe can log in, as the log has it
}

const (
	// maxGreetings is how many probes in a row a MySQL server gets: it locks out
	// the host after max_connect_errors (100; 10 before MySQL 5.6) connections
	// that were cut in the greeting, and forgets them with a good one.
	maxGreetings    = 10
	enoughGreetings = "a MySQL server locks hosts out whose connections end early, and 10 trials did; only sessions tell from now on"
	// hearTimeout is how long a probe listens for a refusal after the handshake: a
	// round trip and the server's judgement.
	hearTimeout = 250 * time.Millisecond
	// hearMax bounds what a probe reads in search of health.expect.
	hearMax = 64 << 10
)

// run asks until ctx ends. The upstream waits for it.
func (p *prober) run(ctx context.Context) {
	p.address.asked.Store(true)
	defer p.address.asked.Store(false)
	defer p.upstream.rhythm.enter()()
	for ctx.Err() == nil {
		if p.upstream.panics().catch(PartProber, func() { p.step(ctx) }) != nil {
			p.address.asked.Store(false) // until a probe begins well, sessions make the trials
		}
		task.Wait(ctx, p.wait(), nil)
	}
}

// wait is the time to the next step. A required upstream that was never reached is
// asked more often: who waits for readiness waits for it.
func (p *prober) wait() time.Duration {
	d := p.upstream.cfg.Health.Interval
	if !p.upstream.reachedOnce() {
		d = min(d, reachInterval)
	}
	return p.upstream.rhythm.wait(time.Now(), d, rand.Float64())
}

// reachedOnce says whether nobody waits for the upstream to be reached for the first
// time.
func (u *Upstream) reachedOnce() bool { return !u.cfg.Required || u.reached.Load() != nil }

// rhythm lets the probers of a process take their steps in small groups: to wake an
// idle process, and the monitor of Go's scheduler with it, costs as much as half of
// a probe. Safe for concurrent use.
type rhythm struct {
	phase   int64 // nanoseconds; others of our kind shall not ask at the same moment
	probers atomic.Int64
}

// together is how many probers shall step at once, where there are many: what they
// do then holds sessions up for some milliseconds at most.
const together = 3

func newRhythm() *rhythm { return &rhythm{phase: rand.Int64N(int64(time.Hour))} }

// enter counts a prober, until the function that it returns is called.
func (r *rhythm) enter() (leave func()) {
	r.probers.Add(1)
	return func() { r.probers.Add(-1) }
}

// wait is the time from now to a step that is due about after an interval: with
// jitter (0 to 1) of a tenth either way, and then moved by less than that to where
// others step too.
func (r *rhythm) wait(now time.Time, interval time.Duration, jitter float64) time.Duration {
	slot := int64(interval) * together / max(r.probers.Load(), 7*together) // a seventh, or less if there are many
	from := now.UnixNano() + r.phase
	at := from + int64(float64(interval)*(0.9+jitter/5)) + slot/2
	if slot > 0 {
		at -= at % slot
	}
	return time.Duration(at - from)
}

// step brings the verdict up to date once.
func (p *prober) step(ctx context.Context) {
	h, a, now := p.upstream.cfg.Health, p.address, time.Now()
	heard, cause := a.takeHeard()
	if a.served.Swap(false) { // a server that was full has not seen a good client
		p.greetings = 0
	}
	if heard != policy.Neutral {
		p.seen = now
	}
	closed := a.breaker.State() == policy.Closed
	calm := a.verdict() == policy.Healthy && closed && !a.isSlow(now)
	if calm && heard == policy.Neutral && !h.asks() && now.Sub(p.seen) < h.IdleInterval {
		return
	}
	passive := heard != policy.Neutral && a.verdict() != policy.Unhealthy && closed && !h.talks()
	switch {
	case passive:
	case p.mysql && calm && p.upstream.reachedOnce(): // to be asked costs it a failed client, and it is well
		heard = policy.Success
	case p.greetings >= maxGreetings:
		p.giveUp(now)
		return
	default:
		heard, cause = p.probe(ctx)
	}
	if heard == policy.Success {
		if err := p.check(ctx); err != nil {
			heard, cause = policy.Failure, err.Error()
		}
	}
	if heard != policy.Neutral && ctx.Err() == nil {
		p.seen = now
		p.upstream.judge(a, heard == policy.Success, cause, time.Now())
	}
}

// giveUp leaves the verdict to sessions: they are tried as if nothing were known.
func (p *prober) giveUp(now time.Time) {
	p.address.asked.Store(false)
	p.upstream.forget(p.address, enoughGreetings, now)
}

// probe goes the way of a session to the address. Neutral: it could not be asked,
// through no fault of its own.
func (p *prober) probe(ctx context.Context) (policy.Outcome, string) {
	u, a := p.upstream, p.address
	a.asked.Store(true)
	if u.permit() != nil {
		return policy.Neutral, ""
	}
	ctx, cancel := context.WithTimeout(ctx, u.cfg.Health.timeout())
	defer cancel()
	watched, begun := a.breaker.Watch(), time.Now()
	err := p.walk(ctx)
	verdict, cause, jitter := policy.Success, "a health probe passed", 0.0
	if err != nil {
		verdict, cause, jitter = outcomeOf(err.Reason, err, false), err.Error(), rand.Float64()
		u.notReached(err)
	}
	if verdict == policy.Success {
		a.answered(u.age(begun))
	}
	a.turned(a.breaker.Probed(watched, verdict, time.Now(), jitter), cause)
	return verdict, cause
}

// walk makes the connection, listens, and ends it in good order: PostgreSQL's log
// is silent about a client that leaves after TLS without a byte.
func (p *prober) walk(ctx context.Context) *outcome.Error {
	u := p.upstream
	logIn, err := p.login()
	if err != nil {
		return err
	}
	conn, err := u.attempt(ctx, &plan{upstream: u, only: p.address, probe: true}, 1, untold)
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
	defer boundIO(ctx, conn)()
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
		first, err = conn.expect(h)
	} else {
		first, err = conn.hear(hearTimeout)
	}
	p.recognize(first)
	if err == nil {
		conn.succeeded()
	}
	return err
}

// login is how a probe logs in and quits; nil if it does not. The error is ours.
func (p *prober) login() (func(context.Context, *upstreamConn) *outcome.Error, *outcome.Error) {
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
	return func(ctx context.Context, conn *upstreamConn) *outcome.Error {
		if err := conn.dialogue.LogIn(conn, user, password); err != nil {
			return conn.dialogueError(ctx, err)
		}
		p.greetings = 0
		conn.succeeded()
		return nil
	}, nil
}

// recognize counts the probes that a MySQL server takes for failed clients, where
// its greeting is not part of starttls.
func (p *prober) recognize(first []byte) {
	if p.upstream.protocol != nil {
		return
	}
	if p.mysql = p.mysql || starttls.IsMySQLGreeting(first); p.mysql && len(first) > 0 {
		p.greetings++
	}
}

// countsTrials says whether the server takes trials for failed clients, as far as
// the configuration tells.
func (u *Upstream) countsTrials() bool { return u.protocol != nil && u.protocol.CountsProbes }

// countsTrial says whether the server takes a trial whose attempt ended with err
// for a failed client: it has greeted, or was about to when we left.
func (u *Upstream) countsTrial(err *outcome.Error) bool {
	var refused *starttls.RefusedError
	switch {
	case !u.countsTrials():
		return false
	case err == nil:
		return true
	case errors.As(err, &refused):
		return refused.Reply == nil // else it refused us, in the greeting's place
	}
	return err.Stage == outcome.StageStartTLS && !isHangUp(err)
}

// untold is the progress of an attempt that no session makes.
func untold(outcome.Stage, candidate, int) {}

// hear waits shortly for what the server says unasked, and gives its beginning.
// Silence and data are well; an alert or an end is the failure that it would be
// for a session.
func (c *upstreamConn) hear(wait time.Duration) ([]byte, *outcome.Error) {
	c.raw.SetReadDeadline(time.Now().Add(wait))
	var buf [8]byte
	n, err := c.Read(buf[:])
	if n > 0 || err == nil || isTimeout(err) {
		return buf[:n], nil
	}
	return nil, c.failed(err)
}

// expect reads until the server has said text, within the connection's deadline.
func (c *upstreamConn) expect(h *HealthConfig) ([]byte, *outcome.Error) {
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		switch {
		case bytes.Contains(got, []byte(h.Expect)):
			return got, nil
		case err == nil && len(got) < hearMax:
			continue
		case err != nil && !isTimeout(err) && !isEOF(err):
			return got, c.failed(err)
		}
		return got, c.failed(&expectError{h.Expect, withoutWords(got, h.Send)})
	}
}

// failed settles a probe that ended after the handshake.
func (c *upstreamConn) failed(err error) *outcome.Error {
	stage := outcome.StageRelay
	if c.tls != nil {
		stage = outcome.StageTLS
	}
	e := c.error(stage, earlyReason(err), err)
	c.settle(e.Reason, e)
	return e
}

// withoutWords is an answer without the words of what was sent: a server may quote the
// password that it does not take.
func withoutWords(got []byte, sent string) []byte {
	for word := range strings.FieldsFuncSeq(sent, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' }) {
		if len(word) > 3 { // shorter ones are in any answer
			got = bytes.ReplaceAll(got, []byte(word), []byte("***"))
		}
	}
	return got
}

// expectError is a server that did not say what health.expect wants.
type expectError struct {
	want string
	got  []byte
}

func (e *expectError) Error() string {
	return fmt.Sprintf("health.expect wants %q, the server said %q", e.want, e.got[:min(len(e.got), 64)])
}

// Timeout: silence is among the ways of not saying it, and a timeout is what a
// client would see.
func (e *expectError) Is(target error) bool { return target == context.DeadlineExceeded }

// check asks the other question of health, if there is one.
func (p *prober) check(ctx context.Context) error {
	h := &p.upstream.cfg.Health
	if h.Check == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.timeout())
	defer cancel()
	return h.Check(ctx, p.address.addr.Addr())
}

// probers are the probers of an upstream's addresses, while it runs.
type probers struct {
	ctx    context.Context
	work   sync.WaitGroup
	cancel map[*address]context.CancelFunc
}

// ask starts a prober for each address, those that come later included, until the
// function that it returns is called.
func (u *Upstream) ask(ctx context.Context) (stop func()) {
	p := &probers{ctx: ctx, cancel: map[*address]context.CancelFunc{}}
	u.gathering.Lock()
	u.probers = p
	u.gathering.Unlock()
	u.gather()
	return func() {
		u.gathering.Lock()
		u.probers = nil
		u.gathering.Unlock()
		for _, cancel := range p.cancel {
			cancel()
		}
		p.work.Wait()
	}
}

// follow makes the probers those of the given addresses. The caller holds
// gathering.
func (p *probers) follow(u *Upstream, members []member) {
	here := map[*address]bool{}
	for _, m := range members {
		here[m.address] = true
		if p.cancel[m.address] == nil {
			ctx, cancel := context.WithCancel(p.ctx)
			p.cancel[m.address] = cancel
			one := &prober{upstream: u, address: m.address, mysql: u.countsTrials() && u.cfg.Health.LogIn == nil}
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

// notReached says once for each reason why an upstream could not be reached yet.
func (u *Upstream) notReached(err *outcome.Error) {
	if u.reached.Load() != nil || !u.cfg.Required {
		return
	}
	if old := u.said.Swap(&err.Reason); old == nil || *old != err.Reason {
		u.log.Warn("upstream not reached yet", "upstream", u.cfg.Name, "reason", string(err.Reason), "cause", err.Error())
	}
}
