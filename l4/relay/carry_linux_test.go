package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// handOver freezes the session of p, and lets another engine continue it on duplicates of
// its descriptors, as the next program does on the descriptors themselves.
func (p *pair) handOver(to *Engine) {
	p.t.Helper()
	c, found := p.engine.Freeze(p.session)
	if found != FrozenWhole {
		p.t.Fatalf("Freeze found %d", found)
	}
	if err := c.Valid(); err != nil {
		p.t.Fatal(err)
	}
	old := p.session.(*flow)
	dup := func(fd *int) {
		n, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			p.t.Fatal(err)
		}
		*fd = n
	}
	for i := range c.Sides {
		s := &c.Sides[i]
		dup(&s.FD)
		s.Held = append([]byte(nil), s.Held...)
		if s.PipeBytes > 0 {
			dup(&s.PipeRead)
			dup(&s.PipeWrite)
		}
		// The duplicate keeps the entry of the old epoll alive.
		epollCtl(old.epfd, unix.EPOLL_CTL_DEL, old.sides[i].fd, 0)
		old.sides[i].known = false
		closeFD(old.sides[i].fd)
		old.engineTable(i)
		old.sides[i].fd = -1
	}
	old.ledger.Over = true
	old.loop.clock.remove(old)
	old.mu.Unlock()
	session, err := to.Adopt(&c, &owner{nil, func(r Result) { p.done <- r }})
	if err != nil {
		p.t.Fatal(err)
	}
	p.session, p.engine = session, to
}

func (f *flow) engineTable(i int) { f.loop.engine.table.at(f.sides[i].fd).Store(nil) }

// plainPair is a pair without TLS, on an engine with loops.
func plainPair(t *testing.T, change ...func(*Config)) *pair {
	return newPair(t, New(), kind{}, kind{}, change...)
}

// A half-closed session goes on: the answer arrives, and the counters are those of the
// whole session.
func TestAdoptHalfClosed(t *testing.T) {
	p := plainPair(t)
	io.WriteString(p.down, "question")
	p.down.closeWrite()
	if got, err := io.ReadAll(p.up); err != nil || string(got) != "question" {
		t.Fatalf("the question is %q, %v", got, err)
	}
	next := New()
	defer next.Close()
	p.handOver(next)
	if !p.session.HalfClosed() || p.session.Up() != 8 {
		t.Errorf("half-closed %v, up %d", p.session.HalfClosed(), p.session.Up())
	}
	io.WriteString(p.up, "answer")
	p.up.closeWrite()
	if got, err := io.ReadAll(p.down); err != nil || string(got) != "answer" {
		t.Errorf("the answer is %q, %v", got, err)
	}
	if r := p.result(); r.End != EndClosed || r.FirstClose != Downstream || r.Up != 8 || r.Down != 6 {
		t.Errorf("result %+v", r)
	}
}

