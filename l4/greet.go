package l4

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/policy"
)

// ServerTLS configures how a listener terminates its clients' TLS.
type ServerTLS struct {
	// Terminate is called once for each ClientHello. It may wait, bounded by the
	// context of the hello. An error means that our side is not ready
	// (outcome.NoIdentity).
	Terminate func(*tls.ClientHelloInfo) (Termination, error)
	// Denied reports whether a handshake failed because an authenticated client is not
	// allowed (outcome.Denied). If nil, every authenticated client is allowed.
	Denied func(error) bool
	// Anonymous means that clients show no certificate. A client that the listener's
	// StartTLS accepts without TLS then has no fewer credentials than any other.
	Anonymous bool
	// IdentityReady returns why an identity cannot be used now. If nil, identities are
	// always usable.
	IdentityReady func() error
	// Identities are the identities that clients are shown, and Principals the clients
	// that are allowed, both as the configuration spells them. Only the status uses
	// them.
	Identities, Principals []string
}

// Termination says how to continue the handshake with one client.
type Termination struct {
	// Config is not modified. Sessions are resumed only if Config has ticket keys of
	// its own: without them, crypto/tls uses keys that belong to the configuration of
	// one client only.
	Config *tls.Config
	// Principal names a client that Config has accepted, from the leaf that the client
	// has shown. Nil if clients show no certificate.
	Principal func(leaf *x509.Certificate) string
}

// greet learns from the client what it wants before anything is dialled, in at most
// timeouts.handshake. A plain listener reads nothing here: the server may speak first.
func (s *session) greet(ctx context.Context) error {
	s.at(outcome.StageGreet)
	cfg := &s.route.cfg
	if !cfg.greets() {
		return nil
	}
	ctx, cancel := task.WithDeadline(ctx, s.handshakeDeadline())
	defer cancel()
	defer s.unlist()
	if cfg.proxied() {
		if err := s.proxied(ctx); err != nil {
			return err
		}
	}
	if cfg.TLS != nil {
		if err := s.secure(ctx); err != nil || s.downstream.cancel {
			return err
		}
	}
	return s.ask(ctx)
}

// greets reports whether the session must read from its client before it dials.
func (c *ListenerConfig) greets() bool {
	return c.TLS != nil || c.proxied() || c.Request != RequestNone || c.SNI
}

// secure begins TLS with the client.
func (s *session) secure(ctx context.Context) (err error) {
	var hello []byte
	if s.route.asked != nil {
		if hello, err = s.asksForTLS(ctx); err != nil || s.downstream.cancel {
			return err
		}
	}
	return s.terminate(ctx, hello)
}

// asksForTLS reads the client's request for TLS. It returns the beginning of the
// ClientHello if that was read along with it.
func (s *session) asksForTLS(ctx context.Context) (hello []byte, err error) {
	defer boundIO(ctx, s.downstream.conn)()
	got, err := s.route.asked.Accept(s.downstream.conn)
	if err == nil && got.Cancel != nil && !s.route.cfg.TLS.Anonymous {
		err = &starttls.GreetingError{Protocol: s.route.asked.Name,
			Detail: "a cancel request without TLS, and so without the certificate that the listener demands (PostgreSQL's clients before 17 do)"}
	}
	if err != nil {
		if reason := dialogueReason(err); reason != outcome.BadGreeting {
			return nil, &outcome.Error{Stage: outcome.StageGreet, Reason: reason, Err: err}
		}
		closeAfterReading(s.downstream.conn) // the client may have been told why
		return nil, &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.BadGreeting, Err: err}
	}
	if got.Cancel != nil {
		s.downstream.early, s.downstream.cancel = &earlyConn{s.downstream.conn, got.Cancel}, true
	}
	return got.Hello, nil
}

// terminate runs the handshake of a TLS listener. begun is the part of the ClientHello
// that was already read.
func (s *session) terminate(ctx context.Context, begun []byte) error {
	task.Leave(ctx) // a handshake needs much CPU time
	conn := &handshakeConn{Conn: &earlyConn{s.downstream.conn, begun}, ctx: ctx, turns: s.server.turns, from: s.downstream.source(), hold: s.hold, heard: s.route.asked != nil}
	defer conn.yield()
	transport := relay.NewTransport(conn)
	var how Termination
	client := tls.Server(transport, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		conn.yield() // Terminate may wait
		var err error
		if how, err = s.route.cfg.TLS.Terminate(hello); err != nil {
			return nil, &notReadyError{err}
		}
		return how.Config, conn.turn()
	}})
	if err := client.HandshakeContext(ctx); err != nil {
		if conn.spoke {
			closeAfterReading(s.downstream.conn) // a reset could discard the alert
		}
		if conn.alert != 0 {
			err = &net.OpError{Op: "remote error", Err: conn.alert}
		}
		return &outcome.Error{Stage: outcome.StageGreet, Reason: s.route.cfg.TLS.reason(err, conn), Err: explainHello(err)}
	}
	transport.Conn = s.downstream.conn // only the handshake takes turns
	s.downstream.tls, s.downstream.transport = client, transport
	if leaf := client.ConnectionState().PeerCertificates; how.Principal != nil && len(leaf) > 0 {
		s.downstream.principal = how.Principal(leaf[0])
		s.note(func(r *outcome.Record) { r.Principal = s.downstream.principal })
	}
	return nil
}

