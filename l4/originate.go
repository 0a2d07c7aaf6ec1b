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
// the relay. It reads and writes the stream that carries the client's bytes: TLS if
// the upstream has TLS.
type upstreamConn struct {
	upstream  *Upstream
	candidate candidate
	header    string  // the PROXY header that it begins with; empty: upstream.localHeader
	to        *target // of a dynamic upstream
	raw       net.Conn
	tls       *tls.Conn          // nil: plaintext
	transport *relay.Transport   // below tls
	dialogue  *starttls.Dialogue // the rest of starttls; nil without starttls
	told      atomic.Bool        // the attempt is settled
	spoken    bool               // a byte that depends on the client was sent
	released  atomic.Bool        // its place is free again
	forget    func()             // removes it from ownDials; nil: it is not there
	config    *tls.Config        // of tls, or of the handshake that failed
	early     []byte             // bytes that were read while it was preconnected
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

// SetDeadline bounds reads and writes. A TLS connection cannot be used any more after a
// write that has missed the deadline.
func (c *upstreamConn) SetDeadline(t time.Time) error { return c.raw.SetDeadline(t) }

func (c *upstreamConn) stream() net.Conn {
	if c.tls != nil {
		return c.tls
	}
	return c.raw
}

// leg returns the connection for the relay, which owns it from then on.
func (c *upstreamConn) leg() relay.Leg {
	if c.tls != nil {
		return relay.TLS(c.tls, c.transport, c.early)
	}
	return relay.Plain(c.raw, c.early)
}

// handedOver drops the references to what the relay owns now.
func (c *upstreamConn) handedOver() {
	c.header, c.to, c.raw, c.tls, c.transport, c.dialogue, c.early = "", nil, nil, nil, nil, nil, nil
}

// startTLS asks the server, in its protocol, to begin TLS.
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

// timed is (*Upstream).timed, except for probes: where there is little traffic, most
// of the times would be theirs.
func (c *upstreamConn) timed(p Phase, start time.Time) {
	if !c.candidate.probe {
		c.upstream.timed(p, start)
	}
}

// needsClient reports whether TLS cannot begin before the client's first message.
func (c *upstreamConn) needsClient() bool {
	p := c.upstream.protocol
	return p != nil && p.NeedsClient
}

// originate does the TLS handshake, bounded by ctx. In TLS 1.3 the alert of a server
// that refuses our certificate arrives only with the first read: see settle.
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

// protect is originate for a connection that needed the client's first message before
// TLS. No other address can replace it, so its failure is that of the attempt.
func (c *upstreamConn) protect(ctx context.Context) *outcome.Error {
	within, cancel := context.WithTimeout(ctx, c.upstream.soleTimeout())
	defer cancel()
	err := c.originate(within)
	if err == nil {
		return nil
	}
	e := c.upstream.failed(within, outcome.StageTLS, c.candidate, err)
	c.settleUnless(ctx.Err() == context.Canceled, e) // the client does not wait any more
	return e
}

// protectAlone does for a trial what a session does from its client's first message to
// the end of TLS, if the protocol needs that message.
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

// settle records the result of the attempt; only the first call has an effect. Success
// is provisional after the handshake. The relay makes it final at the first byte from
// the server, after a second, or at an end that the client began. An empty reason is
// neutral: we or the client ended the attempt.
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

// settleUnless settles the attempt as failed with e or, if the result is unknown, as
// neutral.
func (c *upstreamConn) settleUnless(unknown bool, e *outcome.Error) {
	if unknown {
		c.settle("", nil)
		return
	}
	c.settle(e.Reason, e)
}

// release gives back the connection's place at its address. It is called after the
// connection is closed; further calls do nothing.
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

// hand writes packet, which is from a client, and waits until the server closes the
// connection. It is bounded by ctx, which has a deadline.
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

// dialogueError returns the error of a dialogue that ended with err; its reason says
// whose fault that was. If it was the server's, dialogueError settles the attempt: as
// failed, or as neutral if the client does not wait any more.
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

// abort ends a connection that no relay has taken. It sends a reset, unless the client
// has closed in good order: then the server sees an orderly close too.
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

// closePolitely sends the protocol's quit message, if there is one, ends TLS with
// close_notify, and closes the connection.
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

// closeOnPanic is deferred while no other code would close the connection: a panic
// leaks neither a descriptor nor a breaker's ticket.
func (c *upstreamConn) closeOnPanic() {
	if v := recover(); v != nil {
		if c != nil {
			c.settle("", nil)
			c.closeRaw()
		}
		panic(v) // the stack is still that of the first panic
	}
}

func (c *upstreamConn) closeRaw() {
	defer c.release()
	if c.raw != nil {
		c.raw.Close()
	}
}

// explain adds to err what it means and the fix, if the server's first bytes or its
// silence show them. The server may need another starttls, or none.
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

// explainedError is an error with the protocol that the server's first bytes look like,
// and the fix.
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
