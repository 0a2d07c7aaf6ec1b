package l4

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"

	"ambassador/l4/ending"
	"ambassador/l4/handshake"
	"ambassador/l4/limits"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
	"ambassador/l4/relay"
	"ambassador/l4/request"
	"ambassador/l4/starttls"
	"ambassador/l4/task"
	"ambassador/l4/tlscause"
	"ambassador/l4/tlsrecord"
	"ambassador/l4/upstream"
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
	// Fault says what is wrong with a certificate that clients are shown. It may be nil.
	Fault tlscause.Fault
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
	defer netconn.Bound(ctx, s.downstream.conn)()
	got, err := s.route.asked.Accept(s.downstream.stream())
	if err == nil && got.Cancel != nil && !s.route.cfg.TLS.Anonymous {
		err = &starttls.GreetingError{Protocol: s.route.asked.Name,
			Detail: "a cancel request without TLS, and so without the certificate that the listener demands (PostgreSQL's clients before 17 do)"}
	}
	if err != nil {
		if reason := ending.DialogueReason(err); reason != outcome.BadGreeting {
			return nil, &outcome.Error{Stage: outcome.StageGreet, Reason: reason, Err: err}
		}
		netconn.CloseAfterReading(s.downstream.conn) // the client may have been told why
		return nil, &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.BadGreeting, Err: err}
	}
	if got.Cancel != nil {
		s.downstream.early, s.downstream.cancel = &earlyConn{s.downstream.conn, got.Cancel}, true
	}
	return got.Hello, nil
}

// clientTLS is what all handshakes in which we are the server share. It has a lock of its
// own.
type clientTLS struct{ secrets tlsrecord.KeyLog }

// terminate runs the handshake of a TLS listener. begun is the part of the ClientHello
// that was already read.
func (s *session) terminate(ctx context.Context, begun []byte) error {
	conn := &handshake.Conn{Conn: &earlyConn{s.downstream.stream(), begun}, Context: ctx, Turns: s.server.turns, From: s.downstream.source(), Hold: s.hold, Received: s.route.asked != nil}
	defer conn.Yield()
	shadow := s.server.inbound.secrets.Server(conn)
	transport := relay.NewTransport(shadow)
	var how Termination
	var seen tlscause.Downstream
	judging := ctx
	defer func() { judging = nil }() // the connection keeps its configuration
	client := tls.Server(transport, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		seen.Hello = hello
		conn.Yield() // Terminate may wait
		if ready := s.route.cfg.TLS.IdentityReady; ready != nil && ready() != nil {
			task.Leave(ctx) // it waits for the identity
		}
		var err error
		if how, err = s.route.cfg.TLS.Terminate(hello); err != nil {
			return nil, &outcome.NotReadyError{Err: err}
		}
		cfg := how.Config.Clone() // has the keys of tickets as they are now
		cfg.KeyLogWriter = &s.server.inbound.secrets
		cfg.VerifyConnection = leavingForLongChains(&judging, cfg.VerifyConnection)
		return cfg, conn.Turn()
	}})
	defer shadow.Forget() // also if the handshake panics
	err := client.HandshakeContext(ctx)
	shadow.Established(client.ConnectionState())
	if err != nil {
		if conn.Spoke() {
			netconn.CloseAfterReading(s.downstream.conn) // a reset could discard the alert
		}
		if alert := conn.Alert(); alert != 0 {
			err = &net.OpError{Op: "remote error", Err: alert}
		}
		seen.Config, seen.Answered, seen.Certified = how.Config, conn.Answered(), len(client.ConnectionState().PeerCertificates) > 0
		return &outcome.Error{Stage: outcome.StageGreet, Reason: s.route.cfg.TLS.reason(err, conn), Err: seen.Explain(err, s.route.cfg.TLS.Fault)}
	}
	transport.Conn = shadow.On(s.downstream.conn)                                         // only the handshake takes turns
	s.downstream.early, s.downstream.tls, s.downstream.transport = nil, client, transport // the ClientHello has more bytes than early had
	if leaf := client.ConnectionState().PeerCertificates; how.Principal != nil && len(leaf) > 0 {
		s.downstream.principal = how.Principal(leaf[0])
		s.note(func(r *outcome.Record) { r.Principal = s.downstream.principal })
	}
	return nil
}

