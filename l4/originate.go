package l4

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// upstreamConn is a connection to one address of an upstream, from the dial to
// the relay. It is a reader and writer of what the client's bytes will travel
// in: TLS where the upstream has it.
type upstreamConn struct {
	upstream  *Upstream
	candidate candidate
	header    []byte  // the PROXY header that it begins with; nil: that of our own connections
	to        *target // of a dynamic upstream
	raw       net.Conn
	tls       *tls.Conn          // nil: plaintext
	transport *relay.Transport   // below tls
	dialogue  *starttls.Dialogue // what remains of starttls; nil without
	told      atomic.Bool        // the upstream has heard how the attempt went
	spoken    bool               // a byte was sent that depends on the client
	released  atomic.Bool        // its place is free again
	forget    func()             // ends what ownDials keeps of it; nil: nothing
	config    *tls.Config        // of tls, or of the handshake that failed
	early     []byte             // was read already, from a spare connection
}

func (c *upstreamConn) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.stream().Read(b)
}

func (c *upstreamConn) Write(b []byte) (int, error) { return c.stream().Write(b) }

// SetDeadline bounds reads and writes; after a write that missed it a TLS
// connection cannot be used any more.
func (c *upstreamConn) SetDeadline(t time.Time) error { return c.raw.SetDeadline(t) }

func (c *upstreamConn) stream() net.Conn {
	if c.tls != nil {
		return c.tls
	}
	return c.raw
}

// leg is the connection for the relay, which owns it from then on.
func (c *upstreamConn) leg() relay.Leg {
	if c.tls != nil {
		return relay.TLS(c.tls, c.transport, c.early)
	}
	return relay.Plain(c.raw, c.early)
}

// handedOver forgets what is the relay's now.
func (c *upstreamConn) handedOver() {
	c.header, c.to, c.raw, c.tls, c.transport, c.dialogue, c.early = nil, nil, nil, nil, nil, nil, nil
}

// startTLS asks the server, in its protocol, to go on in TLS.
func (c *upstreamConn) startTLS(ctx context.Context) error {
	start := time.Now()
	unbound := boundIO(ctx, c.raw)
	d, err := c.upstream.protocol.Upgrade(c.raw)
	if err != nil {
		return err
	}
	unbound()
	c.dialogue = d
	c.timed(PhaseStartTLS, start)
	return nil
}

// timed is (*Upstream).timed for a connection that sessions use: those of probes
// would be most of them where there is little traffic.
func (c *upstreamConn) timed(p Phase, start time.Time) {
	if !c.candidate.probe {
		c.upstream.timed(p, start)
	}
}

// needsClient says that TLS cannot begin before the client's first message.
func (c *upstreamConn) needsClient() bool {
	p := c.upstream.protocol
	return p != nil && p.NeedsClient
}

// originate does the TLS handshake, bounded by ctx. In TLS 1.3 a server that
// refuses our certificate says so only on the first read: see settle.
func (c *upstreamConn) originate(ctx context.Context) error {
	start := time.Now()
	cfg, err := c.upstream.cfg.TLS(c.candidate.endpoint.host, c.candidate.String())
	if err != nil {
		return &notReadyError{err}
	}
	task.Leave(ctx) // a handshake computes for long
	c.config = cfg
	c.transport = relay.NewTransport(c.raw)
	conn := tls.Client(c.transport, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	c.tls = conn
	c.timed(PhaseTLS, start)
	return nil
}

// protect is originate for a connection that needed its client first. No other
// address can take its place, so its failure is the attempt's.
func (c *upstreamConn) protect(ctx context.Context) *outcome.Error {
	within, cancel := context.WithTimeout(ctx, c.upstream.soleTimeout())
	defer cancel()
	err := c.originate(within)
	if err == nil {
		return nil
	}
	e := c.upstream.failed(within, outcome.StageTLS, c.candidate, err)
	c.settleUnless(ctx.Err() == context.Canceled, e) // nobody waits any more
	return e
}

// protectAlone does for a trial what a session does between its client's first
// message and TLS, where the protocol has that.
func (c *upstreamConn) protectAlone(ctx context.Context) *outcome.Error {
	if !c.needsClient() {
		return nil
	}
	cfg, err := c.upstream.cfg.TLS(c.candidate.endpoint.host, c.candidate.String())
	if err != nil {
		err = &notReadyError{err}
	} else {
		within, cancel := task.WithTimeout(ctx, c.upstream.soleTimeout())
		defer cancel()
		unbound := boundIO(within, c.raw)
		err = c.dialogue.BeginProbe(c.raw, cfg.ServerName)
		unbound()
	}
	if err != nil {
		e := c.upstream.failed(ctx, outcome.StageStartTLS, c.candidate, err)
		c.settle(e.Reason, e)
		return e
	}
	return c.protect(ctx)
}

// settle tells the upstream how the attempt went, once. Success is provisional
// after the handshake: the relay makes it final at the first byte from the
// server, after a second, or at an end that the client began. An empty reason
// is neutral: the ending was ours or the client's.
func (c *upstreamConn) settle(reason outcome.Reason, err error) {
	if c.told.Swap(true) {
		return
	}
	verdict := outcomeOf(reason, err, c.spoken)
	if verdict == policy.Failure && (reason == outcome.UpstreamTLS || reason == outcome.UpstreamTLSRejected) {
		c.candidate.at.refusedWith.Store(c.config)
	}
	c.upstream.settled(c.candidate, reason, err, verdict)
}

// settleUnless settles the attempt with the failure, or as one of which nothing is
// known.
func (c *upstreamConn) settleUnless(unknown bool, e *outcome.Error) {
	if unknown {
		c.settle("", nil)
		return
	}
	c.settle(e.Reason, e)
}

// release frees the connection's place among those of its address, once it is
// closed. Further calls do nothing.
func (c *upstreamConn) release() {
	if !c.released.Swap(true) {
		if c.forget != nil {
			c.forget()
		}
		c.candidate.release()
	}
}

// succeeded settles the attempt as a success.
func (c *upstreamConn) succeeded() { c.settle(outcome.OK, nil) }

// hand writes packet, which is a client's, and waits for the server to close, bounded
// by ctx, which has a deadline.
func (c *upstreamConn) hand(ctx context.Context, packet []byte) error {
	c.spoken = true
	unbound := boundIO(ctx, c)
	defer unbound()
	if _, err := c.Write(packet); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(c, 64<<10)); err != nil && earlyReason(err) != outcome.UpstreamEarlyClose {
		e := c.error(outcome.StageDialogue, earlyReason(err), err)
		c.settle(e.Reason, e)
		return e
	}
	c.succeeded()
	return nil
}

