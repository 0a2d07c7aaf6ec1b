package peer

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// connected returns both ends of a TCP connection at an address of this host.
func connected(t testing.TB, at string) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Skipf("listen at %s: %v", at, err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestTCPClientsOfThisHost(t *testing.T) {
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"127.0.0.1:0", "127.1.2.3:0", "[::1]:0"} {
		client, server := connected(t, at)
		for _, half := range []bool{false, true} {
			if half {
				client.CloseWrite() // it is still the client's
			}
			w := Of(server, false)
			if !w.HasUID || int(w.UID) != os.Getuid() || w.Lost {
				t.Errorf("%s, half closed %v: %+v, want our uid %d", at, half, w, os.Getuid())
			}
			if w.PID != 0 || w.Process != "" {
				t.Errorf("%s: the process was looked up, and nobody had asked: %+v", at, w)
			}
			w.FindProcess(t.Context())
			if w.PID != os.Getpid() || w.Process != strings.TrimSpace(string(name)) {
				t.Errorf("%s: process %d %q, want %d %q", at, w.PID, w.Process, os.Getpid(), name)
			}
		}
	}
}

// A socket of IPv6 may connect to an IPv4 address; it is what Java opens.
func TestMappedClients(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skipf("IPv6: %v", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet6{Port: l.Addr().(*net.TCPAddr).Port, Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
	if err := unix.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if w := Of(server, false); !w.HasUID || int(w.UID) != os.Getuid() || w.Lost {
		t.Errorf("%+v, want our uid %d", w, os.Getuid())
	}
}

// TestBoundClients asserts that the user of a client that is bound to an interface is
// found, and that of a link-local one, which the kernel binds.
func TestBoundClients(t *testing.T) {
	t.Run("SO_BINDTODEVICE", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") })
			return err
		}}
		found(t, l, &d, l.Addr().String())
	})
	t.Run("link-local", func(t *testing.T) {
		addr := linkLocal(t)
		l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
		if err != nil {
			t.Skip(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		found(t, l, &net.Dialer{}, net.JoinHostPort(addr, port))
	})
}

// found asserts that a client's user is found, and closes l.
func found(t *testing.T, l net.Listener, d *net.Dialer, to string) {
	t.Helper()
	defer l.Close()
	client, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Skip(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if w := Of(server, false); !w.HasUID || int(w.UID) != os.Getuid() || w.Lost {
		t.Errorf("%s: %+v, want our uid %d", client.LocalAddr(), w, os.Getuid())
	}
}

// linkLocal is a link-local address of this host.
func linkLocal(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, ok := a.(*net.IPNet); ok && p.IP.To4() == nil && p.IP.IsLinkLocalUnicast() {
				return fmt.Sprintf("%s%%%s", p.IP, i.Name)
			}
		}
	}
	t.Skip("this host has no link-local address")
	return ""
}

// The kernel says user 0, root, of a socket that its process has closed.
func TestClosedSocketIsNotRoots(t *testing.T) {
	client, server := connected(t, "127.0.0.1:0")
	client.Close()
	if w := Of(server, false); w.HasUID || !w.Lost {
		t.Errorf("%+v, want no user, and Lost", w)
	}
}

func TestWhoElse(t *testing.T) {
	_, server := connected(t, "127.0.0.1:0")
	if w := of(server, netip.MustParseAddrPort("127.0.0.1:1")); w.HasUID || !w.Lost {
		t.Errorf("a local client that connected elsewhere: %+v", w)
	}
	if w := of(server, netip.AddrPort{}); w.HasUID || !w.Lost {
		t.Errorf("a local client whose destination is not known: %+v", w)
	}
	a, b := net.Pipe()
	defer b.Close()
	if w := of(a, netip.MustParseAddrPort("127.0.0.1:1")); w != (Who{}) {
		t.Errorf("no socket: %+v", w)
	}
	if isOurs(netip.MustParseAddr("192.0.2.77")) {
		t.Error("192.0.2.77 is taken for an address of this host")
	}
}

