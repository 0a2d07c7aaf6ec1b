package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// pump reads one direction of a session.
type pump struct {
	session   *pumped
	direction direction
	src, dst  *Leg
}

// run moves bytes until the direction ends. The error is what the source
// answered, io.EOF at its FIN; nil if it was the destination that failed, which
// the session knows already.
func (p *pump) run() error {
	raw := p.rawSource()
	for {
		buf := p.session.engine.buffer()
		n, held, err := p.read(raw, buf)
		full := n == len(*buf)
		ok := n == 0 || p.session.deliver(p.direction, (*held)[:n])
		p.session.engine.buffers.Put(held)
		switch {
		case !ok:
			return nil
		case err != nil:
			return err
		case full && p.canSplice():
			if ok, err := p.splice(); !ok {
				return err
			}
		}
	}
}

// rawSource is the source's descriptor where it can be waited for without a
// buffer; nil where reading is all there is.
func (p *pump) rawSource() syscall.RawConn {
	c, ok := p.src.raw.(syscall.Conn)
	if p.src.tls != nil || !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// read fills buf at most. On a raw connection buf goes back to the pool while
// there is nothing to read; held is the buffer that is in use at the end.
func (p *pump) read(raw syscall.RawConn, buf *[]byte) (n int, held *[]byte, err error) {
	if raw == nil {
		n, err = p.src.stream().Read(*buf)
		return n, buf, err
	}
	pool := p.session.engine
	held = buf
	waitErr := raw.Read(func(fd uintptr) bool {
		if held == nil {
			held = pool.buffer()
		}
		n, err = retryEINTR(func() (int, error) { return syscall.Read(int(fd), *held) })
		if err == syscall.EAGAIN {
			pool.buffers.Put(held)
			held = nil
			return false
		}
		return true
	})
	if held == nil {
		held = pool.buffer()
	}
	switch {
	case waitErr != nil:
		return 0, held, waitErr
	case err != nil:
		return 0, held, &net.OpError{Op: "read", Net: p.src.raw.LocalAddr().Network(), Source: p.src.raw.LocalAddr(),
			Addr: p.src.raw.RemoteAddr(), Err: os.NewSyscallError("read", err)}
	case n == 0:
		return 0, held, io.EOF
	}
	return n, held, nil
}

func retryEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != syscall.EINTR {
			return n, err
		}
	}
}

const (
	// spliceChunk is what is spliced between two counts.
	spliceChunk = 1 << 20
	// spliceWait is the longest between two counts; a flow that moves less than
	// a buffer in it is no bulk flow any more.
	spliceWait = 100 * time.Millisecond
)

// canSplice says whether the runtime splices from src to dst: bare sockets, on
// Linux; to a unix socket it only copies.
func (p *pump) canSplice() bool {
	_, toTCP := p.dst.raw.(*net.TCPConn)
	return hasSplice && p.src.tls == nil && p.dst.tls == nil && toTCP && isSocket(p.src.raw)
}

func isSocket(c net.Conn) bool {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// splice moves bytes in the kernel while the flow is a bulk flow. A read
// deadline interrupts it, without loss, so that the counts stay live. It is not
// ok where the direction has ended, with the source's error as in run.
func (p *pump) splice() (ok bool, err error) {
	defer p.src.raw.SetReadDeadline(time.Time{})
	for {
		p.src.raw.SetReadDeadline(time.Now().Add(spliceWait))
		chunk := &io.LimitedReader{R: p.src.raw, N: spliceChunk}
		p.session.hold(p.direction) // for spliceWait at the most, if it is the source that is waited for
		n, err := p.dst.raw.(*net.TCPConn).ReadFrom(chunk)
		p.session.letGo(p.direction)
		p.session.count(p.direction, n)
		p.session.engine.spliced.Add(n)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // not any timeout: ETIMEDOUT is a lost peer
			if n < bufferSize {
				return true, nil
			}
		case err != nil:
			return false, p.spliceFailed(err)
		case n < spliceChunk:
			return false, io.EOF
		}
	}
}

// spliceFailed says whose error ended a splice, which the error itself does not:
// that of the socket which has hung up, or the destination's. It returns the
// source's error, or nil and tells the session of the destination's.
func (p *pump) spliceFailed(err error) error {
	if !errors.Is(err, syscall.EPIPE) && hungUp(p.src.raw) {
		return err
	}
	p.session.writeFailed(p.direction, err)
	return nil
}
