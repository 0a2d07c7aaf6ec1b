package relay

import "golang.org/x/sys/unix"

// SetMark marks what a socket sends, for the host's routes and filters (SO_MARK).
// The error is a *MarkError.
func SetMark(fd uintptr, mark int) error {
	if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		return &MarkError{mark, err}
	}
	return nil
}

// MayMark says whether this process may mark its sockets. The error is a
// *MarkError, or what a socket costs.
func MayMark(mark int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return ioError("socket", err.(unix.Errno))
	}
	defer unix.Close(fd)
	return SetMark(uintptr(fd), mark)
}
