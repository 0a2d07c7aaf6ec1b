package adminsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ambassador/l4/bind"
	"ambassador/l4/unixsocket"
)

// Address is where the admin API listens.
type Address struct {
	// At is admin.listen: "unix:/path" or "HOST:PORT". Empty: the default
	// socket, in the default folder.
	At string
	// Unsafe is admin.unsafe_admin_listen: TCP beyond loopback is allowed.
	Unsafe bool
	// Socket is the mode and owner of the file of a unix socket.
	Socket unixsocket.Config
}

// Listen binds the admin API's socket and returns its address as printed. Closing
// the listener also removes the socket's file, if it is still ours. The sockets in
// instead are closed soon: see bind.ListenTCP.
func Listen(ctx context.Context, env func(string) (string, bool), at Address, instead ...bind.Socket) (ln net.Listener, addr string, err error) {
	path, unix := strings.CutPrefix(at.At, "unix:")
	switch {
	case at.At == "":
		ln, err = bindDefault(ctx, DefaultFolder(env), at.Socket)
	case unix:
		ln, err = unixsocket.Listen(ctx, path, at.Socket)
	default:
		ln, err = listenTCP(ctx, at, instead)
	}
	if err != nil {
		return nil, "", fmt.Errorf("admin: %w", err)
	}
	addr = ln.Addr().String()
	if ln.Addr().Network() == "unix" {
		addr = "unix:" + addr
	}
	return ln, addr, nil
}

func listenTCP(ctx context.Context, at Address, instead []bind.Socket) (net.Listener, error) {
	ln, err := bind.ListenTCP(ctx, at.At, instead...)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen %s: the address is in use; stop what holds it (ss -ltnp tells) or choose another port in admin.listen", at.At)
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !at.Unsafe {
		ln.Close()
		return nil, fmt.Errorf("listen %s: others could reach the admin API there; listen on 127.0.0.1 or a unix socket, or set admin.unsafe_admin_listen: true", at.At)
	}
	return ln, nil
}

// Folder is a folder where default admin sockets are.
type Folder struct {
	Path string
	// given: a supervisor made the folder and chose its mode.
	// Otherwise we make it, and use it only if it is ours alone.
	given bool
}

// DefaultFolder is the folder of a default socket: the first of
// $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/ambassador, else ambassador-UID in
// the temporary folder. If that is on a file system that is mounted read-only, as
// the root of a container may be, it is ambassador-UID in the shared memory.
func DefaultFolder(env func(string) (string, bool)) Folder {
	f := Folders(env)[0]
	if isReadOnly(f.Path) || !f.given && isReadOnly(filepath.Dir(f.Path)) {
		return memoryFolder()
	}
	return f
}

// isReadOnly reports whether a folder is on a file system that is mounted read-only.
func isReadOnly(folder string) bool {
	const mayWrite = 2 // W_OK of access(2)
	return errors.Is(syscall.Access(folder, mayWrite), syscall.EROFS)
}

// memoryFolder is the folder of a default socket in the shared memory, which container
// engines mount writable even where the root is read-only.
func memoryFolder() Folder {
	return Folder{Path: "/dev/shm/ambassador-" + strconv.Itoa(os.Geteuid())}
}

// systemFolder is where a service with RuntimeDirectory=ambassador, and the
// container image, have their socket.
const systemFolder = "/run/ambassador"

// systemFolders returns systemFolder and those of the instances of ambassador@.service.
// Only root can make them.
func systemFolders() []Folder {
	out := []Folder{{systemFolder, true}}
	instances, _ := filepath.Glob(systemFolder + "@*")
	for _, path := range instances {
		out = append(out, Folder{path, true})
	}
	return out
}

