package relay

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a TCP connection that enters Go's poller only if somebody has to wait
// long for it, or needs its *net.TCPConn. A Socket that goes straight to an
// engine never does, which saves half of its system calls. A loop can wait for
// its first bytes (Await).
type Socket struct {
	// Static after construction.
	engine    *Engine
	remote    netip.AddrPort
	keepAlive *net.KeepAliveConfig
	// late: the keepalive options of a dialled socket are not set yet. They are set
	// when it enters Go's poller, or by the engine after a second: most sockets do not
	// live that long if connections are frequent.
	late    bool
	watched watched // the socket's entry in the table

	home  *loop          // the loop that accepted it or waits for it; nil: dialled
	local netip.AddrPort // of a dialled socket, if known

	mu   sync.Mutex
	fd   int32        // guarded by mu; -1 after it went to conn or an engine, or was closed
	conn *net.TCPConn // guarded by mu; nil before it is in Go's poller
	err  error        // guarded by mu; why there is no conn

	leaver          Leaver      // guarded by mu; told before a wait; nil: nobody is
	loop            *loop       // guarded by mu; the loop that waits for its bytes; nil: none
	arrived         func(*loop) // guarded by mu; see await
	missed          bool        // guarded by mu; an event came while arrived was nil
	readBy, writeBy time.Time   // guarded by mu; the deadlines
}

func newSocket(e *Engine, fd int32, remote netip.AddrPort, keepAlive *net.KeepAliveConfig) *Socket {
	s := &Socket{engine: e, fd: fd, remote: remote, keepAlive: keepAlive}
	s.watched.other = s
	return s
}

// TCP returns the *net.TCPConn of a connection of Listen or DialMarked, which is in
// Go's poller from then on, or c itself if it is one.
func TCP(c net.Conn) (*net.TCPConn, bool) {
	if s, ok := c.(*Socket); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		conn, err := s.adopt()
		return conn, err == nil
	}
	conn, ok := c.(*net.TCPConn)
	return conn, ok
}

// SetLeaver makes the socket tell l before it waits: a Read suspends l, which leaves if
// that takes long; for a Write it leaves at once.
func (s *Socket) SetLeaver(l Leaver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaver = l
}

// poll gives the socket to Go's poller for a Read or Write that has to wait there.
func (s *Socket) poll() (*net.TCPConn, error) {
	s.mu.Lock()
	l := s.leaver
	s.mu.Unlock()
	if l != nil {
		l.Leave()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.adopt()
}

// adopt moves the socket to Go's poller. Mu is held.
func (s *Socket) adopt() (*net.TCPConn, error) {
	if s.conn != nil || s.err != nil {
		return s.conn, s.err
	}
	if s.fd < 0 {
		return nil, net.ErrClosed
	}
	s.unwatch()
	fd := s.fd
	f := os.NewFile(uintptr(fd), "")
	s.fd = -1
	defer f.Close() // FileConn dups the descriptor
	c, err := net.FileConn(f)
	if err != nil {
		s.err = err
		return nil, err
	}
	setKeepAlive(fd, s.keepAlive) // package net has just set its own options
	s.conn = c.(*net.TCPConn)
	if !s.readBy.IsZero() || !s.writeBy.IsZero() {
		s.conn.SetReadDeadline(s.readBy)
		s.conn.SetWriteDeadline(s.writeBy)
	}
	return s.conn, nil
}

// Read reads what is there, and waits in Go's poller if there is nothing.
func (s *Socket) Read(b []byte) (int, error) {
	s.mu.Lock()
	if s.fd >= 0 {
		if n, err := s.readNow(b); err != errWouldBlock {
			s.mu.Unlock()
			return n, err
		}
	}
	l := s.leaver
	s.mu.Unlock()
	if l != nil && s.waitOnLoop(l) {
		if n, err, ok := s.ReadNow(b); ok {
			return n, err
		}
	}
	c, err := s.poll()
	if err != nil {
		return 0, err
	}
	return c.Read(b)
}

// loopPatience is how long a read or a dial waits on a loop before its caller leaves the
// loop. Who wants to end it from outside may have to wait that long.
const loopPatience = 20 * time.Millisecond

// waitOnLoop waits until there is something to read.
func (s *Socket) waitOnLoop(l Leaver) bool { return waitOnLoop(l, s.await) }

// waitOnLoop gives a loop that runs the caller back until await calls f, for
// loopPatience at most. The caller goes on with the loop that called f, if that has time
// for it, else on a goroutine of its own. False: there was no loop, or await was false.
func waitOnLoop(l Leaver, await func(f func(*loop)) bool) bool {
	stay := false
	waited := l.Suspend(func(resume func()) bool {
		timer := time.AfterFunc(loopPatience, resume)
		armed := await(func(on *loop) {
			if !timer.Stop() {
				return
			}
			if stay = on != nil && on.steps.Take(resume, on.last); !stay {
				go resume()
			}
		})
		return armed || !timer.Stop() // if it does not stop, it resumes
	})
	if waited && !stay {
		l.Leave()
	}
	return waited
}

// ReadNow is Read without waiting; ok is false if it would have to wait.
func (s *Socket) ReadNow(b []byte) (n int, err error, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, nil, false
	}
	n, err = s.readNow(b)
	if err == errWouldBlock {
		return 0, nil, false
	}
	return n, err, true
}

