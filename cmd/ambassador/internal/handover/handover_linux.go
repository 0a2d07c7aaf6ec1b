package handover

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"ambassador/l4/carry"
)

// seals make the state unchangeable.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Available returns nil if this system can replace a program and keep its sessions.
func Available() error { return nil }

// Exec replaces the program of this process by that at path, which takes h over. More are
// descriptors that it needs besides those of h.Server. Ready is called just before; if
// its result is an error, nothing happens. Exec returns only on an error: then nothing
// has changed.
func Exec(path string, h *carry.Handover, more []int, ready func() error) error {
	old, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the running program, to go back to it: %w", err)
	}
	defer unix.Close(old)
	h.Old = old
	state, err := writeState(h)
	if err != nil {
		return fmt.Errorf("write the state of the sessions: %w", err)
	}
	defer unix.Close(state)
	keep := append([]int{state, old}, more...)
	keep = append(keep, h.Server.Descriptors()...)
	if err := ready(); err != nil {
		return err
	}
	return execAt(path, keep, []string{variable + "=" + strconv.Itoa(state)})
}

// execFile is Exec for a program of which only a descriptor is known.
func execFile(fd int, keep []int, env []string) error {
	return execAt("/proc/self/fd/"+strconv.Itoa(fd), keep, env)
}

// execAt replaces the program, whose arguments stay the same. The descriptors in keep
// stay open. It returns only on an error: then nothing has changed.
func execAt(path string, keep []int, env []string) error {
	runtime.LockOSThread() // the next program inherits the signal mask of this thread
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, blocked(), &before); err != nil {
		return os.NewSyscallError("rt_sigprocmask", err)
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	var files unix.Rlimit
	limited := unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil
	syscall.ForkLock.Lock() // no child may inherit the descriptors
	defer syscall.ForkLock.Unlock()
	for _, fd := range keep {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	err := syscall.Exec(path, os.Args, append(os.Environ(), env...))
	for _, fd := range keep {
		unix.CloseOnExec(fd)
	}
	if limited {
		unix.Setrlimit(unix.RLIMIT_NOFILE, &files) // package syscall has set that of the start
	}
	return &os.PathError{Op: "exec", Path: path, Err: err}
}

// blocked are the signals that would end the next program before it handles them. Known
// limit: Go's runtime unblocks them at its start, so that SIGTERM can still end the
// program in the milliseconds until Receive, all sessions by RST. The caller of Exec
// ignores the others, which Go keeps.
func blocked() *unix.Sigset_t {
	var set unix.Sigset_t
	const bits = 8 * unsafe.Sizeof(set.Val[0])
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR2} {
		n := uintptr(s - 1)
		set.Val[n/bits] |= 1 << (n % bits)
	}
	return &set
}

func writeState(h *carry.Handover) (fd int, err error) {
	fd, err = unix.MemfdCreate("ambassador", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3
		fd, err = unix.MemfdCreate("ambassador", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	w := bufio.NewWriterSize(fdWriter(fd), 64<<10)
	if err = carry.Write(w, h); err == nil {
		err = w.Flush()
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fdWriter writes to a descriptor, which stays open.
type fdWriter int

func (w fdWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		k, err := unix.Write(int(w), b[n:])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return n, os.NewSyscallError("write", err)
		}
		n += max(k, 0)
	}
	return n, nil
}

// conceal keeps other processes of the user from the memory and the descriptors of this
// process, which have the secrets of TLS sessions. Known limit: from the exec until here,
// some milliseconds, the kernel lets them look, unless the executable is not readable for
// the user.
func conceal() { unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) } //nolint:errcheck // the process reports it when it does that itself

// readState reads a state from memory that only a program of this process can have made.
func readState(fd int) ([]byte, error) {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals {
		return nil, errors.New("the descriptor is not that of a sealed state")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	b := make([]byte, st.Size)
	for n := 0; n < len(b); {
		k, err := unix.Pread(fd, b[n:], int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, os.NewSyscallError("pread", err)
		case k == 0:
			return nil, io.ErrUnexpectedEOF
		}
		n += max(k, 0)
	}
	return b, nil
}

// release closes what only the way back needs, and keeps the descriptors of sessions
// from children.
func release(r *Received) {
	if r.Stored { // nothing of that was needed
		return
	}
	unix.Close(r.state)
	unix.Close(r.Old)
	for _, fd := range r.Server.Descriptors() {
		unix.CloseOnExec(fd)
	}
}
