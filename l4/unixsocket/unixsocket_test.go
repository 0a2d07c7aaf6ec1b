package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"ambassador/l4/l4test"
)

// A new socket has the configured mode and owner, whatever the umask is, and no other
// user can open it before.
func TestUnixSocketIsMadeInPrivate(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		path := filepath.Join(t.TempDir(), "s")
		folder, err := newPrivateFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		s, want := &Socket{path: path, guard: Config{Mode: 0o666}}, l4test.SocketFile{Mode: 0o666, UID: os.Getuid(), GID: os.Getgid()}
		if os.Getuid() == 0 {
			want.UID, want.GID = 12345, 54321
			s.guard.UID, s.guard.GID = &want.UID, &want.GID
		}
		old := syscall.Umask(umask)
		err = s.bind(t.Context(), folder)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		defer s.UnixListener.Close()
		if runtime.GOOS == "linux" {
			if got := l4test.StatSocket(t, path); got.Mode != 0 {
				t.Errorf("umask %o: it is made with mode %o, want 0", umask, got.Mode)
			}
		} else if got := l4test.StatSocket(t, folder.path()); got.Mode != 0o700 {
			t.Errorf("umask %o: it is made in a folder of mode %o", umask, got.Mode)
		}
		if err := s.place(folder); err != nil {
			t.Fatal(err)
		}
		folder.remove()
		got := l4test.StatSocket(t, path)
		if want.Inode = got.Inode; got != want {
			t.Errorf("umask %o: socket %+v, want %+v", umask, got, want)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
			t.Errorf("umask %o: beside the socket there is %v", umask, left)
		}
	}
}

// replacements are what a user who may write to the folder of a socket can put in its
// place.
var replacements = map[string]func(t *testing.T, victim, path string) error{
	"a link":      func(_ *testing.T, victim, path string) error { return os.Symlink(victim, path) },
	"a hard link": func(_ *testing.T, victim, path string) error { return os.Link(victim, path) },
	"a link to a socket": func(t *testing.T, victim, path string) error {
		otherSocket(t, victim)
		return os.Symlink(victim, path)
	},
	"another socket": func(t *testing.T, victim, path string) error {
		otherSocket(t, victim)
		return os.Link(victim, path)
	},
}

// otherSocket makes a socket of mode 0600 at path.
func otherSocket(t *testing.T, path string) {
	t.Helper()
	os.Remove(path)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A user who may write to the folder of the socket puts another file in its place. The
// mode and owner of that file stay unchanged.
func TestMakingAUnixSocketFollowsNoLink(t *testing.T) {
	for what, replace := range replacements {
		dir := t.TempDir()
		victim, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "s")
		if err := os.WriteFile(victim, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		folder, err := newPrivateFolder(path)
		if err != nil {
			t.Fatal(err)
		}
		uid, gid := os.Getuid(), os.Getgid()
		if uid == 0 {
			uid, gid = 12345, 54321
		}
		s := &Socket{path: path, guard: Config{Mode: 0o666, UID: &uid, GID: &gid}}
		if err := s.bind(t.Context(), folder); err != nil {
			t.Fatal(err)
		}
		at := path
		if runtime.GOOS != "linux" {
			at = filepath.Join(folder.path(), folder.file)
		}
		os.Remove(at)
		if err := replace(t, victim, at); err != nil {
			t.Fatal(err)
		}
		before := l4test.StatSocket(t, victim)
		if err := s.place(folder); err == nil {
			t.Errorf("%s is taken for our socket", what)
		}
		s.discard()
		folder.remove()
		if got := l4test.StatSocket(t, victim); got != before {
			t.Errorf("%s: the file was %+v, and is %+v", what, before, got)
		}
	}
}

// The same if that user replaces the private folder.
func TestMakingAUnixSocketInAReplacedFolder(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "s")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := l4test.StatSocket(t, victim)
	folder, err := newPrivateFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Socket{path: path, guard: Config{Mode: 0o666}}
	if err := s.bind(t.Context(), folder); err != nil {
		t.Fatal(err)
	}
	err = os.Rename(folder.path(), folder.path()+".taken")
	if err == nil {
		err = os.Mkdir(folder.path(), 0o777)
	}
	if err == nil {
		err = os.Symlink(victim, filepath.Join(folder.path(), folder.file))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.place(folder); err == nil {
		t.Error("a socket in the folder of another user is taken for ours")
	}
	s.discard()
	folder.remove()
	if got := l4test.StatSocket(t, victim); got != before {
		t.Errorf("the file that the link points to was %+v, and is %+v", before, got)
	}
}

// The same for a reload that changes the mode of a socket in use.
func TestReloadFollowsNoLinkInTheSocketsPlace(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "s")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := l4test.StatSocket(t, victim)
	for _, plant := range []func(victim, path string) error{os.Symlink, os.Link} {
		s, err := Listen(t.Context(), path, Config{})
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		if err := plant(victim, path); err != nil {
			t.Fatal(err)
		}
		if err := s.change(Config{}, Config{Mode: 0o666}); err == nil {
			t.Error("another's file was taken for the socket")
		}
		if got := l4test.StatSocket(t, victim); got != before {
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
	first, err := Listen(t.Context(), path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	second, err := Listen(t.Context(), path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if err := Knock(t.Context(), path); err != nil {
		t.Errorf("the successor's socket: %v", err)
	}
	second.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is still there")
	}
}

// The system shows the path of a unix socket, so that systemd-tmpfiles and others know
// that its file is in use.
func TestUnixSocketIsShownByItsPath(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the system does not show it")
	}
	path := filepath.Join(l4test.ShortFolder(t), "s")
	s, err := Listen(t.Context(), path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	shown, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Skip(err)
	}
	if !strings.Contains(string(shown), " "+path+"\n") {
		t.Errorf("the system does not show %s", path)
	}
}

// Until Own, an adopted socket leaves the file, with its mode, to the program before.
func TestAdoptedSocketIsForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	before, err := Listen(t.Context(), path, Config{Mode: 0o600})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	made := l4test.StatSocket(t, path)
	adopt := func() *Socket {
		file, err := before.UnixListener.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		ln, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Adopt(ln.(*net.UnixListener), path, before.File(), Config{Mode: 0o666})
		if err != nil {
			t.Fatal(err)
		}
		if got := l4test.StatSocket(t, path); got.Mode != 0o666 {
			t.Errorf("adopted with mode %o, want 666", got.Mode)
		}
		return s
	}
	for range 2 {
		adopt().Close()
		if got := l4test.StatSocket(t, path); got != made {
			t.Errorf("after Close it is %+v, want %+v", got, made)
		}
	}
	s := adopt()
	s.Own()
	s.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after Own and Close: %v, want no file", err)
	}
}
