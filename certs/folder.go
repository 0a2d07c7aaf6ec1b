package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Folder is an open folder that only we and root can have written to. It stays
// the folder that was checked, whatever replaces its path later. Its owner calls
// Close.
type Folder struct{ root *os.Root }

// MakeFolder opens a folder, and creates it with mode 0700 if it does not exist.
func MakeFolder(path string) (*Folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return OpenFolder(path)
}

// OpenFolder opens a folder. It returns a *fs.PathError if others can write to
// the folder or own it. Symbolic links in the path are followed, because systemd
// makes one of a state folder: the check applies to the target.
func OpenFolder(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(".")
	if err == nil {
		if err = checkOurs(info, false); err != nil {
			err = fmt.Errorf("%w, or give a folder inside it: a missing folder is created", err)
		}
	}
	if err != nil {
		root.Close()
		return nil, &fs.PathError{Op: "use", Path: path, Err: pathless(err)}
	}
	return &Folder{root}, nil
}

// Close closes the folder.
func (f *Folder) Close() { f.root.Close() }

// Check returns an error unless the file is a regular file that only we and root
// can have written; if secret, only we may read it. For a missing file the error
// is fs.ErrNotExist.
func (f *Folder) Check(name string, secret bool) error {
	info, err := f.root.Lstat(name)
	return f.judge(name, info, err, secret)
}

func (f *Folder) judge(name string, info fs.FileInfo, err error, secret bool) error {
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file; remove it")
	}
	if err == nil {
		err = checkOurs(info, secret)
	}
	if err != nil {
		return &fs.PathError{Op: "use", Path: filepath.Join(f.root.Name(), name), Err: pathless(err)}
	}
	return nil
}

// maxStored bounds a file in such a folder: certificates and keys have a few KiB.
const maxStored = 4 << 20

// Read reads a file that passes Check.
func (f *Folder) Read(name string, secret bool) ([]byte, error) {
	if err := f.Check(name, secret); err != nil {
		return nil, err
	}
	file, err := f.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readAll(file, maxStored)
}

// Create opens a file for reading and writing, and creates it with mode 0600 if
// it does not exist. An existing file must pass Check.
func (f *Folder) Create(name string) (*os.File, error) {
	file, err := f.root.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err = f.judge(name, info, err, false); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Replace writes a new file beside the old one and renames it into place, so that
// a process killed in between leaves the old file. It follows no link in place of
// either, overwrites what an earlier kill left, and syncs: the file survives a
// crash of the system.
func (f *Folder) Replace(name string, text []byte, mode fs.FileMode) error {
	draft := name + ".new"
	if err := f.root.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := f.root.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := f.root.Rename(draft, name); err != nil {
		return err
	}
	return f.sync()
}

// sync makes a rename durable.
func (f *Folder) sync() error {
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// pathless removes the path from an error that is put into another *fs.PathError.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
