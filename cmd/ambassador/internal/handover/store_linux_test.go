package handover

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/carry"
	"ambassador/l4/relay"
)

// manager is a service manager that keeps the first descriptor, if keep says so, and tells
// when it has read a barrier.
func manager(t *testing.T, keep bool) (socket string, kept <-chan int) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	found := make(chan int, 1)
	go func() { // ends with conn
		text, rights := make([]byte, 1024), make([]byte, 1024)
		for {
			_, m, _, _, err := conn.ReadMsgUnix(text, rights)
			if err != nil {
				return
			}
			messages, _ := unix.ParseSocketControlMessage(rights[:m])
			for i := range messages {
				fds, _ := unix.ParseUnixRights(&messages[i])
				for _, fd := range fds {
					if keep && len(found) == 0 {
						found <- fd
						keep = false
						continue
					}
					unix.Close(fd)
				}
			}
		}
	}()
	return socket, found
}

// TestStoreManyDescriptors proves that more descriptors than one queue takes arrive, each with
// the number that it had.
func TestStoreManyDescriptors(t *testing.T) {
	const many = 8_000
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur < 2*many+500 {
		t.Skipf("the limit of descriptors is %d, and %d are needed", limit.Cur, 2*many+500)
	}
	var files [2]*os.File
	for i := range files {
		var err error
		if files[i], err = os.CreateTemp(t.TempDir(), "x"); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	var more []int
	for i := range many {
		fd, err := unix.FcntlInt(files[i%2].Fd(), unix.F_DUPFD_CLOEXEC, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		more = append(more, fd)
	}
	socket, kept := manager(t, true)
	if err := Store(socket, &carry.Handover{From: "v1"}, more); err != nil {
		t.Fatal(err)
	}
	r := &Received{world: program.World{Stderr: io.Discard}}
	root := <-kept
	defer unix.Close(root)
	r.takeRoot(root)
	if r.Cause != nil || r.Handover == nil || r.From != "v1" || !r.Stored || len(r.number) != many {
		t.Fatalf("%+v, %d descriptors", r, len(r.number))
	}
	var want [2]unix.Stat_t
	for i, f := range files {
		if err := unix.Fstat(int(f.Fd()), &want[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i, old := range more {
		fd := r.Number(old)
		defer unix.Close(fd)
		var got unix.Stat_t
		if err := unix.Fstat(fd, &got); err != nil || got.Ino != want[i%2].Ino {
			t.Fatalf("descriptor %d arrived as %d, which is another file: %v", old, fd, err)
		}
	}
	if n := r.Number(1 << 20); n != -1 {
		t.Errorf("a descriptor that was not sent arrived as %d", n)
	}
}

// TestStoreRefused proves that a descriptor which the manager does not keep is noticed, and
// that the sessions' descriptors stay open.
func TestStoreRefused(t *testing.T) {
	socket, _ := manager(t, false)
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	h := &carry.Handover{Server: carry.Server{Seq: 1, Sessions: []carry.Session{{Seq: 1, Flow: relay.Carried{Sides: [2]relay.CarriedSide{{FD: p[0]}, {FD: p[1]}}}}}}}
	if err := Store(socket, h, nil); err == nil {
		t.Error("no error")
	}
	if _, err := unix.Write(p[0], []byte("x")); err != nil {
		t.Errorf("the descriptors are closed: %v", err)
	}
	if err := Store(filepath.Join(t.TempDir(), "absent"), h, nil); err == nil {
		t.Error("without a manager there is no error")
	}
}

// TestStoreOfAnotherForm proves that a root which we do not know is an error, and that a
// state which cannot be read says how many sessions are lost.
func TestStoreOfAnotherForm(t *testing.T) {
	for text, lost := range map[string]int{"ambassador store 2 …": 0, string(storeHead(9, 18)): 9, "": 0} {
		q, err := newQueue()
		if err != nil {
			t.Fatal(err)
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := q.send([]byte(text), []int{int(null.Fd())}); err != nil {
				t.Fatal(err)
			}
		}
		null.Close()
		r := &Received{world: program.World{Stderr: io.Discard}}
		r.takeRoot(q.out)
		q.close()
		if r.Handover != nil || r.Lost != lost || r.Cause == nil {
			t.Errorf("%q: %+v, want %d lost", text, r, lost)
		}
	}
}

// tableSize is how many descriptors the kernel's table of this process has room for.
func tableSize(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nFDSize:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The table of descriptors grows once, and not while they arrive.
func TestTableGrows(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	more := tableSize(t)
	if room := descriptorRoom(); more > room {
		t.Skipf("the table has room for %d descriptors already, of %d", more, room)
	}
	growTable(int(f.Fd()), more)
	if n := tableSize(t); n <= more {
		t.Errorf("the table has room for %d descriptors, want more than %d", n, more)
	}
	if _, err := unix.FcntlInt(f.Fd()+uintptr(more), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the descriptor that made it grow: %v, want EBADF", err)
	}
}

// The garbage collector runs again when the sessions go on.
func TestCollect(t *testing.T) {
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	percent := func() int {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return int(int64(s[0].Value.Uint64()))
	}
	r := &Received{}
	r.stopCollector()
	r.stopCollector()
	if n := percent(); n == 123 {
		t.Error("the collector was not stopped")
	}
	r.Collect()
	if n := percent(); n != 123 {
		t.Errorf("the collector has %d percent, want 123", n)
	}
}
