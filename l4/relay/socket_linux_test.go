package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Socket must behave like any net.Conn.

// newSockets returns both ends of a connection, neither in a poller.
func newSockets(t *testing.T, e *Engine) (dialled, accepted *Socket) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.Listen(ln, &net.KeepAliveConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan net.Conn, 1)
	go l.Serve(func(c net.Conn) { got <- c }) // Close ends it
	c, err := e.DialMarked(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), 0, &net.KeepAliveConfig{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dialled, accepted = c.(*Socket), (<-got).(*Socket)
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

// waiting waits until the socket is in Go's poller.
func (s *Socket) waiting(t *testing.T) {
	t.Helper()
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.conn != nil })
}

// Both directions at once, with more bytes than the buffers hold.
func TestSocketMovesBytesBothWays(t *testing.T) {
	e := New()
	defer e.Close()
	a, b := newSockets(t, e)
	var group sync.WaitGroup
	for _, ends := range [][2]*Socket{{a, b}, {b, a}} {
		from, to := ends[0], ends[1]
		sent := make(chan [sha256.Size]byte, 1)
		group.Go(func() {
			data := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
			sent <- sha256.Sum256(data)
			if n, err := from.Write(data); n != len(data) || err != nil {
				t.Errorf("%d bytes written, %v", n, err)
			}
			if err := from.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			hash := sha256.New()
			if n, err := io.Copy(hash, to); err != nil || [sha256.Size]byte(hash.Sum(nil)) != <-sent {
				t.Errorf("%d bytes read, %v; or other ones", n, err)
			}
		})
	}
	group.Wait()
}

// Bytes that are there are read, and bytes that fit are written, without Go's poller.
func TestSocketStaysOutOfGosPoller(t *testing.T) {
	e := New()
	defer e.Close()
	a, b := newSockets(t, e)
	got := make([]byte, 9)
	for _, s := range [][2]*Socket{{a, b}, {b, a}} {
		s[0].SetDeadline(time.Now().Add(bound))
		io.WriteString(s[0], "hello")
		if n, err := s[1].Read(got); n != 5 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		s[0].SetDeadline(time.Time{})
	}
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("a read of nothing: %d, %v", n, err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := b.Read(got); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	for _, s := range []*Socket{a, b} {
		if _, bare := s.bare(); !bare {
			t.Error("it has entered Go's poller")
		}
	}
}

// A deadline ends waiting and later calls; its removal makes them work again.
func TestSocketDeadlines(t *testing.T) {
	e := New()
	defer e.Close()
	a, b := newSockets(t, e)
	io.WriteString(b, "there")
	fails := func(what string, call func() (int, error)) {
		t.Helper()
		n, err := call()
		var timeout net.Error
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
	read := func() (int, error) { return a.Read(make([]byte, 9)) }
	a.SetReadDeadline(time.Unix(1, 0))
	fails("a read of what is there, too late", read)
	a.SetDeadline(time.Time{})
	if n, err := read(); n != 5 || err != nil {
		t.Errorf("the same without a deadline: %d, %v", n, err)
	}
	a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	fails("a read that waits", read)
	a.SetReadDeadline(time.Time{})
	go func() {
		a.waiting(t)
		a.SetDeadline(time.Unix(1, 0))
	}()
	fails("a read that waits without one", read)
	a.SetDeadline(time.Time{})

	full := make([]byte, 64<<10)
	write := func() (n int, err error) {
		for err == nil {
			_, err = a.Write(full)
		}
		return 0, err
	}
	a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	fails("a write that waits", write)
	fails("a write afterwards", write)
	io.WriteString(b, "x")
	if n, err := read(); n != 1 || err != nil {
		t.Errorf("a read, which has no deadline: %d, %v", n, err)
	}
	a.SetDeadline(time.Time{})
	go func() {
		a.waiting(t)
		a.SetWriteDeadline(time.Unix(1, 0))
	}()
	fails("a write that waits without one", write)
}

// Close ends waiting calls, and a RST the next calls.
func TestSocketEnds(t *testing.T) {
	e := New()
	defer e.Close()
	a, b := newSockets(t, e)
	go func() {
		a.waiting(t)
		a.Close()
	}()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read when it is closed: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write afterwards: %v", err)
	}
	if err := a.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	if n, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end: %d, %v", n, err)
	}
	a, b = newSockets(t, e)
	go func() {
		a.waiting(t)
		b.SetLinger(0)
		b.Close()
	}()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a read of a reset connection: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a write to it: %v", err)
	}
}

