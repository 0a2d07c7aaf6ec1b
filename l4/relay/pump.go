package relay

import (
	"io"
	"net"
	"os"
	"syscall"
)

// pump reads one direction of a session.
type pump struct {
	session   *pumped
	direction direction
	src, dst  *Leg
}

// run moves bytes until the direction ends. It returns the source's error, io.EOF
// after its FIN; nil if the destination failed, which the session has recorded.
func (p *pump) run() error {
	raw := p.rawSource()
	for {
		buf := p.session.engine.buffer()
		n, held, err := p.read(raw, buf)
		ok := n == 0 || p.session.deliver(p.direction, (*held)[:n])
		p.session.engine.buffers.Put(held)
		switch {
		case !ok:
			return nil
		case err != nil:
			return err
		}
	}
}

// rawSource returns the source's descriptor if a goroutine can wait for it
// without a buffer; nil if it can only read.
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

// read reads at most a buffer. A raw connection returns buf to the pool while
// there is nothing to read; held is the buffer in use at the end.
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
