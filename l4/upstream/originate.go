package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/l4/tlscause"
	"ambassador/policy"
)

// Conn is a connection to one address of an upstream, from the dial to
// the relay. It reads and writes the stream that carries the client's bytes: TLS if
// the upstream has TLS.
type Conn struct {
	*opening

	upstream  *Upstream
	candidate candidate
	settled   atomic.Bool       // the attempt is settled
	spoken    bool              // a byte that depends on the client was sent
	drops     bool              // the server drops its answer when it hears of the client's end
	released  atomic.Bool       // its place is free again
	forget    func()            // removes it from OwnDials; nil: it is not there
	config    *tls.Config       // of tls, or of the handshake that failed
	request   *tlscause.Request // of the server for our certificate; nil: there was none
}

// opening is what a Conn needs only until the relay owns the connection, which may then
// live for days.
type opening struct {
	session   string  // the ID of the session that it is made for; empty: for none
	header    string  // the PROXY header that it begins with; empty: upstream.localHeader
	to        *target // of a dynamic upstream
	raw       net.Conn
	tls       *tls.Conn          // nil: plaintext
	transport *relay.Transport   // below tls
	dialogue  *starttls.Dialogue // the rest of starttls; nil without starttls
	early     []byte             // bytes that were read while it was preconnected
}

var handedOver opening // of each Conn whose connection the relay owns; read only

func (c *Conn) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.stream().Read(b)
}

func (c *Conn) Write(b []byte) (int, error) { return c.stream().Write(b) }

// LocalAddr returns our address of the connection.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// Dialogue returns what is left of the STARTTLS protocol; nil if there is none.
func (c *Conn) Dialogue() *starttls.Dialogue { return c.dialogue }

// GoesTo reports whether the connection is to the address.
func (c *Conn) GoesTo(a *Address) bool { return c.candidate.at == a }

// Sent says that n bytes of the client were sent. If TLS needed the client's first
// message, the handshake counts as a byte.
func (c *Conn) Sent(n int64) { c.spoken = c.spoken || n > 0 || c.needsClient() }

// IsSettled reports whether the result of the attempt is recorded.
func (c *Conn) IsSettled() bool { return c.settled.Load() }

// SetDeadline bounds reads and writes. A TLS connection cannot be used any more after a
// write that has missed the deadline.
func (c *Conn) SetDeadline(t time.Time) error { return c.raw.SetDeadline(t) }

func (c *Conn) stream() net.Conn {
	if c.tls != nil {
		return c.tls
	}
	return c.raw
}

// Leg returns the connection for the relay, which owns it from then on.
func (c *Conn) Leg() relay.Leg {
	if c.tls != nil {
		leg := relay.TLS(c.tls, c.transport, c.early)
		if c.config.Renegotiation != tls.RenegotiateNever && c.tls.ConnectionState().Version < tls.VersionTLS13 {
			return leg.Renegotiating()
		}
		return leg
	}
	return relay.Plain(c.raw, c.early)
}

// HandedOver drops the references to what the relay owns now.
func (c *Conn) HandedOver() { c.opening = &handedOver }