// A socket keeps its deadlines when it enters Go's poller, and its Await ends.
func TestSocketEntersGosPoller(t *testing.T) {
	e := New()
	defer e.Close()
	a, b := newSockets(t, e)
	a.SetDeadline(time.Unix(1, 0))
	fd, _ := a.bare()
	a.Await(func() { t.Error("told, though the socket is in Go's poller") })
	if _, ok := TCP(a); !ok || e.table.at(fd).Load() != nil {
		t.Errorf("in Go's poller: %v, and the loop knows %v", ok, e.table.at(fd).Load())
	}
	io.WriteString(b, "x")
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the deadline is lost: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the deadline is lost: %v", err)
	}
	a.SetDeadline(time.Time{})
	if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("without one: %d, %v", n, err)
	}
	if a.Await(func() {}) {
		t.Error("it is in a loop and in Go's poller")
	}
}

// Await calls back once, for bytes and for every end, before or after the call, and
// never after Close.
func TestAwait(t *testing.T) {
	e := New()
	defer e.Close()
	tell := func(t *testing.T, does func(far *Socket), before bool) {
		near, far := newSockets(t, e)
		if before {
			does(far)
		}
		told := make(chan bool, 9)
		if !near.Await(func() { told <- true }) {
			t.Fatal("it cannot wait")
		}
		if !before {
			does(far)
		}
		select {
		case <-told:
		case <-time.After(bound):
			t.Fatal("nobody is told")
		}
		io.WriteString(far, "more")
		if len(told) > 0 {
			t.Error("told twice")
		}
	}
	closed, far := newSockets(t, e)
	closed.Await(func() { t.Error("told of a closed connection") })
	closed.Close()
	io.WriteString(far, "x")
	for name, does := range map[string]func(far *Socket){
		"bytes": func(far *Socket) { io.WriteString(far, "xyz") },
		"FIN":   func(far *Socket) { far.CloseWrite() },
		"RST":   func(far *Socket) { far.SetLinger(0); far.Close() },
	} {
		t.Run(name+" before", func(t *testing.T) { tell(t, does, true) })
		t.Run(name+" after", func(t *testing.T) { tell(t, does, false) })
	}
	if closed.Await(func() {}) {
		t.Error("a closed connection waits")
	}
}

// An engine takes sockets that have waited in its loops over directly, and their
// Await is not called back any more.
func TestEngineTakesSocketsAsTheyAre(t *testing.T) {
	e := New()
	defer e.Close()
	allInUse(e)
	for i := range 4 { // in the same loop, and in two
		client, near := newSockets(t, e)
		next, server := newSockets(t, e)
		for _, s := range []*Socket{near, next} {
			if !s.Await(func() { t.Error("told of what is the engine's") }) {
				t.Fatal("it cannot wait")
			}
			if i%2 == 0 {
				aroundLoops(e)
			}
		}
		fd, _ := near.bare()
		done := make(chan Result, 1)
		e.Start(Config{Downstream: Plain(near, nil), Upstream: Plain(next, nil), Owner: &owner{done: func(r Result) { done <- r }}})
		if near.holds(fd) || e.table.at(fd).Load().flow == nil {
			t.Fatal("the engine has not taken the descriptor")
		}
		io.WriteString(client, "ping")
		got := make([]byte, 4)
		if _, err := io.ReadFull(server, got); string(got) != "ping" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		client.Close()
		server.Close()
		if r := <-done; r.End != EndClosed || r.Up != 4 {
			t.Errorf("%+v", r)
		}
		if _, err := near.Read(got); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a read of what the engine has: %v", err)
		}
	}
}

// An event of a reused descriptor number does not reach its previous socket.
func TestSocketIsForgottenBeforeItsNumberIsUsedAgain(t *testing.T) {
	e := New()
	defer e.Close()
	a, _ := newSockets(t, e)
	a.Await(func() { t.Error("told of another's bytes") })
	fd, _ := a.bare()
	if e.table.at(fd).Load() == nil {
		t.Fatal("the table does not know it")
	}
	a.Close()
	if e.table.at(fd).Load() != nil {
		t.Error("the table still knows it")
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the descriptor is open: %v", err)
	}
}

// The cost of a socket that exchanges a byte before it is relayed.
func BenchmarkSocketExchange(b *testing.B) {
	e := New()
	defer e.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	l, err := e.Listen(ln, &net.KeepAliveConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go l.Serve(func(c net.Conn) { // Close ends it
		go func() { // ends with the exchange
			defer c.Close()
			c.SetDeadline(time.Now().Add(bound))
			buf := make([]byte, 64)
			for range 2 {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				c.Write(buf[:n])
			}
			c.SetDeadline(time.Time{})
		}()
	})
	buf := make([]byte, 64)
	start := processorTime()
	for b.Loop() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		for range 2 {
			c.Write(buf[:3])
			if _, err := io.ReadFull(c, buf[:3]); err != nil {
				b.Fatal(err)
			}
		}
		c.Close()
	}
	b.ReportMetric(float64((processorTime()-start).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}

func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // never fails
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