// Folders are the folders in which clients look for a socket: those that a
// default socket would be in, in their order, and, where the environment is not
// a service's own, those of the system's services. The last one is that of a read-only root.
func Folders(env func(string) (string, bool)) []Folder {
	var out []Folder
	get := func(key string) string { v, _ := env(key); return v }
	given, _, _ := strings.Cut(get("RUNTIME_DIRECTORY"), ":")
	if given != "" {
		out = append(out, Folder{given, true})
	}
	if dir := get("XDG_RUNTIME_DIR"); dir != "" {
		out = append(out, Folder{Path: filepath.Join(dir, "ambassador")})
	}
	tmp := get("TMPDIR")
	if tmp == "" {
		tmp = "/tmp"
	}
	out = append(out, Folder{Path: filepath.Join(tmp, "ambassador-"+strconv.Itoa(os.Geteuid()))})
	if given == "" {
		out = append(out, systemFolders()...)
	}
	return append(out, memoryFolder())
}

// prepare makes the folder if it is to be ours, and checks it.
func (f Folder) prepare() error {
	if !f.given {
		if err := os.Mkdir(f.Path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return f.check()
}

// check refuses a folder in which somebody else could put a socket or take ours.
func (f Folder) check() error {
	if f.given {
		info, err := os.Stat(f.Path)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s: not a folder", f.Path)
		}
		return err
	}
	info, err := os.Lstat(f.Path)
	if err != nil {
		return err
	}
	owner, _ := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode().Type() == fs.ModeSymlink:
		return fmt.Errorf("%s: a symbolic link, not a folder of our own; remove it, or set admin.listen", f.Path)
	case !info.IsDir():
		return fmt.Errorf("%s: not a folder; remove it, or set admin.listen", f.Path)
	case owner == nil || int(owner.Uid) != os.Geteuid():
		return fmt.Errorf("%s: belongs to another user; remove it, or set admin.listen", f.Path)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s: mode %#o lets others in; chmod 700 it, or set admin.listen", f.Path, info.Mode().Perm())
	}
	return nil
}

// bindDefault binds admin.sock, or admin-PID.sock where another process
// answers on that, and clears away what dead processes have left.
func bindDefault(ctx context.Context, f Folder, cfg unixsocket.Config) (net.Listener, error) {
	if err := f.prepare(); err != nil {
		return nil, err
	}
	unlock, err := lockFolder(ctx, f.Path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path := filepath.Join(f.Path, "admin.sock")
	for _, other := range socketsIn(f.Path) {
		switch err := unixsocket.Knock(ctx, other); {
		case errors.Is(err, syscall.ECONNREFUSED):
			os.Remove(other)
		case other == path:
			path = filepath.Join(f.Path, fmt.Sprintf("admin-%d.sock", os.Getpid()))
		}
	}
	return unixsocket.Listen(ctx, path, cfg)
}

// socketsIn lists the default admin sockets of a folder, dead ones included.
func socketsIn(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		if e.Type() == fs.ModeSocket && (name == "admin.sock" || strings.HasPrefix(name, "admin-") && strings.HasSuffix(name, ".sock")) {
			out = append(out, filepath.Join(dir, name))
		}
	}
	return out
}

// lockTimeout bounds the wait for another ambassador that is starting in the
// same folder: it holds the lock for the time of a bind.
const lockTimeout = 2 * time.Second

// lockFolder lets one process at a time decide which sockets of a folder are
// dead, so that one that has just been bound is not removed.
func lockFolder(ctx context.Context, dir string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("lock %s: another process has held it for %v; set admin.listen", dir, lockTimeout)
		}
	}
}

// Live are the sockets in the folders on which a process answers.
// Folders that could be another user's are left out. failed are the sockets
// that exist but could not be asked, each with its reason.
func Live(ctx context.Context, folders []Folder) (live []string, failed []error) {
	for _, f := range folders {
		if f.check() != nil {
			continue
		}
		for _, path := range socketsIn(f.Path) {
			switch err := unixsocket.Knock(ctx, path); {
			case err == nil && !slices.Contains(live, path):
				live = append(live, path)
			case err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist):
				failed = append(failed, fmt.Errorf("%s: %w", path, err))
			}
		}
	}
	return live, failed
}
