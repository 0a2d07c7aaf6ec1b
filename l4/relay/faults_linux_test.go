package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Every system call of the epoll engine that can fail is made to fail, by a seccomp
// filter in the kernel. A filter cannot be removed, so each case has its own process.
// The engine's calls differ from those of package net (recvfrom and read, for
// example), so the test's applications are not affected.

// fault is a system call that fails.
type fault struct {
	call  uint32
	arg   int // where only some calls fail: an argument, and
	is    uint32
	other bool // those where it is another
	errno syscall.Errno
}

// always is the argument of a fault that affects every call.
const always = -1

func failRecv(e syscall.Errno) fault { return fault{call: unix.SYS_RECVFROM, arg: always, errno: e} }
func failSend(e syscall.Errno) fault { return fault{call: unix.SYS_SENDTO, arg: always, errno: e} }

func failSpliceIn(e syscall.Errno) fault {
	return fault{call: unix.SYS_SPLICE, arg: 4, is: pipeSize, errno: e}
}
func failSpliceOut(e syscall.Errno) fault {
	return fault{call: unix.SYS_SPLICE, arg: 4, is: pipeSize, other: true, errno: e}
}
func failEpollCtl(op uint32, e syscall.Errno) fault {
	return fault{call: unix.SYS_EPOLL_CTL, arg: 1, is: op, errno: e}
}

// inject makes the calls of all threads fail from now on.
func (f fault) inject(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	fails, allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(f.errno)}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	program := []unix.SockFilter{{Code: load, K: 0}, {Code: equal, K: f.call, Jf: 1}, fails, allow}
	if f.arg != always {
		first, second := fails, allow
		if f.other {
			first, second = allow, fails
		}
		program = []unix.SockFilter{{Code: load, K: 0}, {Code: equal, K: f.call, Jf: 4},
			{Code: load, K: uint32(16 + 8*f.arg)}, {Code: equal, K: f.is, Jf: 1}, first, second, allow}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skip("no seccomp here: ", err)
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p))); errno != 0 {
		t.Skip("no seccomp here: ", errno)
	}
}

// faultCase is the variable with the case that a process is for.
const faultCase = "AMBASSADOR_TEST_FAULT"

func TestFaults(t *testing.T) {
	type run = func(*testing.T)
	cases := map[string]run{}
	for _, e := range []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ENOMEM, syscall.ETIMEDOUT} {
		for _, k := range []kind{{}, {tls: tls.VersionTLS13}} {
			name := fmt.Sprintf("%v TLS %x", e, k.tls)
			cases["recv "+name] = func(t *testing.T) { readFails(t, k, failRecv(e)) }
			cases["send "+name] = func(t *testing.T) { writeFails(t, k, failSend(e), 1) }
		}
		cases[fmt.Sprint("splice out ", e)] = func(t *testing.T) { writeFails(t, kind{}, failSpliceOut(e), bulkSize) }
	}
	cases["splice in "+syscall.ECONNRESET.Error()] = func(t *testing.T) { readFails(t, kind{}, failSpliceIn(syscall.ECONNRESET)) }
	for _, e := range []syscall.Errno{syscall.EINVAL, syscall.ENOMEM} {
		cases[fmt.Sprint("splice in ", e)] = func(t *testing.T) { bulkIsCopied(t, failSpliceIn(e)) }
	}
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		cases[fmt.Sprint("pipe2 ", e)] = func(t *testing.T) { bulkIsCopied(t, fault{call: unix.SYS_PIPE2, arg: always, errno: e}) }
		cases[fmt.Sprint("dup ", e)] = func(t *testing.T) {
			fallsBack(t, fault{call: unix.SYS_FCNTL, arg: 1, is: unix.F_DUPFD_CLOEXEC, errno: e})
		}
		cases[fmt.Sprint("epoll_create1 ", e)] = func(t *testing.T) { fallsBack(t, fault{call: unix.SYS_EPOLL_CREATE1, arg: always, errno: e}) }
		cases[fmt.Sprint("eventfd2 ", e)] = func(t *testing.T) { fallsBack(t, fault{call: unix.SYS_EVENTFD2, arg: always, errno: e}) }
		cases[fmt.Sprint("accept4 ", e)] = func(t *testing.T) { acceptFails(t, fault{call: unix.SYS_ACCEPT4, arg: always, errno: e}) }
		cases[fmt.Sprint("socket ", e)] = func(t *testing.T) { dialFails(t, fault{call: unix.SYS_SOCKET, arg: always, errno: e}) }
	}
	for _, e := range []syscall.Errno{syscall.ENOMEM, syscall.ENOSPC} {
		cases[fmt.Sprint("epoll_ctl add ", e)] = func(t *testing.T) { fallsBack(t, failEpollCtl(unix.EPOLL_CTL_ADD, e)) }
	}
	cases["epoll_ctl mod"] = func(t *testing.T) { rearmFails(t, failEpollCtl(unix.EPOLL_CTL_MOD, syscall.ENOMEM)) }
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			if os.Getenv(faultCase) == name {
				f(t)
			} else if os.Getenv(faultCase) == "" {
				inAnotherProcess(t, name)
			}
		})
	}
}

func inAnotherProcess(t *testing.T, name string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestFaults$", "-test.v")
	cmd.Env = append(os.Environ(), faultCase+"="+name, "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("no seccomp here")) {
		t.Skipf("%s", out)
	}
}

// faultyPair is a session for a fault.
type faultyPair struct {
	*pair
	before int // sockets, before it
}

