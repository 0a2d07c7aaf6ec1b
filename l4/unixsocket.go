package l4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// UnixSocket is a listening unix socket whose file nobody could open before it
// was guarded. Close removes the file, if it is still ours.
type UnixSocket struct {
	*net.UnixListener
	path string
	file fs.FileInfo // as it was made, before an owner was given to it

	mu     sync.Mutex
	guard  SocketConfig // guarded by mu; what the file has now
	closed bool         // guarded by mu
}

// ListenUnix binds a socket at path. It makes it under a name beside path, gives
// it mode and owner, and only then renames it to path: nobody can connect before
// it is guarded, and a socket that is replaced is replaced at once. It takes the
// place only of a socket on which nobody answers. The error names the path and
// the mend. It waits for at most a second, and as long as ctx.
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
	draft := filepath.Join(filepath.Dir(path), "."+strconv.Itoa(os.Getpid())+"~"+filepath.Base(path))
	if len(draft) >= len(syscall.RawSockaddrUnix{}.Path) {
		return nil, errors.New("the path is too long for a socket, and the system allows about 100 bytes; choose a shorter folder")
	}
	os.Remove(draft) // of a process of this id that died here
	lc := net.ListenConfig{Control: bornGuarded}
	ln, err := lc.Listen(ctx, "unix", draft)
	if err != nil {
		return nil, err
	}
	s := &UnixSocket{UnixListener: ln.(*net.UnixListener), path: path, guard: cfg}
	s.SetUnlinkOnClose(false)
	if err := s.place(draft, cfg); err != nil {
		s.UnixListener.Close()
		os.Remove(draft)
		return nil, err
	}
	return s, nil
}

// bornGuarded lets the file begin with mode 0600 whatever the umask is: Linux
// makes it with the mode of the socket. Other systems refuse, and there the umask
// guards the draft.
func bornGuarded(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { syscall.Fchmod(int(fd), 0o600) })
}

// place guards the draft and gives it its name.
func (s *UnixSocket) place(draft string, cfg SocketConfig) (err error) {
	if s.file, err = os.Lstat(draft); err != nil {
		return err
	}
	if err := guardFile(draft, s.file, SocketConfig{}, cfg); err != nil {
		return err
	}
	return os.Rename(draft, s.path)
}

// claimSocket makes sure that path can be taken: nothing is there, or a socket
// that nobody answers.
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

// knockTimeout bounds connecting to a unix socket: the kernel answers for the
// process, so that more than this means that there is none to speak to.
const knockTimeout = time.Second

// KnockUnix says whether a process listens on the socket at path: nil if so,
// syscall.ECONNREFUSED if it has ended, another error if that cannot be told.
func KnockUnix(ctx context.Context, path string) error {
	d := net.Dialer{Timeout: knockTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	return err
}

// Addr is the path that clients use.
func (s *UnixSocket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close stops listening and removes the file, unless somebody else has one of
// that name now.
func (s *UnixSocket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.ours() {
		os.Remove(s.path)
	}
	s.closed = true // another file may get this one's number
	return s.UnixListener.Close()
}

// ours says whether the file at path is the one that we made.
func (s *UnixSocket) ours() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(s.file, now)
}

// reguard gives the file another mode and owner. On an error it has those it
// had; undo gives them back.
func (s *UnixSocket) reguard(cfg SocketConfig) (undo func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.guard
	if cfg.equal(old) {
		return func() {}, nil
	}
	if !s.ours() {
		return nil, fmt.Errorf("unix:%s: the socket's file is gone, or another's; its mode and owner cannot be changed: restart", s.path)
	}
	if err := guardFile(s.path, s.file, old, cfg); err != nil {
		guardFile(s.path, s.file, cfg, old) //nolint:errcheck // the first error says what is wrong
		return nil, fmt.Errorf("unix:%s: %w", s.path, err)
	}
	s.guard = cfg
	return func() { s.reguard(old) }, nil //nolint:errcheck // what was allowed before is allowed
}

// guardFile changes the mode and owner of a socket's file. In between it lets in
// nobody who is not let in by both.
func guardFile(path string, made fs.FileInfo, from, to SocketConfig) error {
	if err := os.Chmod(path, from.mode()&to.mode()); err != nil {
		return err
	}
	uid, gid := to.owner(made)
	if fromUID, fromGID := from.owner(made); uid != fromUID || gid != fromGID {
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, to.mode())
}

func (c SocketConfig) mode() fs.FileMode { return orDefault(c.Mode, 0o600) }

// owner is who the file is to belong to: what the configuration says, else as it
// was made.
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
