package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Listener accepts connections for an engine.
type Listener interface {
	// Serve calls f with every connection until accepting fails. It returns the
	// number of connections and the error: net.ErrClosed after Close. F owns the
	// connection. Several goroutines may call it at once. It must not block, because
	// other connections need these goroutines.
	Serve(f func(net.Conn)) (n int, err error)
	// Pause makes Serve accept nothing until Resume; connections wait in the kernel. When
	// it returns true, f has returned for every accepted connection. It waits at most
	// pauseTimeout.
	Pause() bool
	// Resume ends Pause.
	Resume()
	// Close stops accepting, for good.
	Close() error
	// Addr is the bound address.
	Addr() net.Addr
	// Control calls f with the descriptor of the socket, which is valid until f returns.
	Control(f func(fd uintptr)) error
}

// pauseTimeout bounds Pause: a Serve that is about to end does not answer, and f may be
// slow.
const pauseTimeout = time.Second

// plainListener adapts any net.Listener.
type plainListener struct {
	net.Listener
	busy atomic.Int64 // connections for which f has not returned

	mu     sync.Mutex
	paused *listenerPause // guarded by mu; nil: it is not paused
}

// listenerPause is a pause of a plainListener.
type listenerPause struct {
	once    sync.Once
	waits   chan struct{} // closed when Serve waits
	resumed chan struct{}
}

// Control calls f with the descriptor of the socket.
func (l *plainListener) Control(f func(fd uintptr)) error {
	socket, ok := l.Listener.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(f)
}

// Serve accepts until that fails.
func (l *plainListener) Serve(f func(net.Conn)) (n int, err error) {
	for ; ; n++ {
		l.wait()
		conn, err := l.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) { // that of Pause
			n--
			continue
		}
		if err != nil {
			return n, err
		}
		l.busy.Add(1)
		f(conn)
		l.busy.Add(-1)
	}
}

// wait waits for the end of a pause.
func (l *plainListener) wait() {
	l.mu.Lock()
	p := l.paused
	l.mu.Unlock()
	if p != nil {
		p.once.Do(func() { close(p.waits) })
		<-p.resumed
	}
}

// Pause interrupts Accept.
func (l *plainListener) Pause() bool {
	p := &listenerPause{waits: make(chan struct{}), resumed: make(chan struct{})}
	l.mu.Lock()
	l.paused = p
	l.mu.Unlock()
	l.deadline(time.Unix(1, 0))
	t := time.NewTimer(pauseTimeout)
	defer t.Stop()
	select {
	case <-p.waits:
		return true
	case <-t.C:
		return l.busy.Load() == 0
	}
}

// Resume lets Serve go on.
func (l *plainListener) Resume() {
	l.deadline(time.Time{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused != nil {
		close(l.paused.resumed)
		l.paused = nil
	}
}

// Close stops listening, during a pause too.
func (l *plainListener) Close() error {
	err := l.Listener.Close()
	l.Resume()
	return err
}

func (l *plainListener) deadline(t time.Time) {
	if socket, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		socket.SetDeadline(t)
	}
}

// Leaver is told before a call waits, so that the caller's goroutine can be given back
// to the loop that runs it. A *task.Task is one.
type Leaver interface {
	// Leave gives the caller a goroutine of its own.
	Leave()
	// Suspend gives the loop back until resume is called, of which arm makes sure. False:
	// no loop runs the caller, or arm was false, and nothing was given back.
	Suspend(arm func(resume func()) bool) bool
}
