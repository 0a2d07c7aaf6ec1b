package relay

import "golang.org/x/sys/unix"

// SetMark sets the mark (SO_MARK) of a socket's packets, for the host's routes
// and filters. The error is a *MarkError.
func SetMark(fd uintptr, mark int) error {
	if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		return &MarkError{mark, err}
	}
	return nil
}

// MayMark returns nil if this process may mark its sockets. The error is a
// *MarkError, or that of making a socket.
func MayMark(mark int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return ioError("socket", err.(unix.Errno))
	}
	defer unix.Close(fd)
	return SetMark(uintptr(fd), mark)
}
