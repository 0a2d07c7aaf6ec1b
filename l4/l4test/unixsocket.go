package l4test

import (
	"io/fs"
	"net"
	"os"
	"syscall"
	"testing"
)

// UnixPair is a connection over a unix socket.
func UnixPair(t *testing.T) (near, far net.Conn) {
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

func ShortFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "l4") // t.TempDir is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// LeaveStale leaves a unix socket on which no process listens, as a killed process
// does.
func LeaveStale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
}

// SocketFile has the visible attributes of a socket's file.
type SocketFile struct {
	Mode     fs.FileMode
	UID, GID int
	Inode    uint64
}

func StatSocket(t *testing.T, path string) SocketFile {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return SocketFile{info.Mode().Perm(), int(st.Uid), int(st.Gid), st.Ino}
}