// newFaultyPair makes a session that has moved a byte each way.
func newFaultyPair(t *testing.T, up kind) faultyPair {
	t.Helper()
	before := sockets(t)
	p := newPair(t, New(), kind{}, up)
	io.WriteString(p.down, "x")
	wantRead(t, p.up, "x")
	io.WriteString(p.up, "y")
	wantRead(t, p.down, "y")
	waitFor(t, func() bool { return p.session.Up() == 1 && p.session.Down() == 1 })
	return faultyPair{p, before}
}

// endsWith ends a session by a fault, which must not leave anything behind.
func (p faultyPair) endsWith(want End, errno syscall.Errno) {
	p.t.Helper()
	r := p.result()
	if r.End != want || !errors.Is(r.Err, errno) {
		p.t.Errorf("result %+v; want %v with %v", r, want, errno)
	}
	p.down.raw.Close()
	p.up.raw.Close()
	p.engine.Close()
	waitFor(p.t, func() bool { return sockets(p.t) == p.before }) // a writer may still hold its own
}

// sockets counts the open sockets and pipes.
func sockets(t *testing.T) (n int) {
	t.Helper()
	for fd := 3; fd < 256; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && (st.Mode&unix.S_IFMT == unix.S_IFSOCK || st.Mode&unix.S_IFMT == unix.S_IFIFO) {
			n++
		}
	}
	return n
}

// readFails: the error of a read is the ending of its side, and is passed on.
func readFails(t *testing.T, up kind, f fault) {
	p := newFaultyPair(t, up)
	f.inject(t)
	go p.down.Write(make([]byte, bulkSize)) // its connection ends it
	wantReset(t, p.up)
	want := EndDownstreamReset
	if f.errno == syscall.ETIMEDOUT {
		want = EndDownstreamLost
	}
	p.endsWith(want, f.errno)
}

// writeFails: a side that refuses bytes is read on, to find how it ended; any other
// error ends the session at once.
func writeFails(t *testing.T, up kind, f fault, n int) {
	p := newFaultyPair(t, up)
	f.inject(t)
	go p.down.Write(make([]byte, n)) // its connection ends it
	want := EndUpstreamReset
	switch f.errno {
	case syscall.ETIMEDOUT:
		want = EndUpstreamLost
	case syscall.ECONNRESET, syscall.EPIPE:
		waitFor(t, func() bool {
			f := p.session.(*flow)
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.ledger.Sides[1].Broken != nil
		})
		p.up.closeWrite()
	}
	if n == 1 { // else the writer has met it
		wantReset(t, p.down)
	}
	p.endsWith(want, f.errno)
}

// bulkIsCopied: bytes that cannot be spliced still arrive.
func bulkIsCopied(t *testing.T, f fault) {
	p := newFaultyPair(t, kind{})
	f.inject(t)
	sent := make(chan []byte, 1)
	go func() { sent <- sendOdd(p.down, 5) }() // awaited below
	got := receive(p.up)
	if !bytes.Equal(got, <-sent) {
		t.Error("not what was sent has arrived")
	}
	p.up.closeWrite()
	if r, n := p.result(), p.engine.spliced.Load(); r.End != EndClosed || r.Up != bulkSize+1 || n > 0 {
		t.Errorf("result %+v, %d bytes spliced", r, n)
	}
}

// fallsBack: a session that epoll cannot take is run by the portable implementation.
func fallsBack(t *testing.T, f fault) {
	for _, loops := range []bool{false, true} {
		e := New()
		if loops && f.call != unix.SYS_EPOLL_CREATE1 && f.call != unix.SYS_EVENTFD2 {
			newPair(t, e, kind{}, kind{}).session.Stop(nil)
		}
		p := newPairAfter(t, e, kind{}, kind{tls: tls.VersionTLS12}, func(*pair, *Config) {
			if !loops { // the filter stays for the second time, whose legs need no more of what fails
				f.inject(t)
			}
		})
		if _, ok := p.session.(*pumped); !ok {
			t.Fatalf("the session is a %T", p.session)
		}
		lateAnswer(t, p, p.down, p.up, Downstream)
		if f.call == unix.SYS_EPOLL_CTL {
			return // Go's poller cannot have new sockets either
		}
	}
}

// rearmFails: a session that epoll cannot watch any more is ended.
func rearmFails(t *testing.T, f fault) {
	p := newFaultyPair(t, kind{})
	f.inject(t)
	go p.down.Write(make([]byte, bulkSize)) // its connection ends it
	if r := p.result(); r.End != EndInternal || !errors.Is(r.Err, f.errno) {
		t.Errorf("result %+v", r)
	}
	wantReset(t, p.up)
}

// acceptFails: Serve ends with the error, and can be called again.
func acceptFails(t *testing.T, f fault) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := New()
	defer e.Close()
	l, err := e.Listen(ln, &net.KeepAliveConfig{})
	if err != nil {
		t.Fatal(err)
	}
	f.inject(t)
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n, err := l.Serve(func(net.Conn) {}); n != 0 || !errors.Is(err, f.errno) {
			t.Errorf("Serve: %d, %v", n, err)
		}
	}
	l.Close()
	if _, err := l.Serve(func(net.Conn) {}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

func dialFails(t *testing.T, f fault) {
	e := New()
	defer e.Close()
	f.inject(t)
	to := netip.MustParseAddrPort("127.0.0.1:9")
	if _, err := e.DialMarked(t.Context(), to, 0, &net.KeepAliveConfig{}, nil); !errors.Is(err, f.errno) {
		t.Errorf("Dial: %v", err)
	}
}
