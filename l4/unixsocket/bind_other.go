//go:build !linux

package unixsocket

import (
	"context"
	"fmt"
	"path/filepath"
)

// bind binds the socket in the folder, which no other user can enter: the mode of a
// socket's file is set only afterwards. So the system shows the path in the folder as
// that of the socket.
func (s *Socket) bind(ctx context.Context, f *privateFolder) error {
	return s.listen(ctx, filepath.Join(f.path(), f.file), nil)
}

// place sets the mode and owner of the file in the folder, and moves it to its path.
func (s *Socket) place(f *privateFolder) (err error) {
	if s.file, err = f.own.Lstat(f.file); err != nil {
		return fmt.Errorf("the socket was made elsewhere, because another process replaced its folder: %w", err)
	}
	if err := f.guard(s.file, Config{}, s.guard); err != nil {
		return err
	}
	if err := f.parent.Rename(f.inside(), f.file); err != nil {
		return err
	}
	if !s.ours() {
		return errReplaced
	}
	return nil
}