// reason classifies why the handshake on conn failed.
func (t *ServerTLS) reason(err error, conn *handshakeConn) outcome.Reason {
	if t.Denied != nil && t.Denied(err) {
		return outcome.Denied
	}
	return handshakeReason(err, conn.heard)
}

// ask learns the client's destination, from its request or from the address that it was
// connected to before it was redirected to us. It also learns the server name that the
// client sends.
func (s *session) ask(ctx context.Context) error {
	cfg := &s.route.cfg
	switch cfg.Request {
	case RequestSOCKS5:
		if err := s.readRequest(ctx, readSOCKS5); err != nil {
			return err
		}
	case RequestConnect:
		if err := s.readRequest(ctx, readConnect); err != nil {
			return err
		}
	case RequestOriginal:
		to, err := originalDestination(s.downstream.conn)
		if err != nil {
			return &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.BadGreeting, Err: err}
		}
		s.downstream.request = &request{Request: preface.Request{Addr: to.Addr().Unmap(), Port: to.Port()}}
	}
	if cfg.SNI {
		s.peekHello(ctx)
	}
	return s.takeHints(ctx)
}

// toldReasons are the failures of readRequest after which the client has been told why.
var toldReasons = []outcome.Reason{outcome.BadGreeting, outcome.AuthFailed, outcome.Limit, outcome.Internal}

// readRequest reads a request, in at most timeouts.handshake.
func (s *session) readRequest(ctx context.Context, read func(net.Conn, preface.Credentials, bool) (request, error)) error {
	defer boundIO(ctx, s.downstream.conn)()
	r, err := read(s.requestStream(ctx), s.credentials(ctx), s.route.cfg.Context)
	if err != nil {
		var e *outcome.Error
		if errors.As(err, &e) && slices.Contains(toldReasons, e.Reason) {
			s.conclude()
			closeAfterReading(s.downstream.stream()) // the client was told why
		}
		return err
	}
	s.downstream.request = &r
	s.note(func(rec *outcome.Record) { rec.User = r.User })
	s.downstream.unread(r.Early)
	return nil
}

// peekHello peeks at the ClientHello, if the client sends one within
// timeouts.handshake. Otherwise the session continues without a server name.
func (s *session) peekHello(ctx context.Context) {
	unbound := boundIO(ctx, s.downstream.conn)
	hello, raw, _ := preface.ReadClientHello(&metered{s.downstream.stream(), s})
	unbound()
	s.downstream.unread(raw)
	s.downstream.hello = hello
	s.note(func(r *outcome.Record) { r.SNI, r.ECH = hello.ServerName, hello.ECH })
}

// takeHints reads the client hints, from the PROXY header and from the client's
// request. The request takes precedence.
func (s *session) takeHints(ctx context.Context) error {
	g := s.downstream
	if !s.route.cfg.Context {
		return nil
	}
	var asked preface.Hints
	given, err := g.header.Hints()
	if err == nil && g.request != nil {
		asked, err = g.request.Hints()
	}
	if err != nil {
		e := &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.BadGreeting, Err: err}
		if r := s.downstream.requested(); r != nil {
			s.decline(ctx, r, e)
		}
		return e
	}
	g.hints = asked.Over(given)
	s.note(func(r *outcome.Record) { r.Tag = g.hints.Tag })
	return nil
}

// requestStream is stream for a request and its answer. On a plain socket the session
// waits without a goroutine.
func (s *session) requestStream(ctx context.Context) net.Conn {
	conn := s.downstream.stream()
	if socket, ok := conn.(awaiter); ok {
		return &suspendingConn{awaiter: socket, Conn: conn, session: s, ctx: ctx}
	}
	return &meteredConn{conn, s}
}

// explainHello adds what the client sent instead of a TLS record.
func explainHello(err error) error {
	var header tls.RecordHeaderError
	if !errors.As(err, &header) {
		return err
	}
	what := "the listener has tls"
	if header.RecordHeader == [5]byte{0, 0, 0, 8, 4} {
		what = "that is how PostgreSQL asks for TLS: set starttls: postgres of the listener"
	}
	return fmt.Errorf("the client does not begin with TLS, but with %q; %s: %w", header.RecordHeader[:], what, err)
}