// usualChain is how many certificates most clients send. The judgement of a chain that is
// made for it can take a hundred signatures.
const usualChain = 4

// leavingForLongChains is verify for a handshake on a loop, whose context ctx has.
func leavingForLongChains(ctx *context.Context, verify func(tls.ConnectionState) error) func(tls.ConnectionState) error {
	if verify == nil {
		return nil
	}
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) > usualChain {
			task.Leave(*ctx)
		}
		return verify(cs)
	}
}

// reason classifies why the handshake on conn failed.
func (t *ServerTLS) reason(err error, conn *handshake.Conn) outcome.Reason {
	if t.Denied != nil && t.Denied(err) {
		return outcome.Denied
	}
	return ending.HandshakeReason(err, conn.Received)
}

// ask learns the client's destination, from its request or from the address that it was
// connected to before it was redirected to us. It also learns the server name that the
// client sends.
func (s *session) ask(ctx context.Context) error {
	cfg := &s.route.cfg
	switch cfg.Request {
	case RequestSOCKS5:
		if err := s.readRequest(ctx, request.ReadSOCKS5); err != nil {
			return err
		}
	case RequestConnect:
		if err := s.readRequest(ctx, request.ReadConnect); err != nil {
			return err
		}
	case RequestOriginal:
		to, err := netconn.OriginalDestination(s.downstream.conn)
		if err != nil {
			return &outcome.Error{Stage: outcome.StageGreet, Reason: outcome.BadGreeting, Err: err}
		}
		s.downstream.request = &request.Request{Request: preface.Request{Addr: to.Addr().Unmap(), Port: to.Port()}}
	}
	if cfg.SNI {
		s.peekHello(ctx)
	}
	return s.takeHints(ctx)
}

// toldReasons are the failures of readRequest after which the client has been told why.
var toldReasons = []outcome.Reason{outcome.BadGreeting, outcome.AuthFailed, outcome.Limit, outcome.Internal}

// readRequest reads a request, in at most timeouts.handshake.
func (s *session) readRequest(ctx context.Context, read func(net.Conn, preface.Credentials, bool) (request.Request, error)) error {
	defer netconn.Bound(ctx, s.downstream.conn)()
	r, err := read(s.requestStream(ctx), s.credentials(ctx), s.route.cfg.Context)
	if err != nil {
		var e *outcome.Error
		if errors.As(err, &e) && slices.Contains(toldReasons, e.Reason) {
			s.conclude()
			netconn.CloseAfterReading(s.downstream.stream()) // the client was told why
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
	unbound := netconn.Bound(ctx, s.downstream.conn)
	hello, raw, _ := preface.ReadClientHello(s.metered(s.downstream.stream()))
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
	if hints := asked.Over(given); hints != (preface.Hints{}) {
		g.hints = &hints
		s.note(func(r *outcome.Record) { r.Tag = hints.Tag })
	}
	return nil
}

// requestStream is stream for a request and its answer. On a plain socket the session
// waits without a goroutine.
func (s *session) requestStream(ctx context.Context) net.Conn {
	conn := s.downstream.stream()
	if socket, ok := conn.(awaiter); ok {
		return &suspendingConn{awaiter: socket, Conn: conn, session: s, ctx: ctx}
	}
	return &limits.MeteredConn{Conn: conn, Hold: s.hold}
}

// passCancel forwards a cancel request that was sent without TLS, if the upstream has
// no dialogue that would forward it. The server answers by closing, which is not a
// failure.
func (s *session) passCancel(ctx context.Context, conn *upstream.Conn) error {
	if !s.downstream.cancel {
		return nil
	}
	return s.sendCancel(ctx, conn, s.downstream.early.early)
}