// dialogueError says whose fault the end of a dialogue was, and settles the
// attempt if it was the server's, unless nobody waited for that any more.
func (c *upstreamConn) dialogueError(ctx context.Context, err error) *outcome.Error {
	e := c.error(outcome.StageDialogue, dialogueReason(err), err)
	if isFailure(e.Reason) {
		c.settleUnless(ctx.Err() == context.Canceled, e)
	}
	return e
}

func (c *upstreamConn) error(stage outcome.Stage, reason outcome.Reason, err error) *outcome.Error {
	return &outcome.Error{Stage: stage, Reason: reason, Upstream: c.upstream.cfg.Name,
		Endpoint: c.candidate.endpoint.address, Address: c.candidate.String(),
		Err: c.upstream.explain(stage, c.candidate, reason, err)}
}

// abort gives up a connection that no relay has taken: with a reset, unless the
// client has closed in good order, which the server then sees too.
func (c *upstreamConn) abort(end error) {
	c.settle("", nil)
	defer c.release()
	var e *outcome.Error
	if errors.As(end, &e) && (e.Reason == outcome.Closed || e.Reason == outcome.Probe || e.Reason == outcome.BadGreeting && isEOF(e.Err)) {
		c.closePolitely()
		return
	}
	reset(c.raw)
}

// politeTimeout bounds the close_notify of closePolitely.
const politeTimeout = time.Second

// closePolitely takes leave in the protocol where it has a word for it, ends TLS
// with close_notify, then closes.
func (c *upstreamConn) closePolitely() {
	defer c.release()
	if c.tls != nil {
		c.raw.SetDeadline(time.Now().Add(politeTimeout))
		if p := c.upstream.protocol; p != nil && p.Quit != "" {
			io.WriteString(c.tls, p.Quit)
		}
		c.tls.CloseWrite()
	}
	c.raw.Close()
}

// closeOnPanic is deferred while nobody else would close the connection: a panic
// leaves neither a descriptor nor a breaker's ticket behind.
func (c *upstreamConn) closeOnPanic() {
	if v := recover(); v != nil {
		if c != nil {
			c.settle("", nil)
			c.closeRaw()
		}
		panic(v) // the stack is that of the first one still
	}
}

func (c *upstreamConn) closeRaw() {
	defer c.release()
	if c.raw != nil {
		c.raw.Close()
	}
}

// explain adds to what was seen what it means and the fix, where the server's
// first bytes or its silence tell: it may want another starttls, or none.
func (u *Upstream) explain(stage outcome.Stage, c candidate, reason outcome.Reason, err error) error {
	if stage != outcome.StageTLS {
		return err
	}
	var header tls.RecordHeaderError
	hungUp := isHangUp(err) && u.protocol == nil
	if !errors.As(err, &header) && !hungUp {
		return err
	}
	var first []byte
	if !hungUp {
		first = header.RecordHeader[:]
	}
	what, advice := starttls.Identify(first, c.at.addr.Port())
	if what == "" && advice == "" {
		return err
	}
	return &explainedError{err: err, what: what, advice: advice}
}

// explainedError is an error with what the server's first bytes look like.
type explainedError struct {
	err          error
	what, advice string
}

func (e *explainedError) Unwrap() error { return e.err }

func (e *explainedError) Error() string {
	s := e.err.Error()
	if e.what != "" {
		s += "; the server's answer looks like " + e.what
	}
	if e.advice != "" {
		s += "; " + e.advice
	}
	return s
}
