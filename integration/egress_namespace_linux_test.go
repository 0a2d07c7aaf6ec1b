package integration

import "syscall"

// newNamespace gives the thread that calls a network namespace of its own.
func newNamespace() error { return syscall.Unshare(syscall.CLONE_NEWNET) }

// replaceFile shows the thread that calls, and the processes that it starts, one file in
// the place of another.
func replaceFile(path, with string) error {
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return err
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	return syscall.Mount(with, path, "", syscall.MS_BIND, "")
}