// WriteNow is Write without waiting: n bytes were written; ok is false if it
// would have to wait to write the rest.
func (s *Socket) WriteNow(b []byte) (n int, err error, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, nil, false
	}
	n, err = s.writeNow(b)
	if err == errWouldBlock {
		return n, nil, false
	}
	return n, err, true
}

// readNow is Read without waiting. Mu is held, and the descriptor is the socket's
// own.
func (s *Socket) readNow(b []byte) (int, error) {
	if expired(s.readBy) {
		return 0, s.opError("read", os.ErrDeadlineExceeded)
	}
	if len(b) == 0 {
		return 0, nil
	}
	s.missed = false // this read sees everything up to now; a later event sets it again
	n, errno := recv(s.fd, b)
	switch {
	case errno == syscall.EAGAIN:
		return 0, errWouldBlock
	case errno != 0:
		return 0, s.opError("read", ioError("read", errno))
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write writes what the system accepts, and waits in Go's poller for the rest.
func (s *Socket) Write(b []byte) (n int, err error) {
	s.mu.Lock()
	if s.fd >= 0 {
		if n, err = s.writeNow(b); err != errWouldBlock {
			s.mu.Unlock()
			return n, err
		}
	}
	s.mu.Unlock()
	c, err := s.poll()
	if err != nil {
		return n, err
	}
	more, err := c.Write(b[n:])
	return n + more, err
}

// writeNow is Write without waiting. Mu is held.
func (s *Socket) writeNow(b []byte) (n int, err error) {
	if expired(s.writeBy) {
		return 0, s.opError("write", os.ErrDeadlineExceeded)
	}
	for n < len(b) {
		sent, errno := send(s.fd, b[n:])
		switch {
		case errno == syscall.EAGAIN:
			return n, errWouldBlock
		case errno != 0:
			return n, s.opError("write", ioError("write", errno))
		}
		n += sent
	}
	return n, nil
}

func expired(by time.Time) bool { return !by.IsZero() && !time.Now().Before(by) }

// opError wraps err in package net's form.
func (s *Socket) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: s.RemoteAddr(), Err: err}
}

// watch makes a loop wait for bytes, edge-triggered: after an event the loop is
// quiet until more bytes arrive. Mu is held.
func (s *Socket) watch() bool {
	if s.loop != nil {
		return true
	}
	l, at := s.engine.homeOrLoop(s), s.engine.table.at(s.fd)
	if l == nil || at == nil {
		return false
	}
	at.Store(&s.watched)
	if epollCtl(l.epfd, unix.EPOLL_CTL_ADD, s.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET) != 0 {
		at.Store(nil)
		return false
	}
	s.loop, s.home = l, l
	return true
}

// unwatch undoes watch. Mu is held.
func (s *Socket) unwatch() {
	if s.loop == nil {
		return
	}
	s.engine.table.at(s.fd).Store(nil)
	epollCtl(s.loop.epfd, unix.EPOLL_CTL_DEL, s.fd, 0)
	s.loop, s.arrived = nil, nil
}

// ready handles an event of the socket, on a loop.
func (s *Socket) ready(l *loop) {
	s.mu.Lock()
	f := s.arrived
	s.arrived, s.missed = nil, f == nil
	s.mu.Unlock()
	if f != nil {
		f(l)
	}
}

// Await calls f once, on a loop, when there is something to read: bytes, an end,
// an error; rarely, when there is not. It does not call f after Close, or if
// Await returned false. F must not block. Until f is called nobody may read from
// the connection.
func (s *Socket) Await(f func()) bool { return s.await(func(*loop) { f() }) }