// startTLS asks the server, in its protocol, to begin TLS.
func (c *Conn) startTLS(ctx context.Context) error {
	start := time.Now()
	unbound := netconn.Bound(ctx, c.raw)
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
func (c *Conn) timed(p Phase, start time.Time) {
	if !c.candidate.probe {
		c.upstream.timed(c.session, p, start)
	}
}

// needsClient reports whether TLS cannot begin before the client's first message.
func (c *Conn) needsClient() bool {
	p := c.upstream.protocol
	return p != nil && p.NeedsClient
}

// originate does the TLS handshake, bounded by ctx. In TLS 1.3 the alert of a server
// that refuses our certificate arrives only with the first read: see Settle.
func (c *Conn) originate(ctx context.Context) error {
	start := time.Now()
	cfg, err := c.upstream.cfg.TLS(c.candidate.endpoint.host, c.candidate.String())
	if err != nil {
		return &outcome.NotReadyError{Err: err}
	}
	c.config = cfg
	h := c.handshake(cfg, start)
	watch := tlscause.NewWatch(c.raw, cfg)
	h.Conn, h.ctx = watch, ctx
	shadow := c.upstream.secrets.Client(h)
	c.transport = relay.NewTransport(shadow)
	conn := tls.Client(c.transport, h.config)
	defer shadow.Forget() // also if the handshake panics
	err = conn.HandshakeContext(watch.Context(ctx))
	shadow.Established(conn.ConnectionState())
	if err != nil {
		return h.failed(watch.Seen().Explain(c.notTLS(err), c.upstream.cfg.Fault))
	}
	c.transport.Conn = shadow.On(c.raw) // only the handshake is watched
	c.tls, c.request = conn, c.candidate.at.sameRequest(watch.Seen().Request)
	c.learn(h, cfg, conn.ConnectionState(), time.Now())
	if f, certs := c.upstream.observer.Certificate, conn.ConnectionState().PeerCertificates; f != nil && len(certs) > 0 && !c.upstream.cfg.Dynamic {
		f(c.upstream.cfg.Name, certs[0].NotAfter)
	}
	c.timed(PhaseTLS, start)
	return nil
}

// notTLS returns the protocol's own error for plaintext in place of TLS, else err.
func (c *Conn) notTLS(err error) error {
	var header tls.RecordHeaderError
	if c.dialogue == nil || c.dialogue.NotTLS == nil || !errors.As(err, &header) {
		return err
	}
	return cmp.Or(c.dialogue.NotTLS(header.RecordHeader[:]), err)
}

// Protect is originate for a connection that needed the client's first message before
// TLS. No other address can replace it, so its failure is that of the attempt.
func (c *Conn) Protect(ctx context.Context) *outcome.Error {
	within, cancel := context.WithTimeout(ctx, c.upstream.soleTimeout())
	defer cancel()
	err := c.originate(within)
	if err == nil {
		return nil
	}
	c.refusesToResume(within, err)
	e := c.upstream.failed(within, outcome.StageTLS, c.candidate, err)
	c.settleUnless(ctx.Err() == context.Canceled, e) // the client does not wait any more
	return e
}

// protectAlone does for a trial what a session does from its client's first message to
// the end of TLS, if the protocol needs that message.
func (c *Conn) protectAlone(ctx context.Context) *outcome.Error {
	if !c.needsClient() {
		return nil
	}
	cfg, err := c.upstream.cfg.TLS(c.candidate.endpoint.host, c.candidate.String())
	if err != nil {
		err = &outcome.NotReadyError{Err: err}
	} else {
		within, cancel := task.WithTimeout(ctx, c.upstream.soleTimeout())
		defer cancel()
		unbound := netconn.Bound(within, c.raw)
		err = c.dialogue.BeginProbe(c.raw, cfg.ServerName)
		unbound()
	}
	if err != nil {
		e := c.upstream.failed(ctx, outcome.StageStartTLS, c.candidate, err)
		c.Settle(e.Reason, e)
		return e
	}
	return c.Protect(ctx)
}

// Settle records the result of the attempt; only the first call has an effect. Success
// is provisional after the handshake. The relay makes it final at the first byte from
// the server, after a second, or at an end that the client began. An empty reason is
// neutral: we or the client ended the attempt.
func (c *Conn) Settle(reason outcome.Reason, err error) {
	if c.settled.Swap(true) {
		return
	}
	verdict := ending.OutcomeOf(reason, err, c.spoken)
	if verdict == policy.Failure && (reason == outcome.UpstreamTLS || reason == outcome.UpstreamTLSRejected) {
		c.candidate.at.refusedWith.Store(c.config)
	}
	c.upstream.settled(c.candidate, reason, err, verdict)
}

// settleUnless settles the attempt as failed with e or, if the result is unknown, as
// neutral.
func (c *Conn) settleUnless(unknown bool, e *outcome.Error) {
	if unknown {
		c.Settle("", nil)
		return
	}
	c.Settle(e.Reason, e)
}

// Release gives back the connection's place at its address. It is called after the
// connection is closed; further calls do nothing.
func (c *Conn) Release() {
	if !c.released.Swap(true) {
		if c.forget != nil {
			c.forget()
		}
		c.candidate.release()
	}
}

// Succeeded settles the attempt as a success.
func (c *Conn) Succeeded() { c.Settle(outcome.OK, nil) }

// hand writes packet, which is from a client, and waits until the server closes the
// connection. It is bounded by ctx, which has a deadline.
func (c *Conn) hand(ctx context.Context, packet []byte) error {
	c.spoken = true
	unbound := netconn.Bound(ctx, c)
	defer unbound()
	if _, err := c.Write(packet); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(c, 64<<10)); err != nil && ending.EarlyReason(err) != outcome.UpstreamEarlyClose {
		e := c.Failure(outcome.StageDialogue, ending.EarlyReason(err), err)
		c.Settle(e.Reason, e)
		return e
	}
	c.Succeeded()
	return nil
}

