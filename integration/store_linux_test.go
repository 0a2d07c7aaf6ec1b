package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keeper is a service manager that keeps descriptors as systemd does. TestRestart has the
// real one; this one can fail in chosen ways.
type keeper struct {
	t    testing.TB
	conn *net.UnixConn
	most int // how many descriptors it keeps

	mu    sync.Mutex
	kept  []int // guarded by mu
	ready int   // guarded by mu; how many processes have said that they are
}

func newKeeper(t testing.TB, most int) *keeper {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(shortDir(t), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, conn: conn, most: most}
	var reading sync.WaitGroup
	reading.Go(k.read) // ends with conn; awaited below
	t.Cleanup(func() {
		conn.Close()
		reading.Wait()
		k.drop()
	})
	return k
}

func (k *keeper) read() {
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, m, _, _, err := k.conn.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		var fds []int
		messages, _ := unix.ParseSocketControlMessage(rights[:m])
		for i := range messages {
			got, _ := unix.ParseUnixRights(&messages[i])
			fds = append(fds, got...)
		}
		k.told(string(text[:n]), fds)
	}
}

// told does what a message asks for.
func (k *keeper) told(text string, fds []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		if strings.HasPrefix(text, "FDSTORE=1\nFDNAME=ambassador-sessions\nFDPOLL=0") && len(k.kept) < k.most {
			k.kept = append(k.kept, fd)
			continue
		}
		unix.Close(fd)
	}
	if strings.HasPrefix(text, "READY=1") {
		k.ready++
	}
	if strings.HasPrefix(text, "FDSTOREREMOVE=1\nFDNAME=ambassador-sessions") {
		k.dropLocked()
	}
}

// drop forgets all descriptors, as systemd does when a service has ended for good.
func (k *keeper) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropLocked()
}

func (k *keeper) dropLocked() {
	for _, fd := range k.kept {
		unix.Close(fd)
	}
	k.kept = nil
}

// holds returns how many descriptors are kept.
func (k *keeper) holds() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.kept)
}

// start runs the ambassador as its service, with what is kept. Before is run by the shell
// that becomes the ambassador.
func (k *keeper) start(before string, args ...string) *ambassador {
	k.t.Helper()
	k.mu.Lock()
	var files []*os.File
	var names []string
	for _, fd := range k.kept {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			k.t.Fatal(err)
		}
		files, names = append(files, os.NewFile(uintptr(dup), "kept")), append(names, "ambassador-sessions")
	}
	k.mu.Unlock()
	script := before + `
[ -z "$NAMES" ] || export LISTEN_PID=$$ LISTEN_FDNAMES="$NAMES" LISTEN_FDS=` + strconv.Itoa(len(files)) + `
exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", binary}, args...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+k.conn.LocalAddr().String(), "NAMES="+strings.Join(names, ":"))
	cmd.ExtraFiles = files
	a := startCmd(k.t, cmd)
	for _, f := range files {
		f.Close()
	}
	return a
}

// leave asks the ambassador to leave its sessions, and to end.
func (a *ambassador) leave() {
	a.t.Helper()
	a.signal(syscall.SIGUSR2)
	a.ended(0)
}

// echoes is the configuration of a listener in front of an echo server.
func echoes(t testing.TB, more string) (file string) {
	t.Helper()
	srv := startServer(t, nil, echo)
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners: {front: {listen: "127.0.0.1:0", upstream: up}}
upstreams: {up: {endpoints: ["%s"]}}
metrics: {listen: "127.0.0.1:0"}
%s`, srv.addr, more))
}

// sessionsOf opens sessions that have moved bytes.
func (a *ambassador) sessionsOf(n int) (conns []net.Conn) {
	a.t.Helper()
	for range n {
		c, err := net.Dial("tcp", a.addr("front"))
		if err != nil {
			a.t.Fatal(err)
		}
		a.t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
	}
	pingedAll(a.t, conns, "before\n")
	return conns
}

// resets checks that every session has ended in a reset.
func resets(t testing.TB, conns []net.Conn) {
	t.Helper()
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(patience))
		resetByPeer(t, c)
	}
}

// TestStore proves that sessions, listeners and counters go on in the process that the
// service manager starts next: plain TCP, a unix socket, TLS of both sides, a session whose
// client has ended, and one whose client has said nothing yet.
func TestStore(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	answer := make(chan struct{})
	plain, secure := startServer(t, nil, several(answer)), startServer(t, keys.mtls(t), echo)
	path := filepath.Join(shortDir(t), "in.sock")
	file := writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: plain}
  local: {listen: "unix:%s", upstream: plain}
  out: {listen: "127.0.0.1:0", upstream: secure}
  in: {listen: "127.0.0.1:0", upstream: plain, tls: {identity: server, client: none}, timeouts: {handshake: 10m}}
