package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// CheckMode checks the mode of a file that was provided to us. It returns an
// error if every user of this host may write the file: it could hold anybody's
// data, and must not be used. It returns a warning if every user may read a
// secret. That may be harmless (a folder above may keep them out, and Kubernetes
// mounts secrets so), but is to be reported. The group's permissions are not
// checked: the group was chosen by the file's owner.
func CheckMode(info fs.FileInfo, secret bool) (warning, err error) {
	const (
		othersWrite = 0o002
		othersRead  = 0o004
	)
	switch mode := info.Mode().Perm(); {
	case mode&othersWrite != 0:
		return nil, fmt.Errorf("every user of this host may write it (mode %#o); chmod o-w it", mode)
	case secret && mode&othersRead != 0:
		return fmt.Errorf("every user of this host may read this secret (mode %#o); chmod o-r it, or in Kubernetes set defaultMode: 0440 and fsGroup", mode), nil
	}
	return nil, nil
}

// Exposed returns CheckMode's warning for the secret at a path, with the path;
// nil if there is none.
func Exposed(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // the read of the file reports it
	}
	if warning, _ := CheckMode(info, true); warning != nil {
		return fmt.Errorf("%s: %w", path, warning)
	}
	return nil
}

// Withheld returns an error for a file of root's that the group of its folder may not read,
// though the folder gives that group to its files (setgid): the folder is for a service of
// that group, like /etc/ambassador of the packages. It returns nil for any other file.
func Withheld(path string) error {
	folder, err := os.Stat(filepath.Dir(path))
	if err != nil || folder.Mode()&fs.ModeSetgid == 0 {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil // the read of the file reports it
	}
	of, ok := folder.Sys().(*syscall.Stat_t)
	its, known := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	if !ok || !known || of.Gid == 0 || its.Uid != 0 || mode&0o004 != 0 || its.Gid == of.Gid && mode&0o040 != 0 {
		return nil
	}
	return fmt.Errorf("%s: root may read it (mode %#o), and the group of its folder (gid %d), for which the folder is, may not; chgrp %d it, and chmod 640 it", path, mode, of.Gid, of.Gid)
}

// checkOurs returns nil for a folder or file that only we and root can have
// written. If secret, only we may read it.
func checkOurs(info fs.FileInfo, secret bool) error {
	owner, ok := info.Sys().(*syscall.Stat_t)
	us := os.Geteuid()
	switch mode := info.Mode().Perm(); {
	case !ok:
		return errors.New("its owner is not known on this system")
	case owner.Uid != 0 && int(owner.Uid) != us:
		return fmt.Errorf("it belongs to uid %d, and we are uid %d; chown it, if you trust what that user has put there, or run this as that user", owner.Uid, us)
	case mode&0o022 != 0:
		return fmt.Errorf("others may write it (mode %#o); chmod go-w it, if you trust what is there", mode)
	case secret && mode&0o077 != 0:
		return fmt.Errorf("others may read this secret (mode %#o); chmod 600 it, and replace it if another user may have read it", mode)
	}
	return nil
}
