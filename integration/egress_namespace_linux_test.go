package integration

import "syscall"

// newNamespace gives the thread that calls a network namespace of its own.
func newNamespace() error { return syscall.Unshare(syscall.CLONE_NEWNET) }