upstreams:
  plain: {endpoints: ["%s"]}
  secure: {endpoints: ["%s"], tls: {identity: me, server_name: localhost, ca: %s}}
identities:
  me: {files: {cert: %s, key: %s}}
  server: {files: {cert: %s, key: %s}}
metrics: {listen: "127.0.0.1:0"}
`, path, plain.addr, secure.addr, keys.file("ca.crt"), keys.file("client.crt"), keys.file("client.key"), keys.file("server.crt"), keys.file("server.key")))
	k := newKeeper(t, 4)
	a := k.start("", "run", "-c", file)
	places := map[string]string{}
	for _, name := range []string{"front", "local", "out", "in", "metrics"} {
		places[name] = a.addr(name)
	}
	conns := []net.Conn{opened(t, a.addr("front"), "echo")}
	unixConn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unixConn.Close()
	fmt.Fprintln(unixConn, "echo")
	out, err := net.Dial("tcp", a.addr("out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := tls.Dial("tcp", a.addr("in"), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	fmt.Fprintln(in, "echo")
	conns = append(conns, unixConn, out, in)
	silent := a.connect("in") // a parked session: it begins TLS after the restarts
	a.metric(`ambassador_sessions_active{listener="in"}`, 2)
	half := opened(t, a.addr("front"), "sum")
	half.CloseWrite()
	pingedAll(t, conns, "before\n")
	over := opened(t, a.addr("front"), "echo")
	if err := pinged(over, "x"); err != nil {
		t.Fatal(err)
	}
	over.CloseWrite()
	io.Copy(io.Discard, over)
	ended := a.endsAs(over, "relay", "closed")
	for i := range 3 {
		before := a.counters()
		a.leave()
		if n := k.holds(); n != 1 {
			t.Fatalf("%d descriptors are kept, want 1", n)
		}
		waiting, err := net.Dial("tcp", places["front"]) // its connection waits in the socket that is kept
		if err != nil {
			t.Fatalf("between two processes: %v", err)
		}
		defer waiting.Close()
		fmt.Fprintln(waiting, "echo")
		a = k.start("", "run", "-c", file)
		for name, addr := range places {
			if got := a.addr(name); got != addr {
				t.Errorf("%s listens at %s, and did at %s", name, got, addr)
			}
		}
		if err := pinged(waiting, "waited\n"); err != nil {
			t.Error(err)
		}
		a.notLess(before)
		pingedAll(t, conns, fmt.Sprintf("after restart %d\n", i))
		if err := eventually(patience, func() error {
			if n := k.holds(); n != 0 {
				return fmt.Errorf("%d descriptors are still kept", n)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		a.metric(`ambassador_upgrade_sessions_total{result="carried"}`, float64((i+1)*6))
	}
	late := tls.Client(silent, &tls.Config{InsecureSkipVerify: true})
	late.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(late, "echo\n"); err != nil {
		t.Error(err)
	} else if err := pinged(late, "at last\n"); err != nil {
		t.Error(err)
	}
	late.Close()
	close(answer)
	half.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(half); err != nil || len(got) != 65 {
		t.Errorf("the late answer is %q, %v", got, err)
	}
	if out, code := a.ask("why", ended.ID); code != 0 || !strings.Contains(out, ended.ID) {
		t.Errorf("why does not know a session from before: %q", out)
	}
	for _, c := range conns {
		c.(duplex).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Error(err)
		}
	}
	a.signal(syscall.SIGTERM)
	a.ended(0)
	if n := k.holds(); n != 0 {
		t.Errorf("after a stop %d descriptors are kept", n)
	}
}

// TestStoreRefuses proves that sessions are drained, and not cut, if they cannot be left:
// the service manager keeps nothing, the next program refuses the configuration, or there
// is no service manager at all.
func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	drained := func(a *ambassador, c net.Conn, why string) {
		t.Helper()
		a.signal(syscall.SIGUSR2)
		c.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
			t.Errorf("%s: the session ends with %q, %v; want a drain", why, got, err)
		}
		a.ended(0)
		a.await(`"sessions cannot be left to the next process, and are drained".*` + why)
	}
	file := echoes(t, "drain: {timeout: 3s}")
	a := newKeeper(t, 0).start("", "run", "-c", file)
	drained(a, a.sessionsOf(1)[0], "FileDescriptorStoreMax")

	k := newKeeper(t, 4)
	a = k.start("", "run", "-c", file)
	c := a.sessionsOf(1)[0]
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(file, append(good, "\nnonsense: true\n"...), 0o600)
	drained(a, c, "nonsense")
	if n := k.holds(); n != 0 {
		t.Errorf("%d descriptors are kept", n)
	}
	os.WriteFile(file, good, 0o600)

	a = start(t, "run", "-c", file)
	c = a.sessionsOf(1)[0]
	a.signal(syscall.SIGUSR2)
	a.await("signal ignored")
	if err := pinged(c, "still here\n"); err != nil {
		t.Error(err)
	}
}

// TestStoreLost proves that sessions which the next process cannot take over end with a
// reset and are counted, and that it begins anew: a state of another version.
func TestStoreLost(t *testing.T) {
	t.Parallel()
	file := echoes(t, "")
	k := newKeeper(t, 4)
	a := k.start("", "run", "-c", file)
	conns := a.sessionsOf(7)
	a.leave()
	k.spoil()
	a = k.start("", "run", "-c", file)
	resets(t, conns)
	a.metric(`ambassador_upgrade_sessions_total{result="ended"}`, 7)
	a.await(`"sessions of the process before have ended with a reset","sessions":7,.*version 99`)
	if out, code := a.ask("status"); code != 0 || !strings.Contains(out, "7 sessions of the process before") {
		t.Errorf("status says %q", out)
	}
	if n := k.holds(); n != 0 {
		t.Errorf("%d descriptors are kept", n)
	}
	pingedAll(t, a.sessionsOf(1), "a new session\n")
}

// spoil replaces the state that is kept by one of another version.
func (k *keeper) spoil() {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	text, rights := make([]byte, 1024), make([]byte, 4096)
	n, m, _, _, err := unix.Recvmsg(k.kept[0], text, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		k.t.Fatal(err)
	}
	messages, _ := unix.ParseSocketControlMessage(rights[:m])
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		k.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "state")
	defer f.Close()
	state, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil || len(state) < 100 {
		k.t.Fatalf("a state of %d bytes, %v", len(state), err)
	}
	state[len("ambassador carry")+3] = 99
	other, err := unix.MemfdCreate("other", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		k.t.Fatal(err)
	}
	o := os.NewFile(uintptr(other), "other")
	defer o.Close()
	if _, err := o.Write(state); err != nil {
		k.t.Fatal(err)
	}
	if _, err := unix.FcntlInt(o.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		k.t.Fatal(err)
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Sendmsg(p[0], text[:n], unix.UnixRights(append([]int{int(o.Fd())}, fds[1:]...)...), nil, 0)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	unix.Close(p[0])
	for _, fd := range fds[1:] {
		unix.Close(fd)
	}
	unix.Close(k.kept[0])
	k.kept[0] = p[1]
}

// TestStoreLimit proves that a process with a lower limit of descriptors takes as many
// sessions over as it can; the others end with a reset, and are counted.
func TestStoreLimit(t *testing.T) {
	t.Parallel()
	const sessions = 200
	file := echoes(t, "")
	k := newKeeper(t, 4)
	a := k.start("", "run", "-c", file)
	conns := a.sessionsOf(sessions)
	before := a.counters()
	a.leave()
	a = k.start("ulimit -n 400", "run", "-c", file)
	carried := 0
	for _, c := range conns {
		switch err := pinged(c, "after\n"); {
		case err == nil:
			carried++
		case !errors.Is(err, syscall.ECONNRESET):
			t.Errorf("a session ends with %v, want a reset", err)
		}
	}
	if carried < 50 || carried > 150 {
		t.Errorf("%d of %d sessions go on", carried, sessions)
	}
	a.metric(`ambassador_upgrade_sessions_total{result="carried"}`, float64(carried))
	a.metric(`ambassador_upgrade_sessions_total{result="ended"}`, float64(sessions-carried))
	a.metric(`ambassador_sessions_total{reason=shutdown}`, float64(sessions-carried))
	a.notLess(before)
}

// TestStoreAbandoned proves that sessions end with a reset if the next process does not
// live to take them over, or refuses its configuration, or if there is none.
func TestStoreAbandoned(t *testing.T) {
	t.Parallel()
	file := echoes(t, "")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, next := range map[string]func(k *keeper){
		"broken configuration": func(k *keeper) {
			os.WriteFile(file, append(good, "\nnonsense: true\n"...), 0o600)
			a := k.start("", "run", "-c", file)
			a.ended(2)
			if log := a.stderr.String(); !strings.Contains(log, "5 sessions of the process before end with a reset") {
				t.Errorf("it says %q", log)
			}
			os.WriteFile(file, good, 0o600)
		},
		"killed":  func(k *keeper) { k.start("kill -9 $$").ended(128 + 9); k.drop() },
		"no next": func(k *keeper) { k.drop() },
	} {
		k := newKeeper(t, 4)
		a := k.start("", "run", "-c", file)
		conns := a.sessionsOf(5)
		a.leave()
		next(k)
		t.Log(what)
		resets(t, conns)
	}
}
