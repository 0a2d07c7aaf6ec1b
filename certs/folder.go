package certs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Folder is a folder of which only we and root can have written what is in it. It is
// the folder that was checked, whatever is at its path meanwhile. Its owner calls
// Close.
type Folder struct{ root *os.Root }

// MakeFolder makes a folder of mode 0700 where there is none, and opens it.
func MakeFolder(path string) (*Folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return OpenFolder(path)
}

// OpenFolder opens a folder. The error is a *fs.PathError; it says so if others can
// write there, or have written there. Symbolic links on the way are followed: systemd
// makes one of a state folder, and what counts is where it leads.
func OpenFolder(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(".")
	if err == nil {
		if err = checkOurs(info, false); err != nil {
			err = fmt.Errorf("%w, or give a folder in it: one that is not there is made", err)
		}
	}
	if err != nil {
		root.Close()
		return nil, &fs.PathError{Op: "use", Path: path, Err: pathless(err)}
	}
	return &Folder{root}, nil
}

// Close lets go of the folder.
func (f *Folder) Close() { f.root.Close() }

// Check says what is wrong with a file: it must be a regular one that only we and
// root can have written; if secret, that only we can read. One that is not there is
// an error of fs.ErrNotExist.
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

// maxStored bounds a file in a folder of ours: certificates and keys have a few KiB.
const maxStored = 4 << 20

// Read reads a file that Check has nothing against.
func (f *Folder) Read(name string, secret bool) ([]byte, error) {
	if err := f.Check(name, secret); err != nil {
		return nil, err
	}
	file, err := f.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxStored))
}

// Create opens a file for reading and writing, and makes it, with mode 0600, where
// there is none. Of one that is there it wants what Check does.
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

// Replace writes a file beside the old one and puts it in its place: a process that
// is killed in between leaves the old one. A link in the place of either is not
// followed, what an earlier kill left is overwritten, and what is written lasts
// through a crash of the system.
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

// sync makes a rename last.
func (f *Folder) sync() error {
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// pathless takes the path out of an error that is put into another *fs.PathError.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
