package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/cmd/ambassador/internal/program"
	"ambassador/l4/carry"
)

// systemd keeps descriptors of a service while it starts the service again
// (FileDescriptorStoreMax=). It compares each new one with all that it has, and looks at
// each of them all the time. Therefore it gets only one: a socket, in whose queue
// everything waits. Its first message is the root, with the state and more such sockets, the
// branches, whose messages have the other descriptors.

const (
	// packSize is how many descriptors one message has, at most (SCM_MAX_FD of Linux).
	packSize = 253
	// notifyTimeout bounds each message to systemd, and barrierTimeout the wait until it
	// has read all of them.
	notifyTimeout  = time.Second
	barrierTimeout = 5 * time.Second
)

// Store leaves h to the process that the service manager starts next for this service;
// notifySocket is its $NOTIFY_SOCKET. More are descriptors besides those of h.Server. After
// nil the sessions belong to that process, and the caller ends this one at once. On an error
// nothing has changed.
func Store(notifySocket string, h *carry.Handover, more []int) error {
	h.Old = -1 // nothing goes back
	state, err := writeState(h)
	if err != nil {
		return fmt.Errorf("write the state of the sessions: %w", err)
	}
	fds := append(more[:len(more):len(more)], h.Server.Descriptors()...)
	root, err := newQueue()
	if err != nil {
		unix.Close(state)
		return err
	}
	defer root.close()
	branches, err := fillBranches(fds)
	packed := []int{state}
	for _, b := range branches {
		packed = append(packed, b.out)
	}
	if err == nil {
		err = root.send(storeHead(len(h.Server.Sessions)+len(h.Server.Parked), len(fds)), packed)
	}
	unix.Close(state)
	for _, b := range branches {
		b.close()
	}
	if err != nil {
		return fmt.Errorf("queue the descriptors: %w", err)
	}
	return root.store(notifySocket)
}

// fillBranches puts the descriptors into queues, each as full as it gets. The caller closes
// them, on an error too.
func fillBranches(fds []int) (all []*queue, err error) {
	for len(fds) > 0 {
		pack := fds[:min(len(fds), packSize)]
		err := errFull
		if len(all) > 0 {
			err = all[len(all)-1].send(packNumbers(pack), pack)
		}
		if errors.Is(err, errFull) {
			b, err := newQueue()
			if err != nil {
				return all, err
			}
			all = append(all, b)
			if err := b.send(packNumbers(pack), pack); err != nil {
				return all, err
			}
		} else if err != nil {
			return all, err
		}
		fds = fds[len(pack):]
	}
	if len(all) >= packSize {
		return all, fmt.Errorf("they need %d queues, and %d are the most", len(all), packSize-1)
	}
	return all, nil
}

// queue is a pair of connected sockets: what is sent into the one waits in the other.
type queue struct{ in, out int }

// errFull means that a queue takes no further message.
var errFull = errors.New("the queue is full")

