package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/task"
	"ambassador/l4/tlscause"
)

// tlsMemory is what TLS handshakes with one address have shown of its server. Times are
// in nanoseconds after upstream.born. The zero value knows nothing.
type tlsMemory struct {
	fullUntil      atomic.Int64 // until when no session is resumed, because the server refuses that
	classicalUntil atomic.Int64 // until when no post-quantum key is sent, because the server does not use it
	resumes        atomic.Bool  // the server has resumed a session
}

const (
	// fullFor is how long handshakes are full with a server that refused to resume a
	// session.
	fullFor = 10 * time.Minute
	// classicalFor is how long a server that has chosen a classical key exchange is
	// offered nothing else. After that it may have learned a post-quantum one.
	classicalFor = time.Hour
)

// handshake is one TLS handshake with an upstream, and the connection below it.
type handshake struct {
	net.Conn
	ctx      context.Context
	config   *tls.Config
	offered  bool // a session is offered: crypto/tls does not report that if the handshake fails
	hello    int  // bytes sent before the first byte was received
	received int  // bytes
}

// usualFlight is what most servers send for a handshake, in bytes. A chain that is made
// for it takes a hundred signatures to judge, which must not hold a loop up.
const usualFlight = 6 << 10

// Read counts for the explanation of a failure.
func (h *handshake) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if h.received += n; h.received > usualFlight {
		task.Leave(h.ctx)
	}
	return n, err
}

// Write counts for the explanation of a failure.
func (h *handshake) Write(b []byte) (int, error) {
	n, err := h.Conn.Write(b)
	if h.received == 0 {
		h.hello += n
	}
	return n, err
}

// handshake prepares a handshake with the configuration, or a variant of it that suits
// what earlier handshakes with the address have shown.
func (c *Conn) handshake(config *tls.Config, now time.Time) *handshake {
	memory, age := &c.candidate.at.tls, c.upstream.age(now)
	// If the server refuses, a connection that depends on its client cannot be made
	// again. So a probe has to find out first.
	unproved := c.needsClient() && !c.candidate.probe && !memory.resumes.Load()
	k := tlscause.Variant{Base: config, Full: unproved || age < memory.fullUntil.Load(),
		Classical: config.CurvePreferences == nil && age < memory.classicalUntil.Load()}
	h := &handshake{Conn: c.raw, config: c.upstream.variants.Of(k, &c.upstream.secrets)}
	if sessions := h.config.ClientSessionCache; sessions != nil {
		session, ok := sessions.Get(c.sessionKey(config))
		h.offered = ok && session != nil
	}
	return h
}

// sessionKey is the key with which crypto/tls asks the session cache.
func (c *Conn) sessionKey(config *tls.Config) string {
	if config.ServerName != "" || c.raw == nil {
		return config.ServerName
	}
	return c.raw.RemoteAddr().String()
}

// learn remembers what the server has chosen. An attacker cannot influence that if the
// server is authenticated.
func (c *Conn) learn(h *handshake, base *tls.Config, s tls.ConnectionState, now time.Time) {
	memory := &c.candidate.at.tls
	c.drops = s.Version < tls.VersionTLS13 && !c.upstream.cfg.HoldHalfClose
	if s.DidResume {
		memory.resumes.Store(true)
	}
	authenticated := !base.InsecureSkipVerify || base.VerifyConnection != nil
	classical := s.Version < tls.VersionTLS13 || slices.Contains(tlscause.ClassicalCurves(), s.CurveID)
	if authenticated && classical && h.config.CurvePreferences == nil {
		memory.classicalUntil.Store(c.upstream.age(now) + int64(classicalFor))
	}
}

// failed returns the error of the handshake.
func (h *handshake) failed(err error) *ending.HandshakeError {
	return &ending.HandshakeError{Err: err, Hello: h.hello, Received: h.received, Offered: h.offered}
}

// refusesToResume reports whether a handshake failed that offered to resume a session.
// A full handshake may succeed: there are servers that answer the offer with an alert,
// as OpenSSL does without a session id context. Unless our own verdict on the
// certificate ended the handshake, no session is resumed with the address for fullFor.
func (c *Conn) refusesToResume(ctx context.Context, err error) bool {
	var (
		failed  *ending.HandshakeError
		verdict *tls.CertificateVerificationError
	)
	if ctx.Err() != nil || !errors.As(err, &failed) || !failed.Offered {
		return false
	}
	if !errors.As(err, &verdict) {
		memory := &c.candidate.at.tls
		memory.resumes.Store(false)
		memory.fullUntil.Store(c.upstream.age(time.Now()) + int64(fullFor))
		c.candidate.at.log().Info("TLS failed with a session that was to be resumed; handshakes with the server are full now", "for", fullFor, "cause", err)
	}
	return true
}

// prepareAgain is prepare with a new connection to the same address: nothing of the
// client was sent on the old one.
func (c *Conn) prepareAgain(ctx context.Context, steps preparation) (outcome.Stage, error) {
	if c.forget != nil {
		c.forget()
		c.forget = nil
	}
	c.raw.Close()
	c.raw, c.transport, c.dialogue = nil, nil, nil
	raw, err := c.upstream.dialOne(ctx, c.candidate)
	if err != nil {
		return outcome.StageDial, err
	}
	c.raw, c.forget = raw, c.upstream.dials.Add(raw)
	return c.prepare(ctx, steps)
}

// holdFor is how long a client's FIN is held back from a server that sends nothing.
const holdFor = 30 * time.Second

// HoldFIN is the relay's HoldFIN for the connection.
func (c *Conn) HoldFIN() time.Duration {
	if c.tls == nil || !c.upstream.cfg.HoldHalfClose {
		return 0
	}
	return holdFor
}

// errAnswerLost explains the end of a session whose client ended first, and got nothing.
var errAnswerLost = errors.New("the server ended without an answer once it had heard of the client's end: up to TLS 1.2 it must drop then what it has not sent (RFC 5246, 7.2.1). If an answer was due, tls.hold_half_close: true holds the client's end back")

// LostAnswer returns an error that says so if a session with the result r ended because
// the server dropped its answer, as TLS below 1.3 demands when it hears of the client's
// end.
func (c *Conn) LostAnswer(r relay.Result) error {
	if c.drops && r.End == relay.EndClosed && r.FirstClose == relay.Downstream && r.Up > 0 && r.Down == 0 {
		return errAnswerLost
	}
	return nil
}

// sameRequest returns r, or the last request of the address if it is the same.
func (a *Address) sameRequest(r *tlscause.Request) *tlscause.Request {
	if last := a.request.Load(); r != nil && last != nil && *last == *r {
		return last
	}
	a.request.Store(r)
	return r
}
