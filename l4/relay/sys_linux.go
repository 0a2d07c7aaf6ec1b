package relay

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls in this file do not block, or not for long, so they bypass Go's scheduler,
// whose part costs more than some of the calls. Pointers are converted to uintptr in the call itself,
// as package unsafe requires.

// recv reads from a non-blocking socket; b is not empty.
func recv(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// send writes to a non-blocking socket; b is not empty.
func send(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// spliceFD moves at most n bytes between a socket and a pipe, in the kernel.
func spliceFD(from, to int32, n int) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

func epollCtl(epfd int32, op int, fd int32, mask uint32) syscall.Errno {
	ev := unix.EpollEvent{Events: mask, Fd: fd}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

// epollWait waits for events for at most that long, in milliseconds. It returns 0 if
// there are none, and after a signal.
func epollWait(epfd int32, events []unix.EpollEvent, most time.Duration) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(most.Milliseconds()), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func shutdownWrite(fd int32) { syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) }

func closeFD(fd int32) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) } // not after EINTR: it is closed

// setInt sets a socket option. It ignores errors.
func setInt(fd int32, level, name, value int) {
	v := int32(value)
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&v)), 4, 0)
}

// closeWithReset closes with RST if the transport has one.
func closeWithReset(fd int32) {
	setLingerZero(fd)
	closeFD(fd)
}

// setLingerZero makes the last close of a socket send a RST, that at the end of the
// process too.
func setLingerZero(fd int32) { setLinger(fd, unix.Linger{Onoff: 1}) }

func setLingerOff(fd int32) { setLinger(fd, unix.Linger{}) }

func setLinger(fd int32, l unix.Linger) {
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
}

// pendingError returns and clears a socket's error; zero if there is none.
func pendingError(fd int32) syscall.Errno {
	var v int32
	size := uint32(unsafe.Sizeof(v))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(v)
}

// dupSocket returns our own descriptor for a socket of Go's; ok is false if c is
// not a socket, or if there is no descriptor left.
func dupSocket(c net.Conn) (fd int32, ok bool) {
	c = pollable(c)
	if !isSocket(c) {
		return -1, false
	}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, false
	}
	fd = -1
	err = raw.Control(func(s uintptr) {
		n, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, s, unix.F_DUPFD_CLOEXEC, 0)
		if errno == 0 {
			fd = int32(n)
		}
	})
	return fd, err == nil && fd >= 0
}

// ioError wraps a socket's error like package os does.
func ioError(op string, errno syscall.Errno) error { return os.NewSyscallError(op, errno) }
