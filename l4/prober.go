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

// prober checks one address, unless sessions do: the results of sessions within an
// interval count as the check. A probe goes through the stages of a session's attempt.
// It then reads for a short time, because a TLS 1.3 server refuses our certificate only
// after the handshake.
type prober struct {
	// Static after construction.
	upstream *Upstream
	address  *address

	// Owned by run.
	seen      time.Time // the last result, of a probe or of a session
	mysql     bool      // the server greets like MySQL, or its starttls says so and no probe logs in
	greetings int       // probes that a MySQL server counted as failed clients, since the last good client
	unready   string    // why no probe can log in, as logged last
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
	// hearMax bounds the bytes that a probe reads in search of health.expect.
	hearMax = 64 << 10
)

// run checks the address until ctx ends. The upstream waits for it.
func (p *prober) run(ctx context.Context) {
	p.address.asked.Store(true)
	defer p.address.asked.Store(false)
	defer p.upstream.rhythm.enter()()
	for ctx.Err() == nil {
		if p.upstream.panics().catch(PartProber, func() { p.step(ctx) }) != nil {
			p.address.asked.Store(false) // sessions make the trials until the next probe begins
		}
		task.Wait(ctx, p.wait(), nil)
	}
}

// wait returns the time to the next step. A required upstream that was not reached yet
// is checked more often, because the process is not ready without it.
func (p *prober) wait() time.Duration {
	d := p.upstream.cfg.Health.Interval
	if !p.upstream.reachedOnce() {
		d = min(d, reachInterval)
	}
	return p.upstream.rhythm.wait(time.Now(), d, rand.Float64())
}

// reachedOnce reports whether the upstream was reached once, or is not required:
// readiness waits for required upstreams only.
func (u *Upstream) reachedOnce() bool { return !u.cfg.Required || u.reached.Load() != nil }

// rhythm is the pacing of probes: the probers of a process take their steps in small
// groups. To wake an idle process, and the monitor of Go's scheduler with it, costs as
// much as half of a probe. It is safe for concurrent use.
type rhythm struct {
	phase   int64 // nanoseconds; random, so that other ambassadors do not probe at the same time
	probers atomic.Int64
}

// together is the intended size of a group, if there are many probers: the work of a
// group delays sessions by some milliseconds at most.
const together = 3

func newRhythm() *rhythm { return &rhythm{phase: rand.Int64N(int64(time.Hour))} }

// enter counts a prober until leave is called.
func (r *rhythm) enter() (leave func()) {
	r.probers.Add(1)
	return func() { r.probers.Add(-1) }
}

// wait returns the time from now to a step that is due after about one interval. Jitter
// (0 to 1) moves it by up to a tenth either way. It is then moved, by less than that, to
// the step of other probers.
func (r *rhythm) wait(now time.Time, interval time.Duration, jitter float64) time.Duration {
	slot := int64(interval) * together / max(r.probers.Load(), 7*together) // a seventh of interval, or less if there are many probers
	from := now.UnixNano() + r.phase
	at := from + int64(float64(interval)*(0.9+jitter/5)) + slot/2
	if slot > 0 {
		at -= at % slot
	}
	return time.Duration(at - from)
}

// step updates the verdict once.
func (p *prober) step(ctx context.Context) {
	h, a, now := p.upstream.cfg.Health, p.address, time.Now()
	heard, cause := a.takeHeard()
	if a.served.Swap(false) { // not set by a full server, which has had no good client
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
	case p.mysql && calm && p.upstream.reachedOnce(): // it is healthy, and would count the probe as a failed client
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

// giveUp leaves the verdict to sessions, which use the address as if its health were
// unknown.
func (p *prober) giveUp(now time.Time) {
	p.address.asked.Store(false)
	p.upstream.forget(p.address, enoughGreetings, now)
}

// probe checks the address with an attempt like a session's. Neutral means that our
// side prevented the check.
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

// walk makes the connection, reads, and closes it in good order: PostgreSQL logs
// nothing about a client that closes after TLS without a byte.
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

// login returns the function with which a probe logs in and quits; nil if probes do not
// log in. An error means that our side is not ready.
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
	return err.Stage == outcome.StageStartTLS && !isHangUp(err)
}

// untold is the progress function of an attempt without a session.
func untold(outcome.Stage, candidate, int) {}

// hear waits for bytes that the server sends unasked, and returns the first of them.
// Silence and data are success. An alert or the end of the connection is the same
// failure as for a session.
func (c *upstreamConn) hear(wait time.Duration) ([]byte, *outcome.Error) {
	c.raw.SetReadDeadline(time.Now().Add(wait))
	var buf [8]byte
	n, err := c.Read(buf[:])
	if n > 0 || err == nil || isTimeout(err) {
		return buf[:n], nil
	}
	return nil, c.failed(err)
}

// expect reads until the server has sent health.expect, within the connection's
// deadline.
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

// failed settles a probe that failed after the handshake.
func (c *upstreamConn) failed(err error) *outcome.Error {
	stage := outcome.StageRelay
	if c.tls != nil {
		stage = outcome.StageTLS
	}
	e := c.error(stage, earlyReason(err), err)
	c.settle(e.Reason, e)
	return e
}

// withoutWords returns an answer without the words of sent: a server may quote a
// password that it rejects.
func withoutWords(got []byte, sent string) []byte {
	for word := range strings.FieldsFuncSeq(sent, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' }) {
		if len(word) > 3 { // shorter ones are in any answer
			got = bytes.ReplaceAll(got, []byte(word), []byte("***"))
		}
	}
	return got
}

// expectError means that a server did not send what health.expect requires.
type expectError struct {
	want string
	got  []byte
}

func (e *expectError) Error() string {
	return fmt.Sprintf("health.expect wants %q, the server said %q", e.want, e.got[:min(len(e.got), 64)])
}

// Is makes the error a timeout: the server may have been silent, and a client would see
// a timeout.
func (e *expectError) Is(target error) bool { return target == context.DeadlineExceeded }

// check calls HealthConfig.Check, if there is one.
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

// ask starts a prober for each address, and for each that is published later. Stop ends
// the probers, and waits for them.
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

// follow starts and ends probers until there is one for each of the given addresses.
// The caller holds gathering.
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

// notReached logs why a required upstream was not reached yet, when the reason changes.
func (u *Upstream) notReached(err *outcome.Error) {
	if u.reached.Load() != nil || !u.cfg.Required {
		return
	}
	if old := u.said.Swap(&err.Reason); old == nil || *old != err.Reason {
		u.log.Warn("upstream not reached yet", "upstream", u.cfg.Name, "reason", string(err.Reason), "cause", err.Error())
	}
}
