package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// commandConfig has two listeners before an upstream at addr.
func commandConfig(t testing.TB, addr string) string {
	t.Helper()
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
admin: {listen: ""}
listeners:
  orders-db: {listen: "127.0.0.1:0", upstream: up}
  cache: {listen: "unix:c.sock", upstream: up}
upstreams:
  up: {endpoints: [%q]}
`, addr))
}

// TestCommandThatNeverRan proves that a COMMAND that was not started is no success: a
// signal is 128+N, and waiting has a bound; both say what was missing.
func TestCommandThatNeverRan(t *testing.T) {
	t.Parallel()
	need(t, "true")
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	config := commandConfig(t, "127.0.0.1:"+port)
	for signal, code := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130, syscall.SIGQUIT: 131} {
		a := start(t, "run", "-c", config, "--", "true")
		a.await("listening cache")
		a.await("upstream not reached yet")
		a.signal(syscall.SIGUSR1) // for COMMAND, which is not there yet
		a.signal(signal)
		a.ended(code)
		a.await(`ambassador: COMMAND was not started: .*: upstream up: not reached yet; .*refused`)
	}
	a := start(t, "run", "-c", config, "--wait-timeout", "1s", "--", "true")
	a.ended(1)
	a.await(`ambassador: COMMAND was not started: not ready within 1s:\n  upstream up: not reached yet; .*refused`)
}

// TestCommandAsProcess1 proves that the ambassador does what a container needs of its
// process 1: it waits for orphans, and passes on the signals that it has no use for.
// COMMAND finds the listeners in its environment.
func TestCommandAsProcess1(t *testing.T) {
	t.Parallel()
	need(t, "unshare", "sh", "nc.openbsd")
	needRoot(t, "unshare --pid")
	srv := startServer(t, nil, echoLines)
	script := `trap 'echo got QUIT' QUIT; trap 'echo got USR1' USR1; trap 'echo got USR2' USR2; trap 'echo got WINCH' WINCH; trap 'echo got TERM; exit 5' TERM
echo "variables $AMBASSADOR_LISTENER_ORDERS_DB $AMBASSADOR_LISTENER_CACHE"
echo through | nc.openbsd -N ${AMBASSADOR_LISTENER_ORDERS_DB%:*} ${AMBASSADOR_LISTENER_ORDERS_DB##*:}
for i in 1 2 3; do (sleep 1000 &); done
echo up
while :; do sleep 0.1; done`
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", binary, "run", "-c", commandConfig(t, srv.addr), "--", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "AMBASSADOR_LISTENER_CACHE=of an outer one")
	a := startCmd(t, cmd)
	within := func(re string) []string {
		t.Helper()
		m, err := a.stdout.awaitAfter(0, regexp.MustCompile(re), patience, a.exited)
		if err != nil {
			t.Fatalf("%v; it printed:\n%s", err, a.stdout)
		}
		return m
	}
	addr, socket := a.await(`listening orders-db (\S+)`)[1], a.await(`listening cache (\S+)`)[1]
	if got := within(`variables (.*)\n`)[1]; got != addr+" "+socket {
		t.Errorf("COMMAND has the addresses %q, want %q", got, addr+" "+socket)
	}
	within("(?m)^through$")
	within("(?m)^up$")
	one := awaitChildren(t, a.cmd.Process.Pid, 1)[0]
	awaitChildren(t, one, 4) // COMMAND is one of them
	if err := eventually(patience, func() error {
		children := childrenOf(one)
		for _, orphan := range children { // one may be a shell still
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", orphan)); string(name) == "sleep\n" {
				syscall.Kill(orphan, syscall.SIGKILL)
			}
		}
		if len(children) != 1 {
			return fmt.Errorf("process %d has the children %v", one, children)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for signal, name := range map[syscall.Signal]string{syscall.SIGQUIT: "QUIT", syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2", syscall.SIGWINCH: "WINCH"} {
		if err := syscall.Kill(one, signal); err != nil {
			t.Fatal(err)
		}
		within("got " + name)
	}
	if err := syscall.Kill(one, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	within("got TERM")
	a.ended(5)
}

// awaitChildren waits until a process has n children, zombies included, and returns them.
func awaitChildren(t testing.TB, pid, n int) (children []int) {
	t.Helper()
	err := eventually(patience, func() error {
		if children = childrenOf(pid); len(children) != n {
			return fmt.Errorf("process %d has the children %v, want %d", pid, children, n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return children
}

// TestSchedulingPolicy proves that all our threads have SCHED_BATCH, also after an upgrade,
// and that COMMAND has the policy that we were started with.
func TestSchedulingPolicy(t *testing.T) {
	onlyLinux(t)
	t.Parallel()
	srv := startServer(t, nil, echoLines)
	a := start(t, "run", "-c", commandConfig(t, srv.addr), "--", "sleep", "1000")
	a.await("COMMAND is started") // a thread has our first policy until then
	for _, child := range awaitChildren(t, a.cmd.Process.Pid, 1) {
		wantPolicy(t, child, 0)
	}
	wantPolicy(t, a.cmd.Process.Pid, 3)
	a = start(t, "forward", "--plain", "--listen", "127.0.0.1:0", "--to", srv.addr)
	c := a.connect("forward")
	line(t, c, "before")
	a.upgrade()
	line(t, c, "after")
	wantPolicy(t, a.cmd.Process.Pid, 3)
}

// wantPolicy asserts the scheduling policy (sched(7)) of each thread of a process.
func wantPolicy(t testing.TB, pid, want int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ") // what follows is the third field
		if fields := strings.Fields(rest); len(fields) < 39 || fields[38] != fmt.Sprint(want) {
			t.Errorf("%s: want the policy %d in the 41st field of %s", thread, want, text)
		}
	}
}
