package l4

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/relay"
)

// inNamespace puts the rest of the test into a network namespace of its own. Its
// loopback interface has an address and carries all traffic. Only sockets that the
// test's own goroutine opens are in the namespace.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		unable(t, "network namespaces need root")
	}
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unable(t, "no network namespace: "+err.Error())
	}
	for _, line := range []string{"link set lo up", "addr add 10.213.7.1/32 dev lo", "route add default dev lo",
		"-6 addr add fd00:213::1/128 dev lo nodad", "-6 route add default dev lo"} {
		if text, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			unable(t, fmt.Sprintf("ip %s: %v %s", line, err, text))
		}
	}
}

// nft adds rules to the test's namespace.
func nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("/usr/sbin/nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if text, err := cmd.CombinedOutput(); err != nil {
		unable(t, fmt.Sprintf("nft (Debian's nftables): %v %s", err, text))
	}
}

// unable skips a test that lacks a requirement. It fails the test where all
// requirements must be met.
func unable(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("AMBASSADOR_REQUIRE_SERVERS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// The original destination of redirected clients, for sockets of both kinds, and of a
// client that was not redirected.
func TestOriginalDestination(t *testing.T) {
	inNamespace(t)
	e := relay.New()
	defer e.Close()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	accepts, err := e.Listen(ln, &keepAlive)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go accepts.Serve(func(c net.Conn) { accepted <- c }) //nolint:errcheck // ends with Close
	defer accepts.Close()
	nft(t, fmt.Sprintf(`table inet ambassador {
	chain out { type nat hook output priority -100;
		ip daddr 203.0.113.7 tcp dport 443 redirect to :%d
		ip6 daddr 2001:db8::7 tcp dport 443 redirect to :%d
	}
	}`, port, port))
	for _, to := range []string{"203.0.113.7:443", "[2001:db8::7]:443", fmt.Sprint("127.0.0.1:", port), fmt.Sprintf("[::1]:%d", port)} {
		client, err := net.DialTimeout("tcp", to, 10*time.Second)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		defer client.Close()
		conn := <-accepted
		defer conn.Close()
		for _, kind := range []string{"a socket in no poller", "a socket in Go's"} {
			got, err := originalDestination(conn)
			redirected := strings.HasSuffix(to, ":443")
			if redirected && (err != nil || got != netip.MustParseAddrPort(to)) || !redirected && err == nil && got.String() != to {
				t.Errorf("%s, %s: %v, %v", to, kind, got, err)
			}
			t.Logf("%s, %s: %v, %v", to, kind, got, err)
			relay.TCP(conn)
		}
	}
}

func TestOriginalDestinationOfAUnixSocket(t *testing.T) {
	near, far := unixPair(t)
	defer far.Close()
	if _, err := originalDestination(near); err == nil || !strings.Contains(err.Error(), "needs a TCP listener") {
		t.Errorf("%v", err)
	}
}

// unixPair is a connection over a unix socket.
func unixPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// The user at the other end of a unix socket, at the time it connected.
func TestPeerUID(t *testing.T) {
	near, _ := unixPair(t)
	if uid, ok := peerUID(near); !ok || int(uid) != os.Getuid() {
		t.Errorf("our own: %d, %v", uid, ok)
	}
	a, b := net.Pipe()
	defer b.Close()
	if uid, ok := peerUID(a); ok {
		t.Errorf("no socket: %d", uid)
	}
	if os.Getuid() != 0 {
		t.Skip("to be somebody else needs root")
	}
	dir, err := os.MkdirTemp("", "uid") // other users cannot enter T.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(dir+"/s", 0o777); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// This changes only this thread, which package syscall would not do. The kernel
	// records the effective user.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 4711, ^uintptr(0)); errno != 0 {
		t.Skipf("setresuid: %v", errno)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: l.Addr().String()})
	unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0))
	if err != nil {
		t.Fatalf("connect as another user: %v", err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if uid, ok := peerUID(other); !ok || uid != 4711 {
		t.Errorf("somebody else: %d, %v", uid, ok)
	}
}
