package l4

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// socketFile is what can be seen of a socket's file.
type socketFile struct {
	mode     fs.FileMode
	uid, gid int
	inode    uint64
}

func statSocket(t *testing.T, path string) socketFile {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return socketFile{info.Mode().Perm(), int(st.Uid), int(st.Gid), st.Ino}
}

// A reload changes who may open a socket, and not the socket.
func TestReloadChangesModeAndOwnerOfASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.sock")
	cfg := oneUpstream(backend(t, echo))
	cfg.Listeners[0].Address = "unix:" + path
	f := serve(t, Options{}, cfg)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	ping(t, c)
	before := statSocket(t, path)
	if before.mode != 0o600 {
		t.Errorf("mode %o, want 0600", before.mode)
	}

	want := before
	want.mode = 0o660
	cfg.Listeners[0].Socket.Mode = want.mode
	if os.Getuid() == 0 {
		want.uid, want.gid = 12345, 54321
		cfg.Listeners[0].Socket.UID, cfg.Listeners[0].Socket.GID = &want.uid, &want.gid
	}
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if got := statSocket(t, path); got != want {
		t.Errorf("after the reload %+v, want %+v", got, want)
	}
	ping(t, c)

	cfg.Listeners[0].Socket = SocketConfig{Mode: 0o640} // and the owner as it was made
	cfg.Listeners = append(cfg.Listeners, ListenerConfig{Name: "other", Address: backend(t, echo), Upstream: "up"})
	if err := f.Apply(cfg); err == nil {
		t.Error("a port in use was taken")
	}
	if got := statSocket(t, path); got != want {
		t.Errorf("after a reload that failed %+v, want %+v", got, want)
	}
	cfg.Listeners = cfg.Listeners[:1]
	if err := f.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	want = before
	want.mode = 0o640
	if got := statSocket(t, path); got != want {
		t.Errorf("after the third reload %+v, want %+v", got, want)
	}
}

func TestReloadDoesNotGuardTheFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.sock")
	cfg := oneUpstream("127.0.0.1:1")
	cfg.Listeners[0].Address = "unix:" + path
	f := serve(t, Options{}, cfg)
	os.Remove(path)
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Listeners[0].Socket.Mode = 0o666
	if err := f.Apply(cfg); err == nil || !strings.Contains(err.Error(), "gone, or another's") {
		t.Errorf("Apply = %v", err)
	}
	if got := statSocket(t, path); got.mode != 0o600 {
		t.Errorf("the mode of another's file is %o", got.mode)
	}
}

// The file is guarded from its first moment, whatever the umask allows.
func TestUnixSocketIsBornGuarded(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux lets a socket choose its file's mode")
	}
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0))
	lc := net.ListenConfig{Control: bornGuarded}
	ln, err := lc.Listen(t.Context(), "unix", filepath.Join(dir, "draft"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got := statSocket(t, filepath.Join(dir, "draft")); got.mode != 0o600 {
		t.Errorf("it is made with mode %o", got.mode)
	}
}

func TestClosedUnixSocketKeepsASuccessorsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenUnix(t.Context(), path, SocketConfig{})
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	second, err := ListenUnix(t.Context(), path, SocketConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if err := KnockUnix(t.Context(), path); err != nil {
		t.Errorf("the successor's socket: %v", err)
	}
	second.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is still there")
	}
}
