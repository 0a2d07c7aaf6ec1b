package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Conn continues a TLS 1.3 connection whose handshake another process has made. It reads
// and writes like a tls.Conn, with the same errors, on a connection that may block or
// return temporary errors. Between two records it holds no buffer. Safe for concurrent
// use.
type Conn struct {
	conn  net.Conn
	suite *suite

	inMu  sync.Mutex
	in    receiver   // guarded by inMu, like the next group
	open  protection // of in; made for the first record, like seal
	inErr error      // the first permanent error
	plain []byte     // decrypted and not read yet, within buf
	buf   *[bufferSize]byte
	r, w  int    // buf[r:w] is received and not decrypted
	raw   []byte // the same, after buf

	outMu     sync.Mutex
	out       keys       // guarded by outMu, like all below
	seal      protection // of out
	outErr    error      // the first permanent error
	notified  bool       // close_notify was written
	notifyErr error      // its error
}

// bufferSize is the size of a read, and more than a record.
const bufferSize = 32 << 10

var (
	buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
	outputs = sync.Pool{New: func() any { b := make([]byte, 0, maxRecord); return &b }}
)

// NewConn continues the connection in s on conn, which the Conn owns. It copies the State,
// which the caller should Clear.
func NewConn(conn net.Conn, s *State) *Conn {
	c := &Conn{conn: conn, suite: s.suite, in: s.in, out: s.out, notified: s.notified}
	c.in.message = bytes.Clone(s.in.message)
	c.plain, c.raw = bytes.Clone(s.plain), bytes.Clone(s.raw)
	return c
}

// Export returns the state of the connection, of which only one may be continued: the
// Conn or the State. It fails after an error of TLS.
func (c *Conn) Export() (*State, error) {
	c.inMu.Lock()
	defer c.inMu.Unlock()
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.inErr != nil && c.inErr != io.EOF || c.outErr != nil || c.notifyErr != nil {
		return nil, errLost
	}
	s := &State{suite: c.suite, in: c.in, out: c.out, notified: c.notified, plain: bytes.Clone(c.plain), raw: bytes.Clone(c.raw)}
	s.in.message = bytes.Clone(c.in.message)
	if c.buf != nil {
		s.raw = append(bytes.Clone(c.buf[c.r:c.w]), c.raw...)
	}
	return s, nil
}

