package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onTerminal runs cmd with a terminal for all its streams and returns what it shows. The
// variables replace those of the test that describe a terminal.
func onTerminal(t testing.TB, cmd *exec.Cmd, variables ...string) (*ambassador, *output) {
	t.Helper()
	master, slave := openTerminal(t)
	screen := newOutput()
	read := make(chan struct{})
	go func() { // ends when no process has the terminal open; awaited below
		defer close(read)
		io.Copy(screen, master) // ends in EIO
	}()
	dir := shortDir(t)
	cmd.Env = append(cmd.Environ(), "RUNTIME_DIRECTORY="+dir, "TMPDIR="+dir, "NO_COLOR=", "TERM=xterm", "LC_ALL=C.UTF-8")
	cmd.Env = append(cmd.Env, variables...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	p := &process{cmd: cmd, stdout: screen, stderr: screen, exited: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	go func() { // end waits for it
		p.err = cmd.Wait()
		<-read
		close(p.exited)
	}()
	a := &ambassador{p, t}
	t.Cleanup(func() {
		a.finish()
		master.Close()
	})
	return a, screen
}

// openTerminal makes a pseudo terminal that passes bytes on as they are.
func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		missing(t, "a pseudo terminal: "+err.Error())
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		missing(t, "a pseudo terminal: "+err.Error())
	}
	mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Oflag &^= unix.OPOST // no \r before \n
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// untrusting is a forward whose CA did not issue the certificate of its server.
func untrusting(t testing.TB, more ...string) *exec.Cmd {
	t.Helper()
	keys := newPKI(t)
	s, err := serve(keys.mtls(t), func(_ *server, c duplex) { io.Copy(c, c) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return exec.Command(binary, append([]string{"forward", "--listen", "127.0.0.1:0", "--to", s.addr, "--server-name", "localhost", "--ca", keys.file("other.crt")}, more...)...)
}

// portOf is the client's port of a connection to a.
func portOf(c net.Conn) string {
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	return port
}

// TestTerminalShowsAFailure proves that a person reads one line about a failed session, and
// that the command in it answers.
func TestTerminalShowsAFailure(t *testing.T) {
	t.Parallel()
	a, screen := onTerminal(t, untrusting(t))
	c := a.connect("forward")
	io.Copy(io.Discard, c)
	m := a.await(`(?m)^\x1b\[2m\d\d:\d\d:\d\d\x1b\[0m \x1b\[31m✗\x1b\[0m forward 127\.0\.0\.1:(\d+) → 127\.0\.0\.1:\d+  \x1b\[31mupstream_tls\x1b\[0m: (.*)\x1b\[2m  \(why (\d+)\)\x1b\[0m$`)
	if m[1] != portOf(c) || m[3] != m[1] || !strings.Contains(m[2], "integration CA") {
		t.Errorf("the line of client %s is %q", portOf(c), m[0])
	}
	why := exec.Command(binary, "why", m[3])
	why.Env = a.cmd.Env
	answer, err := why.CombinedOutput()
	if text := string(answer); err != nil || !strings.Contains(text, "upstream_tls, in stage tls") || !strings.Contains(text, m[2]) {
		t.Errorf("why %s: %v\n%s", m[3], err, text)
	}
	if text := screen.String(); strings.Count(text, "\n") > 5 || strings.Contains(text, "level=") {
		t.Errorf("the terminal shows\n%s", text)
	}
}

// TestTerminalWithoutColor proves that NO_COLOR, TERM=dumb and a locale without UTF-8 are
// respected.
func TestTerminalWithoutColor(t *testing.T) {
	t.Parallel()
	for variable, want := range map[string]string{"NO_COLOR=1": "✗ .* → ", "TERM=dumb": "✗ .* → ", "LC_ALL=C": "x\x1b.* -> "} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			a, screen := onTerminal(t, untrusting(t), variable)
			io.Copy(io.Discard, a.connect("forward"))
			a.await(`(?m)` + want + `.*\(why \d+\)`)
			a.signal(os.Interrupt)
			a.ended(0)
			text := screen.String()
			if strings.Contains(want, "\x1b") {
				if strings.ContainsFunc(text, func(r rune) bool { return r > '~' }) {
					t.Errorf("not ASCII: %q", text)
				}
			} else if strings.ContainsRune(text, '\x1b') {
				t.Errorf("an escape sequence in %q", text)
			}
		})
	}
}

// TestTerminalFoldsFailures proves that repetitions are counted, and that the count is shown
// at the end.
func TestTerminalFoldsFailures(t *testing.T) {
	t.Parallel()
	a, screen := onTerminal(t, untrusting(t), "NO_COLOR=1")
	var last string
	for range 4 {
		c := a.connect("forward")
		last = portOf(c)
		io.Copy(io.Discard, c)
	}
	a.metric(`ambassador_sessions_total{reason="upstream_tls"}`, 4)
	a.signal(os.Interrupt)
	a.ended(0)
	text, counted := screen.String(), 0
	// On a busy machine the four take longer than a count waits, and there are two counts.
	for _, m := range regexp.MustCompile(`(?m)^\S+ … (\d+) more(?: of these)? in \d+ s \(last: why \d+\)`).FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(m[1])
		counted += n
	}
	if n := strings.Count(text, "✗"); n+counted != 4 || counted == 0 || !strings.Contains(text, "why "+last+")") {
		t.Errorf("after 4 failures, the last of client %s, the terminal shows\n%s", last, text)
	}
}

// TestTerminalAndEvilServer proves that what a server says cannot control the terminal.
func TestTerminalAndEvilServer(t *testing.T) {
	t.Parallel()
	s, err := serve(nil, func(_ *server, c duplex) {
		text := "\xff\x10\x04\x1b]0;owned\a\x1b[2J\x9b31m\r\n" // error 1040 in the place of a greeting
		io.WriteString(c, string([]byte{byte(len(text)), 0, 0, 0})+text)
		io.Copy(io.Discard, c)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	a, screen := onTerminal(t, exec.Command(binary, "forward", "--listen", "127.0.0.1:0", "--to", s.addr, "--starttls", "mysql"), "NO_COLOR=1")
	io.Copy(io.Discard, a.connect("forward"))
	a.await(`(?m)✗ .*owned.*\(why \d+\)$`)
	if text := screen.String(); strings.ContainsAny(text, "\x1b\a\r") || strings.Contains(text, "\x9b") {
		t.Errorf("the terminal was sent %q", text)
	}
}

// TestLogOfAPipe proves that what is no terminal gets JSON, or what is configured, and every
// failure.
func TestLogOfAPipe(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{"": `(?m)^{"time":".*,"msg":"session".*"reason":"upstream_tls"`, "auto": `(?m)^{"time":".*"reason":"upstream_tls"`,
		"json": `(?m)^{"time":".*"reason":"upstream_tls"`, "text": `(?m)^time=\S+T\S+ level=WARN msg=session id=.* reason=upstream_tls`} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			var more []string
			if format != "" {
				more = []string{"--log-format", format}
			}
			a := startCmd(t, untrusting(t, more...))
			for range 3 {
				io.Copy(io.Discard, a.connect("forward"))
			}
			re := regexp.MustCompile(want)
			if err := eventually(10*time.Second, func() error {
				if n := len(re.FindAllString(a.stderr.String(), -1)); n != 3 {
					return fmt.Errorf("%d lines match %q, want 3", n, want)
				}
				return nil
			}); err != nil {
				t.Errorf("%v:\n%s", err, a.stderr)
			}
		})
	}
}
