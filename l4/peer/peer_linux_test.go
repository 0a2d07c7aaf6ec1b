package peer

import (
	"net"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"ambassador/l4/l4test"
)

// The user at the other end of a unix socket, at the time it connected.
func TestUIDOfUnixClients(t *testing.T) {
	near, _ := l4test.UnixPair(t)
	if uid, ok := UID(near); !ok || int(uid) != os.Getuid() {
		t.Errorf("our own: %d, %v", uid, ok)
	}
	a, b := net.Pipe()
	defer b.Close()
	if uid, ok := UID(a); ok {
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
	if uid, ok := UID(other); !ok || uid != 4711 {
		t.Errorf("somebody else: %d, %v", uid, ok)
	}
}