// Read reads application data. After the peer's close_notify, or its end between two
// records, the error is io.EOF; an end within a record is io.ErrUnexpectedEOF. A read
// can be repeated after a timeout.
func (c *Conn) Read(b []byte) (int, error) {
	c.inMu.Lock()
	defer c.inMu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	for len(c.plain) == 0 {
		if c.inErr != nil {
			return 0, c.inErr
		}
		if err := c.readRecord(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.plain)
	if c.plain = c.plain[n:]; len(c.plain) == 0 {
		c.plain = nil
	}
	return n, nil
}

// readRecord handles the next record. It may contain data, for c.plain, or none.
func (c *Conn) readRecord() error {
	if c.in.ended {
		return c.failed(io.EOF)
	}
	if err := c.receive(headerSize); err != nil {
		return err
	}
	header := c.buf[c.r : c.r+headerSize]
	if header[1] != 3 || header[2] != 3 {
		return c.violated(&violation{alertProtocolVersion, headerError(header, "received record with version %x when expecting version %x",
			uint16(header[1])<<8|uint16(header[2]), tls.VersionTLS12)})
	}
	n := recordSize(header)
	if n > maxRecord {
		return c.violated(&violation{alertRecordOverflow, headerError(header, "oversized record received with length %d", n-headerSize)})
	}
	if err := c.receive(n); err != nil {
		return err
	}
	record := c.buf[c.r : c.r+n]
	c.r += n
	if err := c.in.prepare(c.suite, &c.open); err != nil {
		return c.failed(err)
	}
	data, renewed, err := c.in.record(c.suite, &c.open, record)
	c.plain = data
	if err != nil {
		return c.violated(err)
	}
	if renewed {
		c.renew()
	}
	return nil
}

func headerError(header []byte, format string, args ...any) error {
	return tls.RecordHeaderError{Msg: fmt.Sprintf(format, args...), RecordHeader: [headerSize]byte(header)}
}

// renew follows a KeyUpdate of the peer with new keys, ours too if it requests that.
func (c *Conn) renew() {
	c.open = protection{}
	for ; c.in.owed > 0; c.in.owed-- {
		c.outMu.Lock()
		if !c.notified && c.outErr == nil {
			c.updateKeys() // a write returns the error
		}
		c.outMu.Unlock()
	}
}

// receive reads until that many bytes are buffered.
func (c *Conn) receive(n int) error {
	if c.buf == nil {
		c.buf = buffers.Get().(*[bufferSize]byte)
		c.r, c.w = 0, 0
	}
	for c.w-c.r < n {
		if c.r > 0 {
			c.w = copy(c.buf[:], c.buf[c.r:c.w])
			c.r = 0
		}
		k, err := c.read(c.buf[c.w:])
		if c.w += k; err != nil && k == 0 {
			return c.receiveFailed(err)
		}
	}
	return nil
}

// read reads the bytes of the State first.
func (c *Conn) read(b []byte) (int, error) {
	if len(c.raw) == 0 {
		return c.conn.Read(b)
	}
	n := copy(b, c.raw)
	if c.raw = c.raw[n:]; len(c.raw) == 0 {
		c.raw = nil
	}
	return n, nil
}

// receiveFailed gives the buffer back. After a temporary error, the bytes of an
// incomplete record are kept.
func (c *Conn) receiveFailed(err error) error {
	begun := c.w > c.r
	if begun {
		c.raw = bytes.Clone(c.buf[c.r:c.w])
	}
	c.release()
	switch {
	case isTimeout(err):
		return err
	case err == io.EOF && begun:
		err = io.ErrUnexpectedEOF
	}
	return c.failed(err)
}

func (c *Conn) release() {
	if c.buf != nil {
		buffers.Put(c.buf)
		c.buf, c.r, c.w = nil, 0, 0
	}
}

// failed makes an error of reading permanent.
func (c *Conn) failed(err error) error {
	c.release()
	c.inErr = err
	return err
}

// violated sends the alert that a *violation demands, and makes the error permanent.
func (c *Conn) violated(err error) error {
	var v *violation
	if !errors.As(err, &v) {
		return c.failed(err)
	}
	local := &net.OpError{Op: "local error", Err: v.alert}
	c.outMu.Lock()
	if !c.notified && c.outErr == nil {
		c.write(typeAlert, []byte{2, byte(v.alert)})
		c.outErr = local
	}
	c.outMu.Unlock()
	if v.err != nil {
		return c.failed(v.err)
	}
	return c.failed(local)
}

// errShutdown is the error of a Write after CloseWrite.
var errShutdown = errors.New("tls: protocol is shutdown")

// Write writes application data. After an error, a timeout included, the connection
// cannot be written to any more: a record may have been cut.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.outErr != nil {
		return 0, c.outErr
	}
	if c.notified {
		return 0, errShutdown
	}
	for len(b) > 0 {
		if c.out.seq >= c.suite.most {
			if err := c.updateKeys(); err != nil {
				return n, err
			}
		}
		k := min(len(b), maxPlaintext)
		if err := c.write(typeApplicationData, b[:k]); err != nil {
			return n, err
		}
		n, b = n+k, b[k:]
	}
	return n, nil
}

// updateKeys replaces our keys, and tells the peer.
func (c *Conn) updateKeys() error {
	if err := c.write(typeHandshake, keyUpdate[:]); err != nil {
		return err
	}
	c.seal = protection{}
	c.outErr = c.out.update(c.suite)
	return c.outErr
}

// write writes one record. An error is permanent.
func (c *Conn) write(typ byte, content []byte) error {
	buf := outputs.Get().(*[]byte)
	defer outputs.Put(buf)
	record, err := (*buf)[:0], c.out.prepare(c.suite, &c.seal)
	if err == nil {
		record, err = c.out.seal(&c.seal, record, typ, content)
	}
	if err == nil {
		_, err = c.conn.Write(record)
	}
	if err != nil {
		c.outErr = err
	}
	return err
}

// notifyTimeout bounds the write of close_notify, as in crypto/tls.
const notifyTimeout = 5 * time.Second

// CloseWrite writes close_notify, bounded by five seconds. Further calls return the
// result of the first. It does not end the writing side of the connection below.
func (c *Conn) CloseWrite() error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	return c.closeNotify()
}

func (c *Conn) closeNotify() error {
	if !c.notified {
		c.conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
		if c.notifyErr = c.outErr; c.outErr == nil {
			c.notifyErr = c.write(typeAlert, []byte{1, byte(alertCloseNotify)})
		}
		c.notified = true
		c.conn.SetWriteDeadline(time.Now()) // as crypto/tls does: nothing may follow
	}
	return c.notifyErr
}

// Close writes close_notify, unless a write is in progress, and closes the connection
// below.
func (c *Conn) Close() error {
	if c.outMu.TryLock() {
		c.closeNotify()
		c.outMu.Unlock()
	}
	return c.conn.Close()
}

// LocalAddr is that of the connection below.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr is that of the connection below.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline sets that of the connection below.
func (c *Conn) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// SetReadDeadline sets that of the connection below. A read that has missed it can be
// repeated.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline sets that of the connection below. After a write has missed it, all
// further ones fail.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }
