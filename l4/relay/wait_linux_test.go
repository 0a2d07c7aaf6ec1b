package relay

import (
	"bytes"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A loop that gets no more events gives its processor back to Go's scheduler.
func TestQuietLoopWaitsInTheScheduler(t *testing.T) {
	l, errno := newLoop(New())
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(l.free)
	l.inARow = isBusy
	n := make(chan int)
	go func() { // ends at l.stop
		var events [1]unix.EpollEvent
		n <- l.wait(events[:])
	}()
	stacks := make([]byte, 1<<20)
	inSyscall := func() bool {
		all := stacks[:runtime.Stack(stacks, true)]
		for g := range bytes.SplitSeq(all, []byte("\n\n")) {
			if bytes.Contains(g, []byte("(*loop).wait")) {
				return bytes.Contains(g[:bytes.IndexByte(g, '\n')], []byte("[syscall"))
			}
		}
		return false
	}
	for !inSyscall() {
		if t.Context().Err() != nil {
			t.Fatal("the loop never waits in the scheduler")
		}
		runtime.Gosched()
	}
	l.stop()
	if got := <-n; got != 1 {
		t.Errorf("wait returned %d events, want 1", got)
	}
}
