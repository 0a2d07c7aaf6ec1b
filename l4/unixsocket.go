package l4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// UnixSocket is a listening unix socket. No process could open its file before the mode
// and owner were set. Close removes the file, if it is still ours.
type UnixSocket struct {
	*net.UnixListener
	path string
	file fs.FileInfo // as created, before its owner was changed

	mu     sync.Mutex
	guard  SocketConfig // guarded by mu; the file's current mode and owner
	closed bool         // guarded by mu
}

// ListenUnix binds a socket at path. It creates the socket in a private folder beside
// path, sets its mode and owner there, and only then renames it to path. So no process
// can connect before mode and owner are set, and no process can put another file in its
// place. An old socket is replaced atomically, and only if no process listens on it.
// The error names the path and the fix. It waits at most a second, and not longer than
// ctx.
func ListenUnix(ctx context.Context, path string, cfg SocketConfig) (*UnixSocket, error) {
	s, err := listenUnix(ctx, path, cfg)
	if err != nil {
		return nil, fmt.Errorf("listen unix:%s: %w", path, err)
	}
	return s, nil
}

func listenUnix(ctx context.Context, path string, cfg SocketConfig) (*UnixSocket, error) {
	if err := claimSocket(ctx, path); err != nil {
		return nil, err
	}
	folder, err := newPrivateFolder(path)
	if err != nil {
		return nil, err
	}
	defer folder.remove()
	s, err := folder.bind(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := s.place(folder, cfg); err != nil {
		s.UnixListener.Close()
		return nil, err
	}
	return s, nil
}

// bind creates the socket in the folder, for place.
func (f *privateFolder) bind(ctx context.Context, path string) (*UnixSocket, error) {
	draft := filepath.Join(f.path(), f.file)
	if max(len(draft), len(path)) >= len(syscall.RawSockaddrUnix{}.Path) {
		return nil, errors.New("the path is too long for a socket, and the system allows about 100 bytes; choose a shorter folder")
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", draft)
	if err != nil {
		return nil, err
	}
	s := &UnixSocket{UnixListener: ln.(*net.UnixListener), path: path}
	s.SetUnlinkOnClose(false)
	return s, nil
}

// place sets the mode and owner of the socket in the folder, and moves it to its path.
func (s *UnixSocket) place(f *privateFolder, cfg SocketConfig) (err error) {
	if s.file, err = f.own.Lstat(f.file); err != nil {
		return fmt.Errorf("the socket was made elsewhere, because another process replaced its folder: %w", err)
	}
	if err := f.guard(s.file, SocketConfig{}, cfg); err != nil {
		return err
	}
	s.guard = cfg
	if err := f.parent.Rename(f.inside(), f.file); err != nil {
		return err
	}
	if !s.ours() {
		return errors.New("another process replaced the socket; choose a folder where only this user can write")
	}
	return nil
}

// claimSocket checks that path is free, or is a socket on which no process listens.
func claimSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("a file that is no socket is there; move it away or choose another path")
	}
	switch err := KnockUnix(ctx, path); {
	case err == nil:
		return errors.New("the socket is in use by a running process; stop it or choose another path")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("a socket is there, and whether it is in use cannot be told: %w", err)
	}
	return nil
}

// knockTimeout bounds connecting to a unix socket. The kernel answers for the process,
// so a longer wait means that no process will answer.
const knockTimeout = time.Second

// KnockUnix reports whether a process listens on the socket at path: nil if one does,
// syscall.ECONNREFUSED if it has ended, another error if that is unknown.
func KnockUnix(ctx context.Context, path string) error {
	d := net.Dialer{Timeout: knockTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	return err
}

// Addr is the path that clients connect to.
func (s *UnixSocket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close stops listening and removes the file, unless another process has replaced it.
func (s *UnixSocket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.ours() {
		os.Remove(s.path)
	}
	s.closed = true // another file may be given the same inode number
	return s.UnixListener.Close()
}

// ours reports whether the file at path is the one that we created.
func (s *UnixSocket) ours() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(s.file, now)
}

// reguard gives the file another mode and owner. On an error the file keeps the old
// ones; undo restores them.
func (s *UnixSocket) reguard(cfg SocketConfig) (undo func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.guard
	if cfg.equal(old) {
		return func() {}, nil
	}
	if err := s.change(old, cfg); err != nil {
		return nil, fmt.Errorf("unix:%s: %w", s.path, err)
	}
	s.guard = cfg
	return func() { s.reguard(old) }, nil //nolint:errcheck // what was allowed before is allowed
}

// change sets mode and owner through a second name in a private folder. If it used the
// path, another process could replace the file between the check and the change.
func (s *UnixSocket) change(from, to SocketConfig) error {
	f, err := newPrivateFolder(s.path)
	if err != nil {
		return err
	}
	defer f.remove()
	if err := f.parent.Link(f.file, f.inside()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if now, err := f.own.Lstat(f.file); err != nil || !os.SameFile(s.file, now) {
		return errors.New("the socket's file is gone, or another's; its mode and owner cannot be changed: restart")
	}
	if err := f.guard(s.file, from, to); err != nil {
		f.guard(s.file, to, from) //nolint:errcheck // the first error says what is wrong
		return err
	}
	return nil
}

func (c SocketConfig) mode() fs.FileMode { return orDefault(c.Mode, 0o600) }

// owner returns the file's owner: the configured one, or else the one that it was
// created with.
func (c SocketConfig) owner(made fs.FileInfo) (uid, gid int) {
	uid, gid = -1, -1
	if st, ok := made.Sys().(*syscall.Stat_t); ok {
		uid, gid = int(st.Uid), int(st.Gid)
	}
	if c.UID != nil {
		uid = *c.UID
	}
	if c.GID != nil {
		gid = *c.GID
	}
	return uid, gid
}

func (c SocketConfig) equal(o SocketConfig) bool {
	same := func(a, b *int) bool { return a == b || a != nil && b != nil && *a == *b }
	return c.mode() == o.mode() && same(c.UID, o.UID) && same(c.GID, o.GID)
}