func TestUnixClientsProcess(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := Of(s, false)
	w.FindProcess(t.Context())
	if int(w.UID) != os.Getuid() || !w.HasUID || w.PID != os.Getpid() || w.Process == "" {
		t.Errorf("%+v, want uid %d, process %d with a name", w, os.Getuid(), os.Getpid())
	}
}

func TestSearchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := search{turn: make(chan struct{}, 1)}
	if pid := s.find(ctx, 1); pid != 0 {
		t.Errorf("found %d after the end", pid)
	}
	s.turn <- struct{}{}
	if pid := s.find(ctx, 1); pid != 0 {
		t.Errorf("found %d without a turn", pid)
	}
}

func reply(src, dst netip.AddrPort, state byte, uid, inode uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, headerLen+answerLen)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = append(b, make([]byte, 10)...)
	b = appendID(append(b, familyIPv4, state, 0, 0), src, dst, 0)
	b = append(b, make([]byte, 12)...)
	b = binary.NativeEndian.AppendUint32(b, uid)
	return binary.NativeEndian.AppendUint32(b, inode)
}

// Only an answer about the socket, in a state in which a process holds it, has a user.
func TestAnswer(t *testing.T) {
	src, dst := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:5432")
	good := reply(src, dst, stateEstablished, 33, 7)
	if uid, inode, err := answer(good, src, dst); uid != 33 || inode != 7 || err != nil {
		t.Errorf("%d, %d, %v", uid, inode, err)
	}
	refused := binary.NativeEndian.AppendUint32(nil, 20)
	refused = append(binary.NativeEndian.AppendUint16(refused, errorType), make([]byte, 14)...)
	for name, b := range map[string][]byte{
		"an error":          refused,
		"nothing":           nil,
		"cut short":         good[:len(good)-1],
		"another socket":    reply(dst, src, stateEstablished, 33, 7),
		"connecting":        reply(src, dst, 2, 33, 7),
		"listening":         reply(src, dst, 10, 33, 7),
		"waiting, unheld":   reply(src, dst, 6, 0, 0),
		"closed by its own": reply(src, dst, stateFinWait2, 0, 0),
	} {
		if uid, _, err := answer(b, src, dst); err == nil {
			t.Errorf("%s: user %d", name, uid)
		}
	}
}

// No answer is read beyond its end, and one with a user is about the right socket.
func FuzzAnswer(f *testing.F) {
	src, dst := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:5432")
	f.Add(reply(src, dst, stateEstablished, 33, 7))
	f.Add(reply(dst, src, stateEstablished, 33, 7))
	f.Add(reply(src, dst, 6, 0, 0))
	f.Add([]byte{16, 0, 0, 0, errorType, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		uid, inode, err := answer(b, src, dst)
		if err != nil {
			return
		}
		if inode == 0 || len(b) < headerLen+answerLen || readEnd(b[headerLen], b[headerLen+4:], b[headerLen+8:]) != src || readEnd(b[headerLen], b[headerLen+6:], b[headerLen+24:]) != dst {
			t.Errorf("user %d, inode %d of %x", uid, inode, b)
		}
	})
}

// What a session pays: a question to the kernel for the user, and, only if the listener
// logs processes, the search for the process.
func BenchmarkOf(b *testing.B) {
	_, server := connected(b, "127.0.0.1:0")
	b.Run("user", func(b *testing.B) {
		for b.Loop() {
			Of(server, false)
		}
	})
	b.Run("process-seen-before", func(b *testing.B) {
		for b.Loop() {
			w := Of(server, false)
			w.FindProcess(b.Context())
		}
	})
	b.Run("process-among-all", func(b *testing.B) {
		for b.Loop() {
			holders.recent = nil
			w := Of(server, false)
			w.FindProcess(b.Context())
		}
	})
}
