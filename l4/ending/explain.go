package ending

import (
	"crypto/tls"
	"errors"
	"fmt"

	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/starttls"
)

// HandshakeError is the error of a TLS handshake, with what explains it.
type HandshakeError struct {
	Err      error
	Hello    int  // the size of our ClientHello
	Received int  // bytes
	Offered  bool // we offered to resume a session
}

// Error returns the text of Err.
func (e *HandshakeError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *HandshakeError) Unwrap() error { return e.Err }

// onePacket is about how many bytes of a ClientHello fit into one packet.
const onePacket = 1400

// advice says what a failed handshake may mean where the server answered our hello with
// silence; empty if it did not. Package tlscause knows what alerts mean. Dialogue reports
// whether a dialogue came before TLS, so that the server has it.
func (e *HandshakeError) advice(reason outcome.Reason, dialogue bool) string {
	switch large := e.Hello > onePacket; {
	case e.Received > 0:
		return ""
	case reason == outcome.Timeout && !dialogue:
		text := "the server sent nothing after our TLS hello: if it speaks no TLS on this port, remove tls (forward: --plain); if its protocol begins in plaintext, set starttls"
		if large {
			text += "; a firewall may drop a large hello, which tls.post_quantum: off makes smaller"
		}
		return text
	case large && (reason == outcome.Timeout || netconn.IsHangUp(e.Err)):
		return fmt.Sprintf("the server sent nothing after our TLS hello of %d bytes: some firewalls and old servers drop a hello that does not fit into one packet; tls.post_quantum: off makes it smaller", e.Hello)
	}
	return ""
}

// Explain adds to err what it means and the fix, if the server's first bytes or its
// silence show them: the server may need another starttls, or none. P is the protocol of
// the upstream, nil if it has none, and port that of the address.
func Explain(p *starttls.Protocol, port uint16, stage outcome.Stage, reason outcome.Reason, err error) error {
	if stage == outcome.StageRelay && reason == outcome.UpstreamTLS {
		return &ExplainedError{Err: err, Advice: adviceAfterHandshake(err)}
	}
	if stage != outcome.StageTLS {
		return err
	}
	if _, fix := outcome.CauseAndFix(err); fix != "" {
		return err
	}
	var (
		header       tls.RecordHeaderError
		handshake    *HandshakeError
		what, advice string
	)
	plaintext, before := errors.As(err, &header), errors.As(err, &handshake) // before the end of the handshake
	if p != nil && p.IfNoTLS != "" && (plaintext || before && netconn.IsHangUp(err)) {
		return &ExplainedError{Err: err, Advice: p.IfNoTLS}
	}
	switch {
	case plaintext:
		what, advice = starttls.Identify(header.RecordHeader[:], port)
	case before && netconn.IsHangUp(err) && p == nil:
		what, advice = starttls.Identify(nil, port)
	}
	if what+advice == "" && before {
		advice = handshake.advice(reason, p != nil)
	}
	if what == "" && advice == "" {
		return err
	}
	return &ExplainedError{Err: err, What: what, Advice: advice}
}

// ExplainedError is an error with the protocol that the server's first bytes look like,
// and the fix.
type ExplainedError struct {
	Err          error
	What, Advice string // empty: not known
}

// Unwrap returns Err.
func (e *ExplainedError) Unwrap() error { return e.Err }

// Fix returns Advice.
func (e *ExplainedError) Fix() string { return e.Advice }

// Error returns the texts of Err, What and Advice.
func (e *ExplainedError) Error() string {
	s := e.Err.Error()
	if e.What != "" {
		s += "; the server's answer looks like " + e.What
	}
	if e.Advice != "" {
		s += "; " + e.Advice
	}
	return s
}

// Alerts that we send after the handshake.
const (
	alertBadRecordMAC    = 20
	alertNoRenegotiation = 100
)

// adviceAfterHandshake says what the error means with which our TLS ended a session.
func adviceAfterHandshake(err error) string {
	var header tls.RecordHeaderError
	switch n := netconn.OurAlert(err); {
	case n == alertNoRenegotiation:
		return "the server asked to renegotiate TLS, as some do for a client certificate or after a while: tls.unsafe_renegotiation: true allows it; better let the server ask in the first handshake, or speak TLS 1.3"
	case n == alertBadRecordMAC:
		return "a record of the server was damaged on its way, or its TLS is faulty: look into the server's log"
	case errors.As(err, &header):
		return "the server sent bytes that are no TLS after the handshake: it, or a proxy between, may have written an error in plaintext"
	}
	return "the server broke the rules of TLS after the handshake: its log may say why"
}
