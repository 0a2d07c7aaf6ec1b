package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// CheckMode judges a file that somebody else has put there for us. The error is one
// that every user of this host may write: what it says is anybody's, and it must not
// be used. The warning is a secret that every user may read; it may be nothing (a
// folder above may keep them out, and Kubernetes mounts secrets so), and is to be
// said. What the file's group may do is left to those who chose the group.
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

// Exposed is the warning of CheckMode for the secret at a path, which it names; nil if
// there is none.
func Exposed(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // it is said where the file is read
	}
	if warning, _ := CheckMode(info, true); warning != nil {
		return fmt.Errorf("%s: %w", path, warning)
	}
	return nil
}

// checkOurs is nil for a folder or a file that only we and root can have written. If
// secret, only we may read it, too.
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
