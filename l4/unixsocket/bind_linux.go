package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// bind binds the socket at its path, so that the system shows this path (ss, lsof, and
// systemd-tmpfiles, which deletes old sockets unless it finds their path there). The
// file has mode 0: no other user can open it.
func (s *Socket) bind(ctx context.Context, f *privateFolder) error {
	if err := f.parent.Remove(f.file); err != nil && !errors.Is(err, fs.ErrNotExist) { // a socket on which no process listens
		return err
	}
	err := s.listen(ctx, s.path, func(fd uintptr) error { return syscall.Fchmod(int(fd), 0) })
	if errors.Is(err, syscall.EADDRINUSE) {
		return errInUse
	}
	return err
}

// place sets the mode and owner of the file, through a second name in the folder. A
// socket of this user that has mode 0 can only be the new one, so that no other process
// can have put another file in its place.
func (s *Socket) place(f *privateFolder) error {
	if err := f.parent.Link(f.file, f.inside()); err != nil {
		return fmt.Errorf("%w: %w", errReplaced, err)
	}
	file, err := f.own.Lstat(f.file)
	if err != nil {
		return fmt.Errorf("%w: %w", errReplaced, err)
	}
	made, ok := file.Sys().(*syscall.Stat_t)
	if !ok || file.Mode() != fs.ModeSocket || int(made.Uid) != os.Geteuid() {
		return errReplaced
	}
	s.file = file
	if err := f.guard(file, Config{}, s.guard); err != nil {
		return err
	}
	if !s.ours() {
		return errReplaced
	}
	return nil
}
