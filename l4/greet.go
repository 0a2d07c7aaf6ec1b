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

// ServerTLS is how a listener ends the TLS of its clients.
type ServerTLS struct {
	// Terminate is asked once for each client that has said hello. It may wait,
	// bounded by the hello's context. Its error means that our side is not ready
	// (outcome.NoIdentity).
	Terminate func(*tls.ClientHelloInfo) (Termination, error)
	// Denied says whether a handshake has failed because a client that has proved
	// who it is may not come in (outcome.Denied). Nil: there is nobody like that.
	Denied func(error) bool
	// Anonymous: clients show no certificate, so who comes without TLS, where the
	// listener's StartTLS knows such clients, is nobody less.
	Anonymous bool
	// IdentityReady says why an identity cannot be used now. Nil: it always can.
	IdentityReady func() error
	// Identities and Principals are the configuration's words for what is shown to
	// clients, and for who may come in: for the status alone.
	Identities, Principals []string
}

// Termination is how the handshake with one client goes on.
type Termination struct {
	// Config is not modified. Sessions are resumed only if it has ticket keys of its
	// own: without, crypto/tls takes those of a configuration that serves one client.
	Config *tls.Config
	// Principal names a client that Config has accepted by the leaf that it has
	// shown. Nil: clients show none.
	Principal func(leaf *x509.Certificate) string
}

// greet learns from the client what it wants before anything is dialled, in at
// most timeouts.handshake. A plain listener needs nothing: the server may be the
// one who speaks first.
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

// greets says whether something has to come from clients before anything is dialled.
func (c *ListenerConfig) greets() bool {
	return c.TLS != nil || c.proxied() || c.Request != RequestNone || c.SNI
}

// secure begins TLS.
func (s *session) secure(ctx context.Context) (err error) {
	var hello []byte
	if s.route.asked != nil {
		if hello, err = s.asksForTLS(ctx); err != nil || s.downstream.cancel {
			return err
		}
	}
	return s.terminate(ctx, hello)
}

// asksForTLS is what a client says before its hello, the beginning of which may
// have been read with it.
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
		closeAfterReading(s.downstream.conn) // it may have been told why
		return nil, &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.BadGreeting, Err: err}
	}
	if got.Cancel != nil {
		s.downstream.early, s.downstream.cancel = &earlyConn{s.downstream.conn, got.Cancel}, true
	}
	return got.Hello, nil
}

// terminate does the handshake of a TLS listener. Begun is what was read of the
// client's hello.
func (s *session) terminate(ctx context.Context, begun []byte) error {
	task.Leave(ctx) // a handshake computes for long
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
			closeAfterReading(s.downstream.conn) // a reset could take the alert away
		}
		if conn.alert != 0 {
			err = &net.OpError{Op: "remote error", Err: conn.alert}
		}
		return &outcome.Error{Stage: outcome.StageGreet, Reason: s.route.cfg.TLS.reason(err, conn), Err: explainHello(err)}
	}
	transport.Conn = s.downstream.conn // only the handshake needs turns
	s.downstream.tls, s.downstream.transport = client, transport
	if leaf := client.ConnectionState().PeerCertificates; how.Principal != nil && len(leaf) > 0 {
		s.downstream.principal = how.Principal(leaf[0])
		s.note(func(r *outcome.Record) { r.Principal = s.downstream.principal })
	}
	return nil
}

// reason names why the handshake on conn has failed.
func (t *ServerTLS) reason(err error, conn *handshakeConn) outcome.Reason {
	if t.Denied != nil && t.Denied(err) {
		return outcome.Denied
	}
	return handshakeReason(err, conn.heard)
}

// ask learns where the client wants to go, from its request or from what it was
// connected to before it was redirected to us, and by what name it greets the server.
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

// toldReasons are those of requests that readRequest cannot read whose client was
// told why.
var toldReasons = []outcome.Reason{outcome.BadGreeting, outcome.AuthFailed, outcome.Limit, outcome.Internal}

// readRequest reads a request, in at most timeouts.handshake.
func (s *session) readRequest(ctx context.Context, read func(net.Conn, preface.Credentials, bool) (request, error)) error {
	defer boundIO(ctx, s.downstream.conn)()
	r, err := read(s.requestStream(ctx), s.credentials(ctx), s.route.cfg.Context)
	if err != nil {
		var e *outcome.Error
		if errors.As(err, &e) && slices.Contains(toldReasons, e.Reason) {
			s.conclude()
			closeAfterReading(s.downstream.stream()) // it was told why
		}
		return err
	}
	s.downstream.request = &r
	s.note(func(rec *outcome.Record) { rec.User = r.User })
	s.downstream.unread(r.Early)
	return nil
}

