package adminsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/unixsocket"
)

// listenDefault binds a default admin socket; it is closed when the test ends.
func listenDefault(t *testing.T, env func(string) (string, bool)) string {
	t.Helper()
	ln, addr, err := Listen(t.Context(), env, Address{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return addr
}

// deadSocket leaves a socket file behind, as a killed process does.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

func TestDefaultAdminFolder(t *testing.T) {
	uid := fmt.Sprint(os.Geteuid())
	for _, tt := range []struct {
		env  []string
		want Folder
	}{
		{[]string{"RUNTIME_DIRECTORY=/run/a", "XDG_RUNTIME_DIR=/run/user/1", "TMPDIR=/t"}, Folder{"/run/a", true}},
		{[]string{"RUNTIME_DIRECTORY=/run/a:/run/b"}, Folder{"/run/a", true}},
		{[]string{"RUNTIME_DIRECTORY=", "XDG_RUNTIME_DIR=/run/user/1", "TMPDIR=/t"}, Folder{"/run/user/1/ambassador", false}},
		{[]string{"XDG_RUNTIME_DIR=", "TMPDIR=/t"}, Folder{"/t/ambassador-" + uid, false}},
		{nil, Folder{"/tmp/ambassador-" + uid, false}},
	} {
		if got := DefaultFolder(cmdtest.EnvOf(tt.env...)); got != tt.want {
			t.Errorf("with %q: %+v, want %+v", tt.env, got, tt.want)
		}
	}
}

func TestAdminFoldersOfTheEnvironment(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	t.Setenv("TMPDIR", "/t")
	var got []string
	for _, f := range Folders(os.LookupEnv) {
		got = append(got, f.Path)
	}
	want := []string{"/run/user/1/ambassador", fmt.Sprintf("/t/ambassador-%d", os.Geteuid()), "/run/ambassador", fmt.Sprintf("/dev/shm/ambassador-%d", os.Geteuid())}
	if !slices.Equal(got, want) {
		t.Errorf("clients look in %q, want %q", got, want)
	}
}

func TestDefaultSocketIsGuardedAndRemoved(t *testing.T) {
	tmp := cmdtest.ShortDir(t)
	ln, addr, err := Listen(t.Context(), cmdtest.EnvOf("TMPDIR="+tmp), Address{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(tmp, fmt.Sprintf("ambassador-%d", os.Geteuid()))
	path := filepath.Join(dir, "admin.sock")
	if addr != "unix:"+path {
		t.Errorf("address %s, want unix:%s", addr, path)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind after close: %v", left)
	}
}

func TestSecondAmbassadorHasItsOwnSocket(t *testing.T) {
	env := cmdtest.EnvOf("RUNTIME_DIRECTORY=" + cmdtest.ShortDir(t))
	first, second := listenDefault(t, env), listenDefault(t, env)
	if filepath.Base(first) != "admin.sock" || filepath.Base(second) != fmt.Sprintf("admin-%d.sock", os.Getpid()) {
		t.Errorf("sockets %s, %s", first, second)
	}
	live, failed := Live(t.Context(), Folders(env)[:1])
	if len(live) != 2 || len(failed) > 0 {
		t.Errorf("live %q, failed %v", live, failed)
	}
}

func TestDeadSocketsAreRemovedAndOthersKept(t *testing.T) {
	dir := cmdtest.ShortDir(t)
	for _, name := range []string{"admin.sock", "admin-1.sock", "other.sock"} {
		deadSocket(t, filepath.Join(dir, name))
	}
	if addr := listenDefault(t, cmdtest.EnvOf("RUNTIME_DIRECTORY="+dir)); filepath.Base(addr) != "admin.sock" {
		t.Errorf("address %s", addr)
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"admin.sock", "other.sock"}) {
		t.Errorf("folder has %q", names)
	}
}

func TestCloseKeepsASuccessorsSocket(t *testing.T) {
	path := filepath.Join(cmdtest.ShortDir(t), "a.sock")
	old, _, err := Listen(t.Context(), cmdtest.EnvOf(), Address{At: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	next, _, err := Listen(t.Context(), cmdtest.EnvOf(), Address{At: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	old.Close()
	if err := unixsocket.Knock(t.Context(), path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

func TestFoldersThatAreNotOurs(t *testing.T) {
	name := fmt.Sprintf("ambassador-%d", os.Geteuid())
	for _, tt := range []struct {
		what string
		make func(path string) error
		want string
	}{
		{"a link", func(p string) error { return os.Symlink(t.TempDir(), p) }, "symbolic link"},
		{"a file", func(p string) error { return os.WriteFile(p, nil, 0o600) }, "not a folder"},
		{"open to others", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o750)) }, "lets others in"},
		{"another user's", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 4711, -1)) }, "another user"},
	} {
		tmp := cmdtest.ShortDir(t)
		if err := tt.make(filepath.Join(tmp, name)); errors.Is(err, os.ErrPermission) {
			continue // only root can give a folder away
		} else if err != nil {
			t.Fatal(err)
		}
		env := cmdtest.EnvOf("TMPDIR=" + tmp)
		ln, _, err := Listen(t.Context(), env, Address{})
		if err == nil {
			ln.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "admin.listen") {
			t.Errorf("%s: error %v, want one about %q with its hint", tt.what, err, tt.want)
		}
	}
}

// A client must not speak to a socket that another user may have planted.
func TestClientsLeaveOutFoldersThatAreNotOurs(t *testing.T) {
	tmp := cmdtest.ShortDir(t)
	env := cmdtest.EnvOf("TMPDIR="+tmp, "RUNTIME_DIRECTORY="+cmdtest.ShortDir(t))
	dir := filepath.Join(tmp, fmt.Sprintf("ambassador-%d", os.Geteuid()))
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if live, _ := Live(t.Context(), Folders(env)); len(live) > 0 {
		t.Errorf("live sockets: %q", live)
	}
}

func TestFolderInUseIsWaitedForWithABound(t *testing.T) {
	dir := cmdtest.ShortDir(t)
	unlock, err := lockFolder(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lockFolder(ctx, dir); err == nil {
		t.Error("two processes have the lock")
	}
	unlock()
	again, err := lockFolder(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestConfiguredAdminListen(t *testing.T) {
	dir := cmdtest.ShortDir(t)
	file, dead, long := filepath.Join(dir, "file"), filepath.Join(dir, "dead"), filepath.Join(dir, strings.Repeat("x", 110))
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	deadSocket(t, dead)
	taken := listenDefault(t, cmdtest.EnvOf("RUNTIME_DIRECTORY="+dir))
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, tt := range []struct {
		at   Address
		want string // in the error; empty: it works
	}{
		{Address{At: "unix:" + filepath.Join(dir, "new")}, ""},
		{Address{At: "unix:" + dead}, ""},
		{Address{At: "unix:" + file}, "no socket"},
		{Address{At: taken}, "in use by a running process"},
		{Address{At: "unix:" + long}, "too long"},
		{Address{At: "unix:" + filepath.Join(dir, "none", "a.sock")}, "does not exist; create it"},
		{Address{At: "127.0.0.1:0"}, ""},
		{Address{At: "localhost:0"}, ""},
		{Address{At: "0.0.0.0:0"}, "unsafe_admin_listen: true"},
		{Address{At: "0.0.0.0:0", Unsafe: true}, ""},
		{Address{At: busy.Addr().String()}, "in use"},
	} {
		ln, addr, err := Listen(t.Context(), cmdtest.EnvOf(), tt.at)
		if err == nil {
			ln.Close()
		}
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", tt.at, err)
		case tt.want == "" && strings.HasPrefix(tt.at.At, "unix:") && addr != tt.at.At:
			t.Errorf("%+v: address %s", tt.at, addr)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: error %v, want %q in it", tt.at, err, tt.want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "keep" || err != nil {
		t.Errorf("the file in the way: %q, %v", b, err)
	}
}

func TestAdminSocketIsNoMPTCP(t *testing.T) {
	ln, _, err := Listen(t.Context(), cmdtest.EnvOf(), Address{At: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		const soProtocol = 38 // Linux; other systems have no MPTCP by default
		if p, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, soProtocol); err == nil && p != syscall.IPPROTO_TCP {
			t.Errorf("protocol %d", p)
		}
	})
}