// passCancel forwards a cancel request that was sent without TLS, if the upstream has
// no dialogue that would forward it. The server answers by closing, which is not a
// failure.
func (s *session) passCancel(ctx context.Context, conn *upstreamConn) error {
	if !s.downstream.cancel {
		return nil
	}
	return s.sendCancel(ctx, conn, s.downstream.early.early)
}

// handshakeConn is a client's connection during its TLS handshake. The handshake uses
// CPU only in its turn, and there are as many turns at a time as processors. Without
// turns, thousands of handshakes would delay every relay that has bytes to move. A
// handshake holds no turn while it waits for its client. (Measured with 800 clients
// that send a hello and do no work of their own: a ping through another listener takes
// 1.5 ms, and 12 ms in the 99th percentile. Without turns it takes 17 to 104 ms, and
// 300 to 490 ms.) What the client sends is bounded and counted as held. Only Close may
// be called from another goroutine.
type handshakeConn struct {
	net.Conn
	ctx   context.Context
	turns *turns
	from  policy.Source
	hold  func(int64)    // counts bytes for the session
	took  int            // bytes that the client has sent
	room  int            // size of the buffer that crypto/tls reads into
	held  bool           // this handshake has a turn
	heard bool           // the client has sent at least a byte
	wrote bool           // we have answered the ClientHello
	spoke bool           // our write was the last; if the handshake failed, that was an alert
	alert tls.AlertError // the client's alert in plaintext; 0: none
}

const (
	// maxFlight bounds all that a client sends for its handshake: OpenSSL allows 100
	// KiB for a certificate list.
	maxFlight = preface.MaxHello + 100<<10
	// usualFlight is the size of most handshakes. Bytes beyond it are parsed into
	// certificates that take many times their size.
	usualFlight = 8 << 10
)

// handshakeCost estimates the memory of a handshake whose client has sent n bytes.
func handshakeCost(n int) int64 {
	return int64(4*min(n, usualFlight) + 12*max(n-usualFlight, 0))
}

// handshakeSizeError means that a client sent more than a handshake needs.
type handshakeSizeError struct {
	what string
	most int
}

func (e *handshakeSizeError) Error() string {
	return fmt.Sprintf("the client sent a %s of more than %d bytes", e.what, e.most)
}

// Read gives up the turn until the client has sent something.
func (c *handshakeConn) Read(b []byte) (int, error) {
	c.spoke = false
	c.yield()
	if more := len(b) - c.room; more > 0 {
		c.room += more
		c.hold(int64(more))
	}
	n, err := c.Conn.Read(b)
	c.heard = c.heard || n > 0
	c.alert = plainAlert(b[:n])
	if err != nil {
		return n, err
	}
	c.hold(handshakeCost(c.took+n) - handshakeCost(c.took))
	c.took += n
	switch {
	case !c.wrote && c.took > preface.MaxHello:
		return 0, &handshakeSizeError{"ClientHello", preface.MaxHello}
	case c.took > maxFlight:
		return 0, &handshakeSizeError{"handshake, its certificates included,", maxFlight}
	}
	return n, c.turn()
}

// plainAlert returns the alert in records if they contain nothing else. In TLS 1.3,
// OpenSSL sends a plaintext alert when it does not trust our certificate. crypto/tls
// expects an encrypted record there and reports a "bad record MAC". A
// change_cipher_spec may precede the alert.
func plainAlert(records []byte) tls.AlertError {
	a := bytes.TrimPrefix(records, []byte("\x14\x03\x03\x00\x01\x01"))
	if len(a) == 7 && a[0] == 0x15 && a[1] == 3 && a[3] == 0 && a[4] == 2 {
		return tls.AlertError(a[6])
	}
	return 0
}

// Write keeps the turn. It can only block on a client that reads nothing, and only if
// there is more to write than a socket's buffer takes.
func (c *handshakeConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.spoke, c.wrote = err == nil, true
	return n, err
}

// Close interrupts pending I/O; crypto/tls calls it when ctx ends. The session keeps
// the connection and decides whether to close or to reset it.
func (c *handshakeConn) Close() error { return c.SetDeadline(past) }

// turn waits for a turn, or until ctx ends.
func (c *handshakeConn) turn() error {
	if c.held {
		return nil
	}
	err := c.turns.take(c.ctx, c.from)
	c.held = err == nil
	return err
}

// yield gives the turn back, so that another handshake can continue.
func (c *handshakeConn) yield() {
	if c.held {
		c.turns.giveBack()
		c.held = false
	}
}
