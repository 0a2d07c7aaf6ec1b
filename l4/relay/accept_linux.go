package relay

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// acceptor is a listening TCP socket from which the loops accept: a connection
// begins on the thread that will move its bytes.
type acceptor struct {
	// Static after construction.
	engine    *Engine
	addr      net.Addr
	keepAlive *net.KeepAliveConfig

	watched  watched // the acceptor's entry in the table
	failed   chan error
	accepted atomic.Int64

	mu     sync.Mutex
	fd     int32          // guarded by mu; -1 once closed
	f      func(net.Conn) // guarded by mu; nil: Serve does not run
	loops  []*loop        // guarded by mu; those that wait for connections: the first of the engine's
	paused bool           // guarded by mu; no loop accepts, until Resume
	begun  int            // guarded by mu; connections for which f has not returned
	quiet  chan struct{}  // guarded by mu; closed when begun is 0; nil: Pause does not wait
}

// acceptBatch is how many connections are accepted per event, before the loop's
// sessions have their turn.
const acceptBatch = 4

// Listen makes a Listener of a bound socket. It takes the socket over, and closes
// it on failure. On Linux the connections of a TCP socket are Sockets, with
// keepalive and without Nagle's delay, both inherited from the listening socket.
func (e *Engine) Listen(ln net.Listener, keepAlive *net.KeepAliveConfig) (Listener, error) {
	t, ok := ln.(*net.TCPListener)
	if !ok || e.portableOnly {
		return &plainListener{Listener: ln}, nil
	}
	a := &acceptor{engine: e, addr: ln.Addr(), keepAlive: keepAlive, failed: make(chan error, 1), fd: -1}
	a.watched.other = a
	defer ln.Close() // a has its own descriptor, or Listen has failed
	raw, err := t.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dup == nil {
			a.fd = int32(n)
		}
	})
	if err != nil {
		return nil, err
	}
	if dup != nil {
		return nil, os.NewSyscallError("fcntl", dup)
	}
	setNoDelay(a.fd)
	setKeepAlive(a.fd, keepAlive)
	return a, nil
}

// Serve makes the loops accept until that fails.
func (a *acceptor) Serve(f func(net.Conn)) (n int, err error) {
	a.accepted.Store(0)
	if err := a.watch(f); err != nil {
		return 0, a.error(err)
	}
	err = <-a.failed // by a loop or Close
	a.unwatch()
	return int(a.accepted.Load()), a.error(err)
}

// watch makes the active loops wait for connections. One is woken for each.
func (a *acceptor) watch(f func(net.Conn)) error {
	e := a.engine
	made := e.allLoops() != nil
	e.mu.Lock() // before a.mu, as everywhere
	defer e.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	select {
	case <-a.failed: // left from an earlier Serve
	default:
	}
	loops := e.loops.Load()
	if !made || loops == nil || a.engine.table.at(a.fd) == nil {
		return ioError("epoll_create1", syscall.EMFILE)
	}
	a.f = f
	return a.start((*loops)[:e.active.Load()])
}

// start makes the loops accept, unless Serve does not run or is paused. Both mu are held.
func (a *acceptor) start(loops []*loop) error {
	if a.f == nil || a.paused {
		return nil
	}
	a.engine.table.at(a.fd).Store(&a.watched)
	a.engine.acceptors = append(a.engine.acceptors, a)
	if errno := a.spread(loops); errno != 0 {
		a.forget()
		return ioError("epoll_ctl", errno)
	}
	return nil
}

// Pause makes the loops accept nothing. Serve does not return.
func (a *acceptor) Pause() bool {
	quiet := a.stop()
	t := time.NewTimer(pauseTimeout)
	defer t.Stop()
	select {
	case <-quiet:
		return true
	case <-t.C:
		return false
	}
}

// stop begins a pause. The channel is closed when f has returned for every connection.
func (a *acceptor) stop() <-chan struct{} {
	a.engine.mu.Lock()
	defer a.engine.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paused = true
	a.forget()
	a.quiet = make(chan struct{})
	defer a.wake()
	return a.quiet
}

// wake ends the wait of Pause, if f has returned for every connection. Mu is held.
func (a *acceptor) wake() {
	if a.begun == 0 && a.quiet != nil {
		close(a.quiet)
		a.quiet = nil
	}
}

