//go:build unix

package relay

import (
	"os"

	"golang.org/x/sys/unix"
)

// SetShared says whether a TCP socket shares its port with other sockets of this user
// that are set so, too (SO_REUSEPORT). The system asks for it when one of them is bound.
func SetShared(fd uintptr, shared bool) error {
	value := 0
	if shared {
		value = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, value))
}
