package unixsocket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"ambassador/l4/netconn"
)

// Config says which mode and owner the file of a unix listener has.
type Config struct {
	// Mode is the file's permission bits. If zero, 0600.
	Mode fs.FileMode
	// UID and GID own the file. Nil leaves the owner or the group as it is.
	UID, GID *int
}

// Socket is a listening unix socket. No other user could open its file before the
// mode and owner were set. Close removes the file, if it is still ours.
type Socket struct {
	*net.UnixListener
	path string      // "@name" of an abstract socket
	file fs.FileInfo // as created, before its owner was changed; nil: an abstract socket

	mu     sync.Mutex
	guard  Config // guarded by mu; the file's current mode and owner
	closed bool   // guarded by mu
	// foreign is not nil while the file is that of the program before this one: see Adopt.
	// It gives the file the mode and owner back that it had there. Guarded by mu.
	foreign func()
}

// Listen binds a socket at path, or the abstract socket "@name" of Linux, which has
// no file. No other user can connect before the mode and owner of cfg are set. The mode
// and owner of no other file are changed, whatever another process does to the path. An
// old socket is replaced only if no process listens on it. The error names the path and
// the fix. It waits at most a second, and not longer than ctx.
func Listen(ctx context.Context, path string, cfg Config) (s *Socket, err error) {
	if strings.HasPrefix(path, "@") {
		s, err = listenAbstract(ctx, path)
	} else {
		s, err = listenUnix(ctx, path, cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("listen unix:%s: %w", path, err)
	}
	return s, nil
}

// File identifies the file of a socket, and says which mode and owner it has. UID and
// GID are nil if they are those of its creation.
type File struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Mode   uint32 `json:"mode"`
	UID    *int   `json:"uid,omitempty"`
	GID    *int   `json:"gid,omitempty"`
}

// File returns what Adopt needs to know of the socket's file; nil if the socket is an
// abstract one.
func (s *Socket) File() *File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	st, ok := s.file.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return &File{uint64(st.Dev), uint64(st.Ino), uint32(s.guard.mode()), s.guard.UID, s.guard.GID}
}

// Adopt returns the socket that another program of this process has made at path, with
// the mode and owner of cfg. Made is nil for an abstract socket. If the file at path is
// not the socket's any more, it returns an error, and has closed ln. Until Own, Close
// leaves the file to the other program, as that has made it.
func Adopt(ln *net.UnixListener, path string, made *File, cfg Config) (*Socket, error) {
	ln.SetUnlinkOnClose(false)
	s := &Socket{UnixListener: ln, path: path}
	if made == nil {
		return s, nil
	}
	s.guard = Config{Mode: fs.FileMode(made.Mode), UID: made.UID, GID: made.GID}
	var err error
	if s.file, err = os.Lstat(path); err == nil {
		st, ok := s.file.Sys().(*syscall.Stat_t)
		if !ok || uint64(st.Dev) != made.Device || uint64(st.Ino) != made.Inode {
			err = errReplaced
		}
	}
	if err == nil {
		s.foreign, err = s.Reguard(cfg)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return s, nil
}

// listenAbstract binds an abstract socket. Every process in the network namespace can
// connect to it.
func listenAbstract(ctx context.Context, name string) (*Socket, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("only Linux has abstract sockets; give the path of a file")
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", name)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errInUse
	}
	if err != nil {
		return nil, err
	}
	return &Socket{UnixListener: ln.(*net.UnixListener), path: name}, nil
}

func listenUnix(ctx context.Context, path string, cfg Config) (*Socket, error) {
	if err := claimSocket(ctx, path); err != nil {
		return nil, err
	}
	folder, err := newPrivateFolder(path)
	if err != nil {
		return nil, explained(path, err)
	}
	defer folder.remove()
	s := &Socket{path: path, guard: cfg}
	if err = s.bind(ctx, folder); err == nil {
		err = s.place(folder)
	}
	if err != nil {
		s.discard()
		return nil, err
	}
	return s, nil
}

