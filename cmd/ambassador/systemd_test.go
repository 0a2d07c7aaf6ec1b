package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

// manager receives messages as a service manager does.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(cmdtest.ShortDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &manager{t, conn, path}
}

// await reads messages until one matches want. A message that matches never before that
// is an error.
func (m *manager) await(want, never string) string {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(cmdtest.Patience))
	buf := make([]byte, 8192)
	for {
		n, err := m.conn.Read(buf)
		if err != nil {
			m.t.Fatalf("%s was never told: %v", want, err)
		}
		text := string(buf[:n])
		if regexp.MustCompile(want).MatchString(text) {
			return text
		}
		if never != "" && regexp.MustCompile(never).MatchString(text) {
			m.t.Errorf("before %s it was told %q", want, text)
		}
	}
}

// startSelf runs the test binary as an ambassador in a process of its own.
func startSelf(t *testing.T, cmd *exec.Cmd) (out, log *cmdtest.Output) {
	t.Helper()
	out, log = cmdtest.NewOutput(), cmdtest.NewOutput()
	cmd.Stdout, cmd.Stderr = out, log
	cmd.Env = append(cmd.Environ(), cmdtest.As+"=ambassador", "RUNTIME_DIRECTORY="+cmdtest.ShortDir(t))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("stdout:\n%s\nstderr:\n%s", out, log)
		}
	})
	return out, log
}

func TestServiceManagerIsTold(t *testing.T) {
	m := newManager(t)
	dead := cmdtest.Nobody(t)
	cfgPath := cmdtest.WriteConfig(t, strings.Replace(cmdtest.OneListener(dead), "required: false", "required: true", 1))
	cmd := exec.Command(cmdtest.Self(t), "run", "-c", cfgPath)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=400000")
	out, _ := startSelf(t, cmd)
	if text := m.await("READY=1", "STOPPING|RELOADING"); !strings.Contains(text, "STATUS=not ready: upstream up: ") {
		t.Errorf("at start it is told %q, want what we wait for", text)
	}
	out.Await(t, "listening front") // printed before READY=1, or at the same time
	m.await("WATCHDOG=1", "STOPPING|RELOADING")
	ln, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmdtest.ServeEcho(ln, "late")
	m.await("STATUS=ready", "READY=|STOPPING|RELOADING")
	cmd.Process.Signal(syscall.SIGHUP)
	m.await(`^RELOADING=1\nMONOTONIC_USEC=\d+$`, "READY=1|STOPPING")
	m.await("READY=1", "STOPPING")
	cmd.Process.Signal(syscall.SIGTERM)
	m.await("STOPPING=1", "READY=1|RELOADING")
	if err := cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}

func TestSocketsOfTheServiceManager(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cfgPath := cmdtest.WriteConfig(t, strings.Replace(cmdtest.OneListener(cmdtest.NamedEcho(t, "one")), `"127.0.0.1:0"`, "systemd:front.socket", 1))
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=front.socket exec "$0" run -c "$1" -- sh -c 'echo "LISTEN_FDS=$LISTEN_FDS NOTIFY_SOCKET=$NOTIFY_SOCKET"; read line'`, cmdtest.Self(t), cfgPath)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=/absent", "WATCHDOG_USEC=1000000")
	cmd.ExtraFiles = []*os.File{file}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, log := startSelf(t, cmd)
	if got := log.Await(t, `listening front (\S+)\n`)[1]; got != ln.Addr().String() {
		t.Errorf("listening front %s, want %s", got, ln.Addr())
	}
	cmdtest.Says(t, cmdtest.DialPrinted(t, ln.Addr().String()), "hello", "one: hello")
	if got := out.Await(t, ".*\n")[0]; got != "LISTEN_FDS= NOTIFY_SOCKET=\n" {
		t.Errorf("COMMAND was given what is ours: %s", got)
	}
	stdin.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("`read` at the end of its input fails, and we did not")
	}
}
