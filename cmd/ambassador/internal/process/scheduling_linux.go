package process

import (
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A relay wakes up for each message. Under the default policy its wake-up takes the
// processor from the client or server that has just sent, before that one has done the
// rest of its work and waits by itself, which costs switches. Under SCHED_BATCH (sched(7))
// the kernel lets it go on until then, or until its time is over. Our share of a busy
// processor stays as it is.

// yields says whether patient has changed our policy.
var yields atomic.Bool

// patient makes SCHED_BATCH the policy of our threads, if the main thread has the default
// one, /proc lists them and the kernel permits it.
func patient() {
	if policyOf(os.Getpid()) != unix.SCHED_NORMAL {
		return // the one that started us has chosen
	}
	done := map[string]bool{}
	for more := true; more; { // threads that begin meanwhile have the policy of their parent
		more = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if done[t.Name()] || err != nil {
				continue
			}
			done[t.Name()], more = true, true
			if policyOf(tid) == unix.SCHED_NORMAL && setPolicy(tid, unix.SCHED_BATCH) {
				yields.Store(true)
			}
		}
	}
}

// asStarted runs f under the policy that we were started with, which what f starts
// inherits.
func asStarted(f func() error) error {
	if !yields.Load() {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setPolicy(0, unix.SCHED_NORMAL)
	defer setPolicy(0, unix.SCHED_BATCH)
	return f()
}

// policyOf is the policy of a thread; 0 is the calling one. It is negative if the kernel
// does not tell it.
func policyOf(tid int) int {
	policy, _, _ := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(tid), 0, 0)
	return int(policy)
}

// setPolicy sets the policy of a thread, and reports whether it could. The thread keeps
// its nice value.
func setPolicy(tid, policy int) bool {
	var priority int32 // of these policies
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), uintptr(policy), uintptr(unsafe.Pointer(&priority)))
	return errno == 0
}
