package integration

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is one upstream of a test, in the test's own process.
type server struct {
	addr    string
	handler func(*server, duplex)
	done    chan struct{} // closed by close

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
	seen  []string          // guarded by mu; what handlers reported
	news  chan struct{}     // guarded by mu; closed at the next report

	ln net.Listener
	wg sync.WaitGroup // accept and the handlers
}

// duplex is a connection that can end one direction: TCP, unix and TLS ones.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// serve answers on a free loopback port, over TLS if cfg is not nil.
func serve(cfg *tls.Config, handler func(*server, duplex)) (*server, error) {
	return serveAt("127.0.0.1:0", cfg, handler)
}

func serveAt(addr string, cfg *tls.Config, handler func(*server, duplex)) (*server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return serveOn(ln, cfg, handler), nil
}

// serveOn is serve on a listener that exists, which the server closes.
func serveOn(ln net.Listener, cfg *tls.Config, handler func(*server, duplex)) *server {
	s := &server{addr: ln.Addr().String(), handler: handler, done: make(chan struct{}),
		conns: map[net.Conn]bool{}, news: make(chan struct{}), ln: ln}
	s.wg.Go(func() { s.accept(cfg) }) // close waits for it
	return s
}

func (s *server) accept(cfg *tls.Config) {
	for {
		raw, err := s.ln.Accept()
		if err != nil {
			return
		}
		if !s.track(raw) {
			raw.Close()
			return
		}
		s.wg.Go(func() { s.handle(raw, cfg) }) // close waits for it
	}
}

func (s *server) handle(raw net.Conn, cfg *tls.Config) {
	defer s.forget(raw)
	if cfg == nil {
		s.handler(s, raw.(*net.TCPConn))
		return
	}
	c := tls.Server(raw, cfg)
	if err := c.Handshake(); err != nil {
		s.report("handshake: " + err.Error())
		return
	}
	s.handler(s, c)
}

func (s *server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return false
	default:
		s.conns[c] = true
		return true
	}
}

func (s *server) forget(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.Close()
}

// close ends the server and all its connections.
func (s *server) close() {
	s.mu.Lock()
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.ln.Close()
	s.wg.Wait()
}

// report records an observation of a handler, for received.
func (s *server) report(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, what)
	close(s.news)
	s.news = make(chan struct{})
}

// received waits until some report contains want.
func (s *server) received(want string, within time.Duration) error {
	timer := time.After(within)
	for {
		s.mu.Lock()
		seen, news := strings.Join(s.seen, "\n"), s.news
		s.mu.Unlock()
		if strings.Contains(seen, want) {
			return nil
		}
		select {
		case <-news:
		case <-timer:
			return fmt.Errorf("the server did not report %q within %v, but:\n%s", want, within, seen)
		}
	}
}

// pause lasts d, or until the server is closed.
func (s *server) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
}

// startServer is serve for Go tests: the server ends with the test.
func startServer(t testing.TB, cfg *tls.Config, handler func(*server, duplex)) *server {
	t.Helper()
	s, err := serve(cfg, handler)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// echo sends back what it gets and ends when the client has ended.
func echo(_ *server, c duplex) {
	io.Copy(c, c)
	c.CloseWrite()
}

// checksum reads to the client's end and answers its length and SHA-256, after
// the delay.
func checksum(delay time.Duration) func(*server, duplex) {
	return func(s *server, c duplex) {
		h := sha256.New()
		n, err := io.Copy(h, c)
		if err != nil {
			s.report("checksum: " + err.Error())
			return
		}
		s.report(fmt.Sprintf("eof after %d", n))
		s.pause(delay)
		fmt.Fprintf(c, "%d %x\n", n, h.Sum(nil))
		c.CloseWrite()
	}
}

// endFirst speaks, ends its own direction, and goes on reading until the client
// ends too; it reports what came.
func endFirst(s *server, c duplex) {
	fmt.Fprintln(c, "that is all")
	c.CloseWrite()
	text, err := io.ReadAll(c)
	s.report(fmt.Sprintf("after my end: %q %v", text, err))
}

// pour sends n bytes and ends; it reports their SHA-256.
func pour(n int64) func(*server, duplex) {
	return func(s *server, c duplex) {
		h := sha256.New()
		sent, err := io.Copy(io.MultiWriter(c, h), io.LimitReader(noise(uint64(n)), n))
		s.report(fmt.Sprintf("poured %d %x %v", sent, h.Sum(nil), err))
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
}

// noise is an endless stream of bytes that do not compress.
func noise(seed uint64) io.Reader { return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}) }