// AwaitStep is Await for an f that computes for long: the loop calls it as a step
// (load.Steps). False: f is called on a goroutine of its own, because the loop has too
// many, or none that waits for the socket.
func (s *Socket) AwaitStep(f func(onLoop bool)) bool {
	return s.await(func(on *loop) {
		switch {
		case on == nil:
			f(false)
		case !on.steps.Take(func() { f(true) }, on.last):
			go f(false)
		}
	})
}

// await is Await. F gets the loop; nil: it is called on another goroutine.
func (s *Socket) await(f func(*loop)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 || !s.watch() {
		return false
	}
	if s.missed {
		s.missed = false
		go f(nil) // in place of the loop's call
		return true
	}
	s.arrived = f
	return true
}

// CloseWrite ends the sending direction.
func (s *Socket) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.conn != nil:
		return s.conn.CloseWrite()
	case s.fd < 0:
		return net.ErrClosed
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(int(s.fd), unix.SHUT_WR))
}

// SetDeadline implements net.Conn.
func (s *Socket) SetDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readBy, s.writeBy = t, t
	if s.conn != nil {
		return s.conn.SetDeadline(t)
	}
	return s.open()
}

// SetReadDeadline implements net.Conn.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readBy = t
	if s.conn != nil {
		return s.conn.SetReadDeadline(t)
	}
	return s.open()
}

// SetWriteDeadline implements net.Conn.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeBy = t
	if s.conn != nil {
		return s.conn.SetWriteDeadline(t)
	}
	return s.open()
}

// open returns an error if the socket is closed, or an engine's. Mu is held.
func (s *Socket) open() error {
	if s.fd < 0 {
		return net.ErrClosed
	}
	return nil
}

// SetLinger is that of net.TCPConn; 0 makes Close send a RST.
func (s *Socket) SetLinger(seconds int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.conn != nil:
		return s.conn.SetLinger(seconds)
	case s.fd < 0:
		return net.ErrClosed
	case seconds == 0:
		setLingerZero(s.fd)
	}
	return nil
}

// Close closes the connection, in Go's poller or not.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return s.conn.Close()
	}
	if s.fd < 0 {
		return net.ErrClosed
	}
	if s.loop != nil { // remove it from the table before the number can be reused
		s.engine.table.at(s.fd).Store(nil)
	}
	closeFD(s.fd)
	s.fd, s.loop, s.arrived = -1, nil, nil
	return nil
}

// LocalAddr is our end's address; nil if it is not known after the socket was
// closed or went to an engine.
func (s *Socket) LocalAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return s.conn.LocalAddr()
	}
	at := s.local
	if !at.IsValid() {
		at = localAddr(s.fd)
	}
	if !at.IsValid() {
		return nil
	}
	return net.TCPAddrFromAddrPort(at)
}

// RemoteAddr is the other end's address.
func (s *Socket) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

// RemoteAddrPort is RemoteAddr without an allocation.
func (s *Socket) RemoteAddrPort() netip.AddrPort { return s.remote }

// Control calls f with the descriptor, which f must neither keep nor close.
func (s *Socket) Control(f func(fd uintptr)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.conn != nil:
		raw, err := s.conn.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(f)
	case s.fd < 0:
		return net.ErrClosed
	}
	f(uintptr(s.fd))
	return nil
}

// bare returns the descriptor; ok is false if it is not the socket's own any
// more.
func (s *Socket) bare() (fd int32, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fd, s.fd >= 0
}

// holds reports whether fd is the socket's own.
func (s *Socket) holds(fd int32) bool {
	own, ok := s.bare()
	return ok && own == fd
}

// release ends the socket's own waiting, before another owner of the descriptor
// waits in l. Known reports that l's epoll has the descriptor already, and needs
// only a change.
func (s *Socket) release(l *loop) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loop == l {
		s.loop, s.arrived = nil, nil
		return true
	}
	s.unwatch()
	return false
}

// taken gives the descriptor to an engine; it returns false if the socket is in
// Go's poller.
func (s *Socket) taken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.fd
	s.fd, s.leaver = -1, nil
	return was >= 0
}

func setNoDelay(fd int32) { setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

func setKeepAlive(fd int32, keepAlive *net.KeepAliveConfig) {
	if !keepAlive.Enable {
		return
	}
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle/time.Second))
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval/time.Second))
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count)
	setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

// bigEndian converts a port from or to network byte order.
func bigEndian(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}