// peekHello peeks at the client's ClientHello, if it sends one within
// timeouts.handshake. A client that does not goes on without a name.
func (s *session) peekHello(ctx context.Context) {
	unbound := boundIO(ctx, s.downstream.conn)
	hello, raw, _ := preface.ReadClientHello(&metered{s.downstream.stream(), s})
	unbound()
	s.downstream.unread(raw)
	s.downstream.hello = hello
	s.note(func(r *outcome.Record) { r.SNI, r.ECH = hello.ServerName, hello.ECH })
}

// takeHints learns what the client asks of its own connection: by the PROXY header,
// and by its request, which counts more.
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

// requestStream is stream for a request and its answer: if it is a bare socket, the
// session waits for it without a goroutine.
func (s *session) requestStream(ctx context.Context) net.Conn {
	conn := s.downstream.stream()
	if socket, ok := conn.(awaiter); ok {
		return &suspendingConn{awaiter: socket, Conn: conn, session: s, ctx: ctx}
	}
	return &meteredConn{conn, s}
}

// explainHello says what a client that does not begin with TLS has sent.
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

// passCancel passes a cancel request on that came without TLS, where the upstream
// has no dialogue that would; the server answers by closing, which is no failure.
func (s *session) passCancel(ctx context.Context, conn *upstreamConn) error {
	if !s.downstream.cancel {
		return nil
	}
	return s.sendCancel(ctx, conn, s.downstream.early.early)
}

// handshakeConn is a client's connection during its handshake, which computes only
// when it is its turn: at most as many do as there are processors. Thousands of
// handshakes would otherwise stand before every relay that has something to move; so
// each waits for its turn, and holds none while it waits for its client. (800 clients
// that send a hello and do no work of their own: a ping through another listener takes
// 1.5 ms, and 12 ms in the 99th percentile; without turns 17 to 104, and 300 to 490.) What the client has sent is bounded, and counted
// as held. It is used by one goroutine, but for Close.
type handshakeConn struct {
	net.Conn
	ctx   context.Context
	turns *turns
	from  policy.Source
	hold  func(int64)    // counts bytes for the session
	took  int            // bytes that the client has sent
	room  int            // bytes of the buffer that crypto/tls reads into
	held  bool           // it is our turn
	heard bool           // the client has sent a byte
	wrote bool           // we have answered its hello
	spoke bool           // we were the last to say something: if the handshake failed, an alert
	alert tls.AlertError // of the client, in plaintext; 0: none
}

const (
	// maxFlight bounds all that a client sends for its handshake: OpenSSL allows a list
	// of certificates 100 KiB.
	maxFlight = preface.MaxHello + 100<<10
	// usualFlight is what handshakes mostly take. What is beyond it is parsed into
	// certificates of many times its size.
	usualFlight = 8 << 10
)

// handshakeCost is about how much memory a handshake takes when its client has sent n
// bytes.
func handshakeCost(n int) int64 {
	return int64(4*min(n, usualFlight) + 12*max(n-usualFlight, 0))
}

// handshakeSizeError is a client that sends more than a handshake needs.
type handshakeSizeError struct {
	what string
	most int
}

func (e *handshakeSizeError) Error() string {
	return fmt.Sprintf("the client sent a %s of more than %d bytes", e.what, e.most)
}

// Read lets others have their turn until the client has said something.
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

// plainAlert is the alert in what a client has sent, if that is all. OpenSSL sends
// it so when it does not trust our certificate in TLS 1.3, while crypto/tls waits for
// what is encrypted and finds a "bad record MAC". A change_cipher_spec may be before it.
func plainAlert(records []byte) tls.AlertError {
	a := bytes.TrimPrefix(records, []byte("\x14\x03\x03\x00\x01\x01"))
	if len(a) == 7 && a[0] == 0x15 && a[1] == 3 && a[3] == 0 && a[4] == 2 {
		return tls.AlertError(a[6])
	}
	return 0
}

// Write is the connection's, which a client that reads nothing could only hold up
// with more than a socket's buffer takes.
func (c *handshakeConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.spoke, c.wrote = err == nil, true
	return n, err
}

// Close ends what waits, for crypto/tls at the end of ctx. The connection stays
// the session's, which knows whether to close or to reset it.
func (c *handshakeConn) Close() error { return c.SetDeadline(past) }

// turn waits for our turn, or for the end of ctx.
func (c *handshakeConn) turn() error {
	if c.held {
		return nil
	}
	err := c.turns.take(c.ctx, c.from)
	c.held = err == nil
	return err
}

// yield lets the next have its turn.
func (c *handshakeConn) yield() {
	if c.held {
		c.turns.giveBack()
		c.held = false
	}
}