// speaksFirst greets before the client has said anything, then echoes lines.
func speaksFirst(greeting string) func(*server, duplex) {
	return func(s *server, c duplex) {
		if _, err := io.WriteString(c, greeting); err != nil {
			return
		}
		echoLines(s, c)
	}
}

// echoLines echoes line by line, and reports each.
func echoLines(s *server, c duplex) {
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		s.report("line: " + lines.Text())
		fmt.Fprintln(c, lines.Text())
	}
	c.CloseWrite()
}

// silent accepts and does nothing else.
func silent(s *server, c duplex) { <-s.done }

// resetter resets when the client has ended.
func resetter(_ *server, c duplex) {
	io.Copy(io.Discard, c) // to its end: a reset before that would be an early close
	raw := net.Conn(c)
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	raw.(*net.TCPConn).SetLinger(0)
	raw.Close()
}

// dribble sends one byte and then, for the length of any test, nothing.
func dribble(s *server, c duplex) {
	c.Write([]byte{'.'})
	<-s.done
}

// trickle begins a TLS record of 16 KiB and goes on a byte at a time, so that a
// wait that begins anew with each byte would never end.
func trickle(s *server, c duplex) {
	_, err := io.WriteString(c, "\x16\x03\x03\x40\x00")
	for ; err == nil; _, err = c.Write([]byte{2}) {
		select {
		case <-s.done:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// earlyClose ends at once, without a byte.
func earlyClose(_ *server, c duplex) {}

// garbage sends bytes of no protocol and holds the line.
func garbage(s *server, c duplex) {
	io.CopyN(c, noise(7), 300)
	<-s.done
}

// refusesPostgresTLS answers PostgreSQL's SSLRequest with N.
func refusesPostgresTLS(s *server, c duplex) {
	if _, err := io.ReadFull(c, make([]byte, 8)); err == nil {
		c.Write([]byte("N"))
		<-s.done
	}
}

// mysqlGreeting is how a MySQL server begins: the header of a 74-byte packet
// with sequence number 0, protocol 10, and the version.
const mysqlGreeting = "\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00abcdefgh\x00\xff\xff\x08\x02\x00\xff\xc1\x15" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abcdefghijkl\x00mysql_native_password\x00"

// full is a listening socket whose queue is full: the kernel drops what more is
// sent to it, as a dead host does.
type full struct {
	addr  string
	fd    int
	conns []net.Conn
}

// listenShort listens on a free loopback port with a queue of that length.
func listenShort(backlog int) (fd int, addr string, err error) {
	syscall.ForkLock.RLock() // no program that a test starts inherits the socket
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, "", err
	}
	var name syscall.Sockaddr
	err = errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, backlog))
	if err == nil {
		name, err = syscall.Getsockname(fd)
	}
	if err != nil {
		syscall.Close(fd)
		return 0, "", err
	}
	return fd, "127.0.0.1:" + strconv.Itoa(name.(*syscall.SockaddrInet4).Port), nil
}

// newFull fills a queue of the smallest length until a connection hangs.
func newFull() (*full, error) {
	fd, addr, err := listenShort(0)
	if err != nil {
		return nil, err
	}
	f := &full{addr: addr, fd: fd}
	for range 16 {
		c, err := net.DialTimeout("tcp", f.addr, 500*time.Millisecond)
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			return f, nil
		}
		if err != nil {
			f.close()
			return nil, err
		}
		f.conns = append(f.conns, c)
	}
	f.close()
	return nil, errors.New("the queue of a listener with backlog 0 never filled")
}

func (f *full) close() {
	for _, c := range f.conns {
		c.Close()
	}
	syscall.Close(f.fd)
}

// nextPort is where freePort looks next. Below 32768 the system takes no port
// for a connection that did not ask for one, so only other tests compete.
var nextPort = struct {
	sync.Mutex
	n int
}{n: 20000 + os.Getpid()%10000}

// freePort is a loopback port that was free a moment ago, for programs that
// cannot choose their own (nc -l, PostgreSQL) and for nc -p.
func freePort() (string, error) {
	nextPort.Lock()
	defer nextPort.Unlock()
	for range 200 {
		if nextPort.n++; nextPort.n > 32000 {
			nextPort.n = 20000
		}
		port := strconv.Itoa(nextPort.n)
		ln, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			ln.Close()
			return port, nil
		}
	}
	return "", errors.New("no free port between 20000 and 32000")
}
