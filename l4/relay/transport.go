package relay

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"ambassador/l4/relay/ledger"
)

// Transport is the connection below a tls.Conn whose session is to be relayed. It
// passes everything through, and records what crypto/tls does not report: whether
// the stream has ended. Once the epoll engine has taken the session, the tls.Conn
// reads the bytes that the engine feeds and writes into the engine's buffer; it
// never waits, and never touches the socket.
type Transport struct {
	net.Conn
	ended atomic.Bool // the tls.Conn has read the stream's end
	taken atomic.Bool // the session is relayed
	shut  atomic.Bool // close_notify was written: nothing may follow it

	fed *feed // nil: pass through. Set once, by the engine, before any concurrent use
}

// feed is the ciphertext of a session that an engine drives, guarded by the
// session's lock. Its buffers are lent for one call at a time.
type feed struct {
	in  []byte  // received, and not read by the tls.Conn yet
	end error   // the result of a read behind in: io.EOF, the socket's error; nil for "would block"
	out *[]byte // the tls.Conn's records are appended to it
}

// errWouldBlock is temporary: a tls.Conn can be used again after it.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "relay: would block" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// NewTransport wraps a raw connection. It does not own it before Start.
func NewTransport(raw net.Conn) *Transport { return &Transport{Conn: raw} }

// Read passes through, or reads the fed bytes.
func (t *Transport) Read(b []byte) (n int, err error) {
	f := t.fed
	switch {
	case f == nil:
		n, err = t.Conn.Read(b)
	case len(f.in) > 0:
		n = copy(b, f.in)
		f.in = f.in[n:]
	case f.end == nil:
		return 0, errWouldBlock
	default:
		err = f.end
	}
	if err == io.EOF {
		t.ended.Store(true)
	}
	return n, err
}

// Write passes through, or appends to the engine's buffer, which never fails.
// Bytes that a tls.Conn writes after its close_notify, which answer a peer that
// requests new keys, are dropped without an error, because a tls.Conn does not
// read on after one.
func (t *Transport) Write(b []byte) (int, error) {
	if t.shut.Load() {
		return len(b), nil
	}
	if t.fed == nil {
		return t.Conn.Write(b)
	}
	*t.fed.out = append(*t.fed.out, b...)
	return len(b), nil
}

// SetWriteDeadline passes through until the session is relayed. Then it does
// nothing: crypto/tls gives close_notify five seconds and then makes all writes
// fail, while a slow reader may need longer for the bytes before it.
func (t *Transport) SetWriteDeadline(at time.Time) error {
	if t.taken.Load() {
		return nil
	}
	return t.Conn.SetWriteDeadline(at)
}

func (t *Transport) handOver() { t.taken.Store(true) }

// cut reports whether the stream ended without a close_notify: crypto/tls returns
// io.EOF for both, but after close_notify it does not read on.
func (t *Transport) cut() bool { return t.ended.Load() }

// finKind is how the stream's end has come; t may be nil, for no TLS.
func (t *Transport) finKind() ledger.FINKind {
	switch {
	case t == nil:
		return ledger.FINPlain
	case t.cut():
		return ledger.FINCut
	}
	return ledger.FINClean
}
