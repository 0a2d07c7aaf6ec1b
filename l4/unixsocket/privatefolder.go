package unixsocket

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// privateFolder is a new folder that only this user may enter, so that no other user
// can replace a file in it. The mode and owner of a socket are changed there. A change
// by the socket's path would follow a link that another user has put there, and a
// socket's descriptor does not refer to its file. The folder is accessed by descriptor:
// a user who may rename it cannot substitute another one.
type privateFolder struct {
	parent, own *os.Root
	name        string // the folder's name in parent
	file        string // the file's name in own and in parent
}

// newPrivateFolder creates a folder beside the file at path, for that file. The caller
// removes it.
func newPrivateFolder(path string) (*privateFolder, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	f := &privateFolder{parent: root, file: filepath.Base(path), name: "." + rand.Text()[:6]} // short: it is part of a socket's path
	if err := root.Mkdir(f.name, 0o700); err != nil {
		root.Close()
		return nil, err
	}
	if f.own, err = root.OpenRoot(f.name); err == nil {
		err = f.check()
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// check verifies that the folder is the one that was created.
func (f *privateFolder) check() error {
	info, err := f.own.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: the folder that was made there has another owner or mode, so that other users could replace a socket; choose another folder", f.path())
	}
	if left, err := fs.ReadDir(f.own.FS(), "."); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("%s: another process replaced this folder; choose one where only this user can write", f.path()))
	}
	return nil
}

// path is the folder's path.
func (f *privateFolder) path() string { return filepath.Join(f.parent.Name(), f.name) }

// inside is the file's path in the folder, relative to parent.
func (f *privateFolder) inside() string { return f.name + "/" + f.file }

// guard changes the mode and owner of the file in the folder; made describes that file
// as created. Meanwhile it gives access only to users that both configurations allow.
func (f *privateFolder) guard(made fs.FileInfo, from, to Config) error {
	if err := f.own.Chmod(f.file, from.mode()&to.mode()); err != nil {
		return err
	}
	uid, gid := to.owner(made)
	if fromUID, fromGID := from.owner(made); uid != fromUID || gid != fromGID {
		if err := f.own.Lchown(f.file, uid, gid); err != nil {
			return err
		}
	}
	return f.own.Chmod(f.file, to.mode())
}

// remove deletes the folder and what is left in it.
func (f *privateFolder) remove() {
	f.own.Remove(f.file)
	f.close()
}

// close deletes the empty folder. If another process has replaced the folder with a
// link, close deletes the link and not its target.
func (f *privateFolder) close() {
	if f.own != nil {
		f.own.Close()
	}
	f.parent.Remove(f.name)
	f.parent.Close()
}