// What is held for a slow reader goes along, in memory or in a pipe, and the FIN behind
// it.
func TestAdoptHeldBytes(t *testing.T) {
	for _, size := range []int{64 << 10, 8 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := plainPair(t)
			sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
			wrote := make(chan error, 1)
			go func() { // awaited below
				_, err := p.down.Write(sent)
				if err == nil {
					err = p.down.closeWrite()
				}
				wrote <- err
			}()
			for end := time.Now().Add(bound); p.session.Held() == 0 && size > 1<<20; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Skip("the kernel takes all of it")
				}
			}
			for range 3 {
				next := New()
				next.Budget = &Budget{}
				defer next.Close()
				p.handOver(next)
			}
			got, err := io.ReadAll(p.up)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes arrive, %v", len(got), len(sent), err)
			}
			if err := <-wrote; err != nil {
				t.Error(err)
			}
			p.up.closeWrite()
			if r := p.result(); r.End != EndClosed || r.Up != int64(size) {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// The limits go on: an idle session ends when it has been idle in both programs together.
func TestAdoptLimits(t *testing.T) {
	p := plainPair(t, func(c *Config) { c.Limits.Lifetime = 300 * time.Millisecond })
	next := New()
	defer next.Close()
	p.handOver(next)
	if r := p.result(); r.End != EndLifetime || r.Duration < 300*time.Millisecond {
		t.Errorf("result %+v", r)
	}
}

// After Thaw nothing has happened, and the end is not a reset.
func TestThaw(t *testing.T) {
	p := plainPair(t)
	if _, found := p.engine.Freeze(p.session); found != FrozenWhole {
		t.Fatalf("Freeze found %d", found)
	}
	io.WriteString(p.down, "while frozen")
	p.engine.Thaw(p.session)
	p.down.closeWrite()
	if got, err := io.ReadAll(p.up); err != nil || string(got) != "while frozen" {
		t.Errorf("%q, %v", got, err)
	}
	p.up.closeWrite()
	if got, err := io.ReadAll(p.down); err != nil || len(got) > 0 {
		t.Errorf("%q, %v", got, err)
	}
	if r := p.result(); r.End != EndClosed {
		t.Errorf("result %+v", r)
	}
}

// A session with TLS is frozen, but cannot be carried.
func TestFreezeTLS(t *testing.T) {
	p := newPair(t, New(), kind{}, kinds[3].up)
	if p.engine.CanCarry(p.session) {
		t.Error("TLS can be carried")
	}
	if _, found := p.engine.Freeze(p.session); found != FrozenLost {
		t.Errorf("Freeze found %d", found)
	}
	p.engine.Thaw(p.session)
}

// A paused listener accepts nothing, and loses nothing.
func TestPause(t *testing.T) {
	for name, kind := range map[string]kind{"tcp": {}, "unix": {unix: true}} {
		t.Run(name, func(t *testing.T) { pauses(t, kind) })
	}
}

func pauses(t *testing.T, k kind) {
	e := New()
	defer e.Close()
	network, address := "tcp", "127.0.0.1:0"
	if k.unix {
		network, address = "unix", filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.Listen(ln, &net.KeepAliveConfig{})
	if err != nil {
		t.Fatal(err)
	}
	accepted, ended := make(chan net.Conn, 8), make(chan error, 1)
	go func() { // ends with Close
		_, err := l.Serve(func(c net.Conn) { accepted <- c })
		ended <- err
	}()
	dial := func() {
		c, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	await := func() {
		t.Helper()
		select {
		case c := <-accepted:
			c.Close()
		case <-time.After(bound):
			t.Fatal("nothing is accepted")
		}
	}
	dial()
	await()
	for range 3 {
		l.Pause()
		dial()
		if len(accepted) > 0 {
			t.Error("a connection is accepted during a pause")
		}
		l.Resume()
		await()
	}
	l.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(bound):
		t.Error("Serve does not end")
	}
}

// Pause waits until f has returned for each connection, but not for ever.
func TestPauseIsBounded(t *testing.T) {
	for name, kind := range map[string]kind{"tcp": {}, "unix": {unix: true}} {
		t.Run(name, func(t *testing.T) {
			e := New()
			defer e.Close()
			network, address := "tcp", "127.0.0.1:0"
			if kind.unix {
				network, address = "unix", filepath.Join(t.TempDir(), "s")
			}
			ln, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			l, err := e.Listen(ln, &net.KeepAliveConfig{})
			if err != nil {
				t.Fatal(err)
			}
			entered, leave := make(chan struct{}, 1), make(chan struct{})
			go l.Serve(func(c net.Conn) { // ends with Close
				entered <- struct{}{}
				<-leave
				c.Close()
			})
			defer l.Close()
			c, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			<-entered
			if l.Pause() {
				t.Error("Pause returns true while f runs")
			}
			l.Resume()
			close(leave)
			if _, err := io.ReadAll(c); err != nil { // f has returned, or is about to
				t.Error(err)
			}
			if !l.Pause() {
				t.Error("Pause returns false after f has returned")
			}
		})
	}
}

// If the process dies, the kernel closes the sockets of relayed sessions with a RST. A
// session that ends well ends with a FIN all the same.
func TestDiesWithReset(t *testing.T) {
	p := plainPair(t)
	f := p.session.(*flow)
	f.mu.Lock()
	for i := range f.sides {
		var l unix.Linger
		size := uint32(unsafe.Sizeof(l))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(f.sides[i].fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 || l.Onoff != 1 || l.Linger != 0 {
			t.Errorf("side %d: linger %+v, %v", i, l, errno)
		}
	}
	f.mu.Unlock()
	p.down.closeWrite()
	p.up.closeWrite()
	for _, e := range []*end{p.down, p.up} {
		if _, err := io.ReadAll(e); err != nil {
			t.Error(err)
		}
	}
}
