package netconn

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"ambassador/l4/task"
)

// KeepAlive is for both sides of a session: a peer that has vanished is noticed after
// 60 s + 10 × 30 s at the latest.
var KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 30 * time.Second, Count: 10}

// deadliner is the part of a connection that Bound needs.
type deadliner interface{ SetDeadline(time.Time) error }

// Past is a deadline that ends every wait.
var Past = time.Unix(1, 0)

// Bound bounds all reads and writes on the connections by ctx, which has a deadline.
// In a task, the cancellation of ctx takes effect once the task has left the loop.
// Unbound removes the bound. A caller that closes the connections need not call it, but
// must cancel ctx.
func Bound(ctx context.Context, conns ...deadliner) (unbound func()) {
	set := func(t time.Time) {
		for _, c := range conns {
			c.SetDeadline(t)
		}
	}
	by, _ := ctx.Deadline()
	set(by)
	var cut chan struct{}
	var stop func() bool
	forget := task.OnLeave(ctx, func() {
		cut = make(chan struct{})
		stop = context.AfterFunc(ctx, func() {
			defer close(cut)
			set(Past)
		})
	})
	return func() {
		forget()
		if stop != nil && !stop() {
			<-cut
		}
		set(time.Time{})
	}
}

// Reset closes the connection with a RST where the transport has one.
func Reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// lastReadTimeout is how long a refused client may take to close its side.
const lastReadTimeout = time.Second

// CloseAfterReading closes our side for writing, lets the client read what we sent, and
// closes the connection. A close with unread bytes in the buffer would cause a reset, and
// the client would lose our answer. It waits at most a second and reads at most 64 KiB.
func CloseAfterReading(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		c.SetReadDeadline(time.Now().Add(lastReadTimeout))
		io.CopyN(io.Discard, c, 64<<10)
	}
	c.Close()
}

// Control runs f with the descriptor of a connection. It does not register a Socket
// with Go's poller.
func Control(c net.Conn, f func(fd uintptr)) error {
	switch c := c.(type) {
	case interface{ Control(func(fd uintptr)) error }:
		return c.Control(f)
	case syscall.Conn:
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(f)
	}
	return fmt.Errorf("%T is no socket", c)
}

// Prepare is a function for net.ListenConfig.Control: it calls f with the descriptor of
// a new socket, before the socket is bound.
func Prepare(f func(fd uintptr) error) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if controlErr := c.Control(func(fd uintptr) { err = f(fd) }); controlErr != nil {
			return controlErr
		}
		return err
	}
}

// ListenerOf returns a listener on a duplicate of the descriptor, which stays open.
func ListenerOf(fd int) (net.Listener, error) {
	dup, err := syscall.Dup(fd)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	f := os.NewFile(uintptr(dup), "")
	defer f.Close() // FileListener makes another one
	return net.FileListener(f)
}
