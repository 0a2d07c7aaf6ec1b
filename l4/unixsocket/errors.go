package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// explained says what is wrong with the folder of the socket at path, and how to fix it.
// It returns the error itself if the system's error has another reason.
func explained(path string, err error) error {
	folder := filepath.Dir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && isAbsent(folder):
		return &folderError{fmt.Sprintf("the folder %s does not exist; create it (mkdir -p %s) or choose another", folder, folder), err}
	case errors.Is(err, syscall.ENOTDIR):
		return &folderError{fmt.Sprintf("%s is not a folder; choose another path", folder), err}
	case errors.Is(err, syscall.EROFS):
		return &folderError{fmt.Sprintf("the folder %s is mounted read-only; choose one that can be written, like /run/ambassador", folder), err}
	case errors.Is(err, fs.ErrPermission):
		return &folderError{fmt.Sprintf("uid %d may not create files in %s (%v); allow that, or choose another folder", os.Geteuid(), folder, errnoOf(err)), err}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &folderError{fmt.Sprintf("the folder %s has no room (%v); make room, or choose another folder", folder, errnoOf(err)), err}
	case errors.Is(err, fs.ErrNotExist):
		return &folderError{fmt.Sprintf("the folder %s takes no new files; choose another", folder), err}
	}
	return err
}

// folderError is a folder in which no socket can be made. Its text replaces that of its
// cause, which names files that only this package knows.
type folderError struct {
	text string
	err  error
}

func (e *folderError) Error() string { return e.text }

func (e *folderError) Unwrap() error { return e.err }

func isAbsent(folder string) bool {
	_, err := os.Stat(folder)
	return errors.Is(err, fs.ErrNotExist)
}

// errnoOf is the system's error alone, if err has one.
func errnoOf(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}
