package certs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ReadFile reads a regular file of at most most bytes. It returns an error for a
// pipe, a device, a socket or a directory, even behind a symbolic link: none of
// them can make ReadFile wait or read without end. It does not bound the wait for
// a disk or a network file system. The error is a *fs.PathError that says what to
// do.
func ReadFile(path string, most int) ([]byte, error) {
	b, _, err := read(path, most)
	return b, err
}

// ReadGuarded is ReadFile for a security-relevant file. It returns an error if
// every user of this host may write the file: see CheckMode.
func ReadGuarded(path string, most int) ([]byte, error) {
	b, info, err := read(path, most)
	if err != nil {
		return nil, err
	}
	if _, err := CheckMode(info, false); err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return b, nil
}

func read(path string, most int) ([]byte, fs.FileInfo, error) {
	// Opening a device can have side effects, so check the file's type first.
	if info, err := os.Stat(path); err == nil {
		if err := regular(path, info); err != nil {
			return nil, nil, err
		}
	}
	// O_NONBLOCK: if a pipe has replaced the file since, do not wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if err := regular(path, info); err != nil {
		return nil, nil, err
	}
	if info.Size() > int64(most) {
		return nil, nil, tooLarge(path, most)
	}
	b, err := readAll(f, most) // it may grow, and files in /proc have no size
	return b, info, err
}

// readAll reads at most most bytes. A longer file is an error.
func readAll(f *os.File, most int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > most:
		return nil, tooLarge(f.Name(), most)
	}
	return b, nil
}

// regular returns an error for anything but a regular file.
func regular(path string, info fs.FileInfo) error {
	mode, kind := info.Mode(), "something else"
	switch {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		kind = "a directory"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	case mode&fs.ModeDevice != 0:
		kind = "a device"
	}
	return &fs.PathError{Op: "read", Path: path, Err: errors.New("it is " + kind + ", not a regular file; give the path of a regular file")}
}

func tooLarge(path string, most int) error {
	bound := fmt.Sprintf("%d KiB", most>>10)
	if most >= 1<<20 {
		bound = fmt.Sprintf("%d MiB", most>>20)
	}
	return &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it has more than %s, the most that is read of such a file; give the right file", bound)}
}