// Resume makes the loops accept again. An error makes Serve return.
func (a *acceptor) Resume() {
	a.engine.mu.Lock()
	defer a.engine.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	loops := a.engine.loops.Load()
	if a.paused = false; a.fd < 0 || loops == nil {
		return
	}
	if err := a.start((*loops)[:a.engine.active.Load()]); err != nil {
		select {
		case a.failed <- err:
		default:
		}
	}
}

// acceptWith makes exactly those loops wait for connections, as far as
// descriptors suffice. The engine's mu is held.
func (a *acceptor) acceptWith(loops []*loop) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd >= 0 {
		a.spread(loops)
	}
}

// spread is acceptWith with the error, and mu held.
func (a *acceptor) spread(loops []*loop) syscall.Errno {
	for len(a.loops) > len(loops) {
		last := len(a.loops) - 1
		epollCtl(a.loops[last].epfd, unix.EPOLL_CTL_DEL, a.fd, 0)
		a.loops = a.loops[:last]
	}
	for _, l := range loops[len(a.loops):] {
		if errno := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, a.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); errno != 0 {
			return errno
		}
		a.loops = append(a.loops, l)
	}
	return 0
}

func (a *acceptor) unwatch() {
	a.engine.mu.Lock()
	defer a.engine.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.f = nil
	a.forget()
}

// forget removes the acceptor from the loops and the table. Both mu are held.
func (a *acceptor) forget() {
	if a.fd < 0 {
		return
	}
	a.spread(nil)
	a.engine.table.at(a.fd).Store(nil)
	a.engine.acceptors = slices.DeleteFunc(a.engine.acceptors, func(other *acceptor) bool { return other == a })
}

// ready accepts the waiting connections, on a loop.
func (a *acceptor) ready(l *loop) {
	for range acceptBatch {
		conn, f, errno := a.accept()
		switch errno {
		case 0:
			a.accepted.Add(1)
			conn.home = l
			a.begin(f, conn)
		case syscall.EINTR, syscall.ECONNABORTED:
		case syscall.EAGAIN:
			return
		default:
			select {
			case a.failed <- ioError("accept4", errno):
			default:
			}
			return
		}
	}
}

// begin calls f with a connection.
func (a *acceptor) begin(f func(net.Conn), conn net.Conn) {
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.begun--
		a.wake()
	}()
	f(conn)
}

func (a *acceptor) accept() (*Socket, func(net.Conn), syscall.Errno) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 || a.paused || a.f == nil {
		return nil, nil, syscall.EAGAIN
	}
	fd, from, errno := accept(a.fd)
	if errno != 0 {
		return nil, nil, errno
	}
	a.begun++
	return newSocket(a.engine, fd, from, a.keepAlive), a.f, 0
}

func (a *acceptor) error(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: a.addr, Err: err}
}

// Close stops listening; Serve returns net.ErrClosed.
func (a *acceptor) Close() error {
	a.engine.mu.Lock()
	defer a.engine.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	a.forget()
	closeFD(a.fd)
	a.fd = -1
	select {
	case a.failed <- net.ErrClosed:
	default: // Serve is about to end with another error, and then finds us closed
	}
	return nil
}

// Control calls f with the descriptor of the socket.
func (a *acceptor) Control(f func(fd uintptr)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(a.fd))
	return nil
}

// Addr is the bound address.
func (a *acceptor) Addr() net.Addr { return a.addr }

func accept(listener int32) (fd int32, from netip.AddrPort, errno syscall.Errno) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, from, errno
	}
	return int32(n), addrPort(&sa), 0
}

// addrPort converts the kernel's form of an address.
func addrPort(sa *unix.RawSockaddrAny) (at netip.AddrPort) {
	switch sa.Addr.Family {
	case unix.AF_INET:
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), bigEndian(a.Port))
	case unix.AF_INET6:
		a := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		at = netip.AddrPortFrom(withScope(netip.AddrFrom16(a.Addr).Unmap(), a.Scope_id), bigEndian(a.Port))
	}
	return at
}

// withScope adds the name of the interface to a link-local address.
func withScope(a netip.Addr, scope uint32) netip.Addr {
	if scope == 0 || a.Is4() {
		return a
	}
	if i, err := net.InterfaceByIndex(int(scope)); err == nil {
		return a.WithZone(i.Name)
	}
	return a
}
