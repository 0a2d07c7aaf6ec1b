package l4

import (
	"ambassador/l4/task"
	"context"
	"fmt"
	"net"
	"syscall"
	"time"
)

// keepAlive is for both sides of a session: a peer that has vanished is noticed after
// 60 s + 10 × 30 s at the latest.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 30 * time.Second, Count: 10}

// deadliner is the part of a connection that boundIO needs.
type deadliner interface{ SetDeadline(time.Time) error }

// past is a deadline that ends every wait.
var past = time.Unix(1, 0)

// boundIO bounds all reads and writes on the connections by ctx, which has a deadline.
// In a task, the cancellation of ctx takes effect once the task has left the loop.
// Unbound removes the bound. A caller that closes the connections need not call it, but
// must cancel ctx.
func boundIO(ctx context.Context, conns ...deadliner) (unbound func()) {
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
			set(past)
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

// reset closes the connection with a RST where the transport has one.
func reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// control runs f with the descriptor of a connection. It does not register a Socket
// with Go's poller.
func control(c net.Conn, f func(fd uintptr)) error {
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