// DialMarked connects to an address without a zone, and returns a connection for
// Plain or for a Transport. Mark is that of the socket (SO_MARK); 0: none. The error
// is, or wraps, the system's error number, that of ctx, or a *MarkError. The socket
// is not bound before it connects, so that ports do not run out. L, if not nil, is
// suspended, or leaves, before the dial has to wait, which one to this host does not, and
// becomes the connection's SetLeaver. KeepAlive must not be changed afterwards.
func (e *Engine) DialMarked(ctx context.Context, to netip.AddrPort, mark int, keepAlive *net.KeepAliveConfig, l Leaver) (net.Conn, error) {
	s, err := e.connect(ctx, to, mark, l)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	setNoDelay(s.fd)
	s.keepAlive, s.late = keepAlive, true
	return s, nil
}

func (e *Engine) connect(ctx context.Context, to netip.AddrPort, mark int, l Leaver) (*Socket, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if !to.Addr().Is4() {
		family = unix.AF_INET6
	}
	n, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if errno != 0 {
		return nil, ioError("socket", errno)
	}
	s := newSocket(e, int32(n), to, nil)
	s.leaver = l
	if mark != 0 {
		if err := SetMark(uintptr(s.fd), mark); err != nil {
			closeFD(s.fd)
			return nil, err
		}
	}
	// The second call returns the result of the first, which to an address of this
	// host has ended by then.
	errno = connect(s.fd, to)
	if errno == syscall.EINPROGRESS {
		errno = connect(s.fd, to)
	}
	var err error
	switch errno {
	case 0, syscall.EISCONN:
		if s.local = localAddr(s.fd); s.local == unmapped(to) {
			// Nothing listens there, and the kernel has chosen the same port for us: the
			// socket has connected to itself. A dead service would seem alive, and could
			// not listen again.
			err = ioError("connect", syscall.ECONNREFUSED)
		}
	case syscall.EALREADY, syscall.EINPROGRESS:
		err = e.awaitConnect(ctx, s.fd, to, l)
	default:
		err = ioError("connect", errno)
	}
	if err != nil {
		closeFD(s.fd)
		return nil, err
	}
	return s, nil
}

func connect(fd int32, to netip.AddrPort) syscall.Errno {
	if to.Addr().Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: bigEndian(to.Port()), Addr: to.Addr().As4()}
		_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
		return errno
	}
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: bigEndian(to.Port()), Addr: to.Addr().As16()}
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	return errno
}

// localAddr returns a socket's own address; the zero value if there is none.
func localAddr(fd int32) netip.AddrPort {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return netip.AddrPort{}
	}
	return unmapped(addrPort(&sa))
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// dialling is a connect that somebody waits for.
type dialling struct {
	event   chan struct{}               // has room for one
	arrived atomic.Pointer[func(*loop)] // called at the first event; nil: nothing is
}

func (d *dialling) ready(l *loop) {
	select {
	case d.event <- struct{}{}:
	default:
	}
	if f := d.arrived.Swap(nil); f != nil {
		(*f)(l)
	}
}

// awaitConnect waits in a loop's epoll until a connect has ended. An event is
// only a hint, as for a flow.
func (e *Engine) awaitConnect(ctx context.Context, fd int32, to netip.AddrPort, leaver Leaver) error {
	l := e.loop()
	if l == nil {
		return ioError("epoll_create1", syscall.EMFILE)
	}
	at := e.table.at(fd)
	if at == nil {
		return ioError("connect", syscall.EMFILE)
	}
	w := &dialling{event: make(chan struct{}, 1)}
	at.Store(&watched{other: w})
	defer at.Store(nil)
	var added syscall.Errno
	add := func(f func(*loop)) bool {
		w.arrived.Store(&f)
		added = epollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, unix.EPOLLOUT|unix.EPOLLONESHOT)
		return added == 0
	}
	waited := leaver != nil && waitOnLoop(leaver, add)
	if !waited && added == 0 {
		added = epollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, unix.EPOLLOUT|unix.EPOLLONESHOT)
	}
	if added != 0 {
		return ioError("epoll_ctl", added)
	}
	defer epollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, 0)
	for {
		if !waited {
			if leaver != nil {
				leaver.Leave()
			}
			select {
			case <-w.event:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		waited = false
		switch errno := connect(fd, to); errno {
		case 0, syscall.EISCONN:
			return nil
		case syscall.EALREADY, syscall.EINPROGRESS:
			epollCtl(l.epfd, unix.EPOLL_CTL_MOD, fd, unix.EPOLLOUT|unix.EPOLLONESHOT)
		default:
			return ioError("connect", errno)
		}
	}
}
