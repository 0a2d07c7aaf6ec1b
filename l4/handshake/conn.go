package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"ambassador/l4/limits"
	"ambassador/l4/netconn"
	"ambassador/l4/preface"
	"ambassador/l4/task"
	"ambassador/policy"
)

// Conn is a client's connection during its TLS handshake. The handshake uses CPU only in
// its turn, and there are as many turns at a time as processors. Without turns,
// thousands of handshakes would delay every relay that has bytes to move. A handshake
// holds no turn while it waits for its client. (Measured with 800 clients that send a
// hello and do no work of their own: a ping through another listener takes 1.5 ms, and
// 12 ms in the 99th percentile. Without turns it takes 17 to 104 ms, and 300 to 490 ms.)
// What the client sends is bounded and counted as held. After the handshake the caller
// calls Yield. Only Close may be called from another goroutine.
type Conn struct {
	net.Conn
	// Set by the caller.
	Context  context.Context // bounds the wait for a turn
	Turns    *limits.Turns
	From     policy.Source // the client, whose turn it is
	Hold     func(int64)   // counts bytes for the session
	Received bool          // the client has sent at least a byte, before the handshake or in it

	took     int            // bytes that the client has sent
	room     int            // size of the buffer that crypto/tls reads into
	held     bool           // this handshake has a turn
	wrote    bool           // we have answered the ClientHello
	answered bool           // not only with an alert
	spoke    bool           // our write was the last
	alert    tls.AlertError // the client's alert in plaintext; 0: none
}

const (
	// maxFlight bounds all that a client sends for its handshake: OpenSSL allows 100
	// KiB for a certificate list.
	maxFlight = preface.MaxHello + 100<<10
	// usualFlight is the size of most handshakes. Bytes beyond it are parsed into
	// certificates that take many times their size.
	usualFlight = 8 << 10
)

// cost estimates the memory of a handshake whose client has sent n bytes.
func cost(n int) int64 {
	return int64(4*min(n, usualFlight) + 12*max(n-usualFlight, 0))
}

// sizeError means that a client sent more than a handshake needs.
type sizeError struct {
	what string
	most int
}

func (e *sizeError) Error() string {
	return fmt.Sprintf("the client sent a %s of more than %d bytes", e.what, e.most)
}

// Read gives up the turn until the client has sent something.
func (c *Conn) Read(b []byte) (int, error) {
	c.spoke = false
	c.Yield()
	if more := len(b) - c.room; more > 0 {
		c.room += more
		c.Hold(int64(more))
	}
	n, err := c.Conn.Read(b)
	c.Received = c.Received || n > 0
	c.alert = plainAlert(b[:n])
	if err != nil {
		return n, err
	}
	c.Hold(cost(c.took+n) - cost(c.took))
	c.took += n
	if c.took > usualFlight {
		task.Leave(c.Context)
	}
	switch {
	case !c.wrote && c.took > preface.MaxHello:
		return 0, &sizeError{"ClientHello", preface.MaxHello}
	case c.took > maxFlight:
		return 0, &sizeError{"handshake, its certificates included,", maxFlight}
	}
	return n, c.Turn()
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

// recordHandshake is the type of a TLS record with handshake messages (RFC 8446, B.1).
const recordHandshake = 22

// Write keeps the turn. It can only block on a client that reads nothing, and only if
// there is more to write than a socket's buffer takes.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.spoke, c.wrote = err == nil, true
	c.answered = c.answered || len(b) > 0 && b[0] == recordHandshake
	return n, err
}

// Close interrupts pending I/O; crypto/tls calls it when Context ends. The session keeps
// the connection and decides whether to close or to reset it.
func (c *Conn) Close() error { return c.SetDeadline(netconn.Past) }

// Turn waits for a turn, or until Context ends. If the handshake has a turn, it keeps it.
func (c *Conn) Turn() error {
	if c.held {
		return nil
	}
	err := c.Turns.Take(c.Context, c.From)
	c.held = err == nil
	return err
}

// Yield gives the turn back, so that another handshake can continue.
func (c *Conn) Yield() {
	if c.held {
		c.Turns.GiveBack()
		c.held = false
	}
}

// Spoke reports whether our write was the last. If the handshake failed, that was an
// alert.
func (c *Conn) Spoke() bool { return c.spoke }

// Answered reports whether we have answered the ClientHello, and not only with an alert.
func (c *Conn) Answered() bool { return c.answered }

// Alert is the alert that the client has sent in plaintext; 0: none.
func (c *Conn) Alert() tls.AlertError { return c.alert }
