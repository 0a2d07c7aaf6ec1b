package relay

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Transport is what a tls.Conn must be made on for its session to be relayed.
// It passes everything through, and remembers what TLS does not tell: whether
// the stream below has ended. An engine may take its I/O over.
type Transport struct {
	net.Conn
	ended atomic.Bool
	taken atomic.Bool
}

// NewTransport wraps a raw connection, which it does not own before Start.
func NewTransport(raw net.Conn) *Transport { return &Transport{Conn: raw} }

// Read passes through.
func (t *Transport) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if err == io.EOF {
		t.ended.Store(true)
	}
	return n, err
}

// SetWriteDeadline passes through until the session is relayed. From then on it
// does nothing: crypto/tls gives close_notify five seconds and then makes all
// writes fail, while a slow reader may need longer for what comes before it.
func (t *Transport) SetWriteDeadline(at time.Time) error {
	if t.taken.Load() {
		return nil
	}
	return t.Conn.SetWriteDeadline(at)
}

func (t *Transport) handOver() { t.taken.Store(true) }

// cut says whether the stream ended without a close_notify: crypto/tls returns
// io.EOF for both, but after close_notify it does not read on.
func (t *Transport) cut() bool { return t.ended.Load() }