// listen binds the socket to path. Prepare, if not nil, is called before.
func (s *Socket) listen(ctx context.Context, path string, prepare func(fd uintptr) error) error {
	if len(path) >= len(syscall.RawSockaddrUnix{}.Path) {
		return errors.New("the path is too long for a socket, and the system allows about 100 bytes; choose a shorter folder")
	}
	var lc net.ListenConfig
	if prepare != nil {
		lc.Control = netconn.Prepare(prepare)
	}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	s.UnixListener = ln.(*net.UnixListener)
	s.SetUnlinkOnClose(false)
	return nil
}

// discard closes a socket that was not completed.
func (s *Socket) discard() {
	if s.UnixListener == nil {
		return
	}
	if s.file != nil && s.ours() {
		os.Remove(s.path)
	}
	s.UnixListener.Close()
}

var (
	errReplaced = errors.New("another process replaced the socket; choose a folder where only this user can write")
	errInUse    = errors.New("the socket is in use by a running process; stop it or choose another one")
)

// claimSocket checks that path is free, or is a socket on which no process listens.
func claimSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return explained(path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("a file that is no socket is there; move it away or choose another path")
	}
	switch err := Knock(ctx, path); {
	case err == nil:
		return errInUse
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("a socket is there, and whether it is in use cannot be told: %w", err)
	}
	return nil
}

// knockTimeout bounds connecting to a unix socket. The kernel answers for the process,
// so a longer wait means that no process will answer.
const knockTimeout = time.Second

// Knock reports whether a process listens on the socket at path: nil if one does,
// syscall.ECONNREFUSED if it has ended, another error if that is unknown.
func Knock(ctx context.Context, path string) error {
	d := net.Dialer{Timeout: knockTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	return err
}

// Addr is the path that clients connect to.
func (s *Socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Own makes the file of an adopted socket this program's.
func (s *Socket) Own() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foreign = nil
}

// leave gives the file of a foreign socket back.
func (s *Socket) leave() (foreign bool) {
	s.mu.Lock()
	back := s.foreign
	s.foreign, s.closed = nil, s.closed || back != nil
	s.mu.Unlock()
	if back != nil {
		back()
	}
	return back != nil
}

// Close stops listening and removes the file, unless another process has replaced it.
func (s *Socket) Close() error {
	if s.leave() {
		return s.UnixListener.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.file != nil && s.ours() {
		os.Remove(s.path)
	}
	s.closed = true // another file may be given the same inode number
	return s.UnixListener.Close()
}

// ours reports whether the file at path is the one that we created.
func (s *Socket) ours() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(s.file, now)
}

// IsLost reports whether no client can reach the socket any more, because its file was
// removed or replaced. Only a new socket helps.
func (s *Socket) IsLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file != nil && !s.closed && !s.ours()
}

// Reguard gives the file another mode and owner. On an error the file keeps the old
// ones; undo restores them.
func (s *Socket) Reguard(cfg Config) (undo func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.guard
	if s.file == nil || cfg.equal(old) {
		return func() {}, nil
	}
	if err := s.change(old, cfg); err != nil {
		return nil, fmt.Errorf("unix:%s: %w", s.path, err)
	}
	s.guard = cfg
	return func() { s.Reguard(old) }, nil //nolint:errcheck // what was allowed before is allowed
}

// change sets mode and owner through a second name in a private folder. If it used the
// path, another process could replace the file between the check and the change.
func (s *Socket) change(from, to Config) error {
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

func (c Config) mode() fs.FileMode { return cmp.Or(c.Mode, 0o600) }

// owner returns the file's owner: the configured one, or else the one that it was
// created with.
func (c Config) owner(made fs.FileInfo) (uid, gid int) {
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

func (c Config) equal(o Config) bool {
	same := func(a, b *int) bool { return a == b || a != nil && b != nil && *a == *b }
	return c.mode() == o.mode() && same(c.UID, o.UID) && same(c.GID, o.GID)
}
