package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// endedChild returns the id of a child that has ended and that nothing has waited for;
// 0 if there is none. The child stays as it is.
func endedChild() int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0
	}
	// x/sys has no name for si_pid. It follows three numbers of 4 bytes, and is aligned
	// like a pointer, because the union that it is in holds some.
	const word = unsafe.Sizeof(uintptr(0))
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), (12+word-1)/word*word)))
}
