package l4

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// socketFile has the visible attributes of a socket's file.
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

// A reload changes who may open a socket, and keeps the socket.
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

	cfg.Listeners[0].Socket = SocketConfig{Mode: 0o640} // and the owner is the original one
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

// A new socket has the configured mode and owner, whatever the umask is, and no other
// user can reach it before.
func TestUnixSocketIsMadeInPrivate(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		path := filepath.Join(t.TempDir(), "s")
		old := syscall.Umask(umask)
		folder, err := newPrivateFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := folder.bind(t.Context(), path)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		defer s.UnixListener.Close()
		if got := statSocket(t, folder.path()); got.mode != 0o700 {
			t.Errorf("umask %o: it is made in a folder of mode %o", umask, got.mode)
		}
		cfg, want := SocketConfig{Mode: 0o666}, socketFile{0o666, os.Getuid(), os.Getgid(), 0}
		if os.Getuid() == 0 {
			want.uid, want.gid = 12345, 54321
			cfg.UID, cfg.GID = &want.uid, &want.gid
		}
		if err := s.place(folder, cfg); err != nil {
			t.Fatal(err)
		}
		folder.remove()
		got := statSocket(t, path)
		if want.inode = got.inode; got != want {
			t.Errorf("umask %o: socket %+v, want %+v", umask, got, want)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
			t.Errorf("umask %o: beside the socket there is %v", umask, left)
		}
	}
}

// planted replaces the folder in which a socket is made with another user's, which has
// a link to victim in the socket's place.
func (f *privateFolder) planted(t *testing.T, victim string) {
	t.Helper()
	err := os.Rename(f.path(), f.path()+".taken")
	if err == nil {
		err = os.Mkdir(f.path(), 0o777)
	}
	if err == nil {
		err = os.Symlink(victim, filepath.Join(f.path(), f.file))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A user who may write to the folder of the socket plants a link to another user's
// file. The mode and owner of that file stay unchanged.
func TestMakingAUnixSocketFollowsNoLink(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := statSocket(t, victim)
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 12345, 54321
	}
	cfg := SocketConfig{Mode: 0o666, UID: &uid, GID: &gid}
	for _, when := range []string{"before the bind", "before the mode"} {
		path := filepath.Join(t.TempDir(), "s")
		folder, err := newPrivateFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		if when == "before the bind" {
			folder.planted(t, victim)
		}
		s, err := folder.bind(t.Context(), path)
		if err == nil {
			if when == "before the mode" {
				folder.planted(t, victim)
			}
			err = s.place(folder, cfg)
			s.UnixListener.Close()
		}
		folder.remove()
		if err == nil {
			t.Errorf("a link %s: the socket is taken for ours", when)
		}
		if got := statSocket(t, victim); got != before {
			t.Errorf("a link %s: the file behind it was %+v, and is %+v", when, before, got)
		}
	}
}

// The same for a reload that changes the mode of a socket in use.
func TestReloadFollowsNoLinkInTheSocketsPlace(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "s")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := statSocket(t, victim)
	for _, plant := range []func(victim, path string) error{os.Symlink, os.Link} {
		s, err := ListenUnix(t.Context(), path, SocketConfig{})
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		if err := plant(victim, path); err != nil {
			t.Fatal(err)
		}
		if err := s.change(SocketConfig{}, SocketConfig{Mode: 0o666}); err == nil {
			t.Error("another's file was taken for the socket")
		}
		if got := statSocket(t, victim); got != before {
			t.Errorf("the file that was planted was %+v, and is %+v", before, got)
		}
		s.Close()
		os.Remove(path)
	}
}

// A folder that was replaced is refused, and its contents stay.
func TestAReplacedFolderIsRefused(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "s"), filepath.Join(dir, "other")
	for what, replace := range map[string]func() error{
		"not empty":       func() error { return os.WriteFile(filepath.Join(other, "s"), nil, 0o600) },
		"open to others":  func() error { return os.Chmod(other, 0o770) },
		"another owner's": func() error { return os.Chown(other, 12345, -1) },
	} {
		if what == "another owner's" && os.Getuid() != 0 {
			continue
		}
		os.RemoveAll(other)
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := newPrivateFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		err = replace()
		if err == nil {
			os.Remove(f.path())
			err = os.Symlink("other", f.path()) // own is opened through it
		}
		if err != nil {
			t.Fatal(err)
		}
		f.own.Close()
		if f.own, err = f.parent.OpenRoot(f.name); err != nil {
			t.Fatal(err)
		}
		if err := f.check(); err == nil {
			t.Errorf("a folder that is %s is taken for ours", what)
		}
		f.close()
		if _, err := os.Lstat(filepath.Join(other, "s")); what == "not empty" && err != nil {
			t.Errorf("what is in the other folder: %v", err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: %v is left", what, left)
		}
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