func newQueue() (*queue, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	// Any system allows so much. It is room for some thousand descriptors in each of the
	// branches, of which there may be 252.
	unix.SetsockoptInt(p[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10)
	return &queue{p[0], p[1]}, nil
}

func (q *queue) close() {
	unix.Close(q.in)
	if q.out >= 0 {
		unix.Close(q.out)
		q.out = -1
	}
}

// send puts a message into the queue. It returns errFull if there is no room.
func (q *queue) send(text []byte, fds []int) error {
	for {
		err := unix.Sendmsg(q.in, text, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			return errFull
		case errors.Is(err, unix.ETOOMANYREFS):
			return fmt.Errorf("the limit of descriptors (LimitNOFILE=) is also that of descriptors in queues: %w", os.NewSyscallError("sendmsg", err))
		}
		return os.NewSyscallError("sendmsg", err)
	}
}

// store gives the queue's end to the service manager, and makes sure that it has it.
func (q *queue) store(notifySocket string) error {
	// FDPOLL=0: its peer ends soon, and systemd drops what has ended.
	err := notify(notifySocket, "FDSTORE=1\nFDNAME="+storeName+"\nFDPOLL=0", q.out)
	if err == nil {
		err = barrier(notifySocket)
	}
	if err != nil {
		takePack(q.out, func([]byte, []int) { /* closed by takePack */ }) // else systemd could keep it later
		return fmt.Errorf("the service manager does not answer: %w", err)
	}
	unix.Close(q.out)
	q.out = -1
	// systemd does not say if it refuses a descriptor; it closes it. Then nobody has the
	// other end of this queue.
	poll := []unix.PollFd{{Fd: int32(q.in), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return os.NewSyscallError("poll", err)
	}
	if poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		return errors.New("the service manager has not kept the descriptor: set FileDescriptorStoreMax= of the unit to 4 or more")
	}
	return nil
}

// notify sends a message to the service manager.
func notify(socket, text string, fds ...int) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	wait := unix.NsecToTimeval(notifyTimeout.Nanoseconds())
	unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(s, []byte(text), rights, &unix.SockaddrUnix{Name: socket}, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// barrier returns when the service manager has read all messages: it closes the
// descriptor of this one.
func barrier(socket string) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(p[0])
	err := notify(socket, "BARRIER=1", p[1])
	unix.Close(p[1])
	if err != nil {
		return err
	}
	for until := time.Now().Add(barrierTimeout); ; {
		left := time.Until(until)
		if left <= 0 {
			return fmt.Errorf("it has not read its messages within %v", barrierTimeout)
		}
		poll := []unix.PollFd{{Fd: int32(p[0])}}
		n, err := unix.Poll(poll, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0:
			return nil
		}
	}
}

// receiveStored returns what another process has left in the store; nil if there is
// nothing. The sockets that systemd passes stay as they are, ours among them: see
// IsStore.
func receiveStored(w program.World) *Received {
	notifySocket, _ := w.Env("NOTIFY_SOCKET")
	if notifySocket == "" {
		return nil
	}
	r := &Received{world: w, signals: make(chan os.Signal, 8)}
	signal.Notify(r.signals, syscall.SIGUSR2) // systemd sends it once, and Go drops what nobody awaits
	found := storedAt(w.Env)
	if len(found) > 0 { // a signal must not end the sessions before this program handles signals
		signal.Notify(r.signals, early...)
		conceal()
		r.stopCollector()
		for _, fd := range found {
			r.takeRoot(fd)
		}
		// Before sessions go on: a socket that two processes have is not closed by one.
		err := notify(notifySocket, "FDSTOREREMOVE=1\nFDNAME="+storeName)
		if err == nil {
			err = barrier(notifySocket)
		}
		if err != nil {
			fmt.Fprintf(w.Stderr, "ambassador: systemd may still have what the process before has left: %v\n", err)
		}
	}
	return r
}

// storedAt returns the descriptors of the store that systemd has passed to this process.
func storedAt(env func(string) (string, bool)) (fds []int) {
	pid, _ := env("LISTEN_PID")
	if pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	names, _ := env("LISTEN_FDNAMES")
	for i, name := range strings.Split(names, ":") {
		if name == storeName {
			unix.CloseOnExec(3 + i)
			fds = append(fds, 3+i)
		}
	}
	return fds
}

// takeRoot reads a stored queue.
func (r *Received) takeRoot(fd int) {
	unix.SetNonblock(fd, true) // its peer has ended: nothing is waited for
	found, err := takePack(fd, func(text []byte, fds []int) {
		sessions, descriptors, err := readStoreHead(text)
		if err == nil && r.Handover != nil {
			err = errors.New("the store has two states, and the other one was taken")
		}
		if err == nil {
			err = r.takeTree(fds, descriptors)
		}
		if err != nil {
			r.Lost, r.Cause = r.Lost+sessions, err
		}
	})
	if err != nil && !found {
		r.Cause = fmt.Errorf("read the store: %w", err)
	}
}

// takeTree reads the state, and the descriptors in the branches. Fds belong to the
// caller.
func (r *Received) takeTree(fds []int, descriptors int) error {
	if len(fds) == 0 {
		return errors.New("the descriptor of the state did not arrive: the limit of descriptors (LimitNOFILE=) is too low")
	}
	room := descriptorRoom()
	var growing sync.WaitGroup
	growing.Go(func() { growTable(fds[0], min(descriptors, room)) }) // while the state is read; awaited below
	b, err := readState(fds[0])
	var h *carry.Handover
	if err == nil {
		h, err = carry.Read(b)
	}
	growing.Wait()
	if err != nil {
		return err
	}
	r.number = make(map[int]int, descriptors)
	for _, branch := range fds[1:] {
		for more := true; more; {
			more, _ = takePack(branch, func(text []byte, fds []int) {
				old := readNumbers(text)
				for i := range min(len(fds), len(old), max(0, room-len(r.number))) {
					r.number[old[i]], fds[i] = fds[i], -1
				}
			})
		}
	}
	h.Server.Renumber(r.Number)
	if missing := descriptors - len(r.number); missing > 0 {
		fmt.Fprintf(r.world.Stderr, "ambassador: %d of %d descriptors did not arrive from the process before: is the limit (LimitNOFILE=) lower?\n", missing, descriptors)
	}
	r.Handover, r.Stored = h, true
	return nil
}

// descriptorRoom is how many descriptors may be taken, so that the rest of the process has
// some too.
func descriptorRoom() int {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil || files.Cur > 1<<30 {
		return 1 << 30
	}
	return int(files.Cur) - min(int(files.Cur)/2, 2*packSize)
}

// growTable makes room for that many more descriptors at once. Linux doubles the table each
// time it is full, and waits for all processors each time: 12,000 descriptors took 90 ms.
func growTable(fd, more int) {
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, fd+more); err == nil { // else they arrive more slowly
		unix.Close(high)
	}
}

// takePack reads a message of a queue. It closes the descriptors that use has not replaced
// by -1. It returns false if there is no message.
func takePack(fd int, use func(text []byte, fds []int)) (found bool, err error) {
	text := make([]byte, packSize*numberSize)
	rights := make([]byte, unix.CmsgSpace(packSize*4))
	n, m := 0, 0
	for {
		n, m, _, _, err = unix.Recvmsg(fd, text, rights, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || n == 0 {
		return false, os.NewSyscallError("recvmsg", err)
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	for i := range messages {
		got, failed := unix.ParseUnixRights(&messages[i])
		fds, err = append(fds, got...), errors.Join(err, failed)
	}
	use(text[:n], fds)
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return true, err
}

// packNumbers is the text of a message with descriptors: their numbers in this process.
func packNumbers(fds []int) (text []byte) {
	for _, fd := range fds {
		text = binary.BigEndian.AppendUint32(text, uint32(fd))
	}
	return text
}

func readNumbers(text []byte) (fds []int) {
	for ; len(text) >= numberSize; text = text[numberSize:] {
		fds = append(fds, int(int32(binary.BigEndian.Uint32(text))))
	}
	return fds
}