// DialogueError returns the error of a dialogue that ended with err; its reason says
// whose fault that was. If it was the server's, DialogueError settles the attempt: as
// failed, or as neutral if the client does not wait any more.
func (c *Conn) DialogueError(ctx context.Context, err error) *outcome.Error {
	e := c.Failure(outcome.StageDialogue, ending.DialogueReason(err), err)
	if e.Reason.CountsAgainstAddress() {
		c.settleUnless(ctx.Err() == context.Canceled, e)
	}
	return e
}

// Failure returns the error of a connection that ended at stage, with its names.
func (c *Conn) Failure(stage outcome.Stage, reason outcome.Reason, err error) *outcome.Error {
	return &outcome.Error{Stage: stage, Reason: reason, Upstream: c.upstream.cfg.Name,
		Endpoint: c.candidate.endpoint.address, Address: c.candidate.String(),
		Err: ending.Explain(c.upstream.protocol, c.candidate.port(), stage, reason, c.refused(reason, err))}
}

// refused adds to err what it means, if it is the end of the server's side before its
// first byte. In TLS 1.3 the server judges our certificate only then.
func (c *Conn) refused(reason outcome.Reason, err error) error {
	if c.config == nil || reason != outcome.UpstreamTLSRejected && reason != outcome.UpstreamEarlyClose {
		return err
	}
	return tlscause.Seen{Config: c.config, Request: c.request, Done: true}.Explain(err, c.upstream.cfg.Fault)
}

// Abort ends a connection that no relay has taken. It sends a reset, unless the client
// has closed in good order: then the server sees an orderly close too.
func (c *Conn) Abort(end error) {
	c.Settle("", nil)
	defer c.Release()
	var e *outcome.Error
	if errors.As(end, &e) && (e.Reason == outcome.Closed || e.Reason == outcome.Probe && !netconn.IsReset(e) || e.Reason == outcome.BadGreeting && netconn.IsEOF(e.Err)) {
		c.closePolitely()
		return
	}
	netconn.Reset(c.raw)
}

// politeTimeout bounds the close_notify of closePolitely.
const politeTimeout = time.Second

// closePolitely sends the protocol's quit message, if there is one, ends TLS with
// close_notify, and closes the connection.
func (c *Conn) closePolitely() {
	defer c.Release()
	if c.tls != nil {
		c.raw.SetDeadline(time.Now().Add(politeTimeout))
		if p := c.upstream.protocol; p != nil && p.Quit != "" {
			io.WriteString(c.tls, p.Quit)
		}
		c.tls.CloseWrite()
	}
	c.raw.Close()
}

// CloseOnPanic is deferred while no other code would close the connection: a panic
// leaks neither a descriptor nor a breaker's ticket.
func (c *Conn) CloseOnPanic() {
	if v := recover(); v != nil {
		if c != nil {
			c.Settle("", nil)
			c.closeRaw()
		}
		panic(v) // the stack is still that of the first panic
	}
}

func (c *Conn) closeRaw() {
	defer c.Release()
	if c.raw != nil {
		c.raw.Close()
	}
}

// announce sends the PROXY header before any other byte.
func (c *Conn) announce(ctx context.Context) error {
	start := time.Now()
	header := c.header
	if header == "" {
		header = c.upstream.localHeader
	}
	defer netconn.Bound(ctx, c.raw)()
	if _, err := io.WriteString(c.raw, header); err != nil {
		return err
	}
	c.timed(PhaseProxy, start)
	return nil
}
