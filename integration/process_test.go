package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// output is what a process has printed on one stream so far.
type output struct {
	mu   sync.Mutex
	text []byte        // guarded by mu
	more chan struct{} // guarded by mu; closed at the next write
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	close(o.more)
	o.more = make(chan struct{})
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// len is where the text ends now, for awaiting what comes after.
func (o *output) len() int { return len(o.String()) }

// awaitAfter waits until re matches what was printed after the first from
// bytes, and returns the submatches. It gives up when end is closed and nothing
// more can come.
func (o *output) awaitAfter(from int, re *regexp.Regexp, within time.Duration, end <-chan struct{}) ([]string, error) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for over := false; ; {
		o.mu.Lock()
		m, more := re.FindStringSubmatch(string(o.text[from:])), o.more
		o.mu.Unlock()
		switch {
		case m != nil:
			return m, nil
		case over:
			return nil, fmt.Errorf("the process ended and never printed %q", re)
		}
		select {
		case <-more:
		case <-end:
			over = true
		case <-timer.C:
			return nil, fmt.Errorf("%q was not printed within %v", re, within)
		}
	}
}

// process is one program that a test started.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *output
	stdin          io.WriteCloser // nil unless asked for
	exited         chan struct{}  // closed when the process is gone and its output complete
	err            error          // Wait's; readable once exited is closed
}

// launch starts cmd and collects what it prints.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, stdout: newOutput(), stderr: newOutput(), exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	// A grandchild that keeps the pipes open must not hold a test for ever.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go p.wait() // end and exit wait for it
	return p, nil
}

func (p *process) wait() {
	p.err = p.cmd.Wait()
	close(p.exited)
}

// running says whether the process has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// exit waits for the end and returns the exit code, 128+N after signal N.
func (p *process) exit(within time.Duration) (int, error) {
	select {
	case <-p.exited:
	case <-time.After(within):
		return 0, fmt.Errorf("%s did not end within %v", p.name(), within)
	}
	if p.err != nil && p.cmd.ProcessState == nil {
		return 0, p.err
	}
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

func (p *process) name() string { return filepath.Base(p.cmd.Path) }

func (p *process) signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// end makes sure that the process is gone, by SIGTERM first, and fails the test for
// output that no program under test may ever print.
func (p *process) end() error {
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGKILL} {
		if !p.running() {
			break
		}
		p.signal(s)
		p.exit(3 * time.Second)
	}
	if m := disgrace.FindString(p.stderr.String()); m != "" {
		return fmt.Errorf("%s printed %q:\n%s", p.name(), m, p.stderr)
	}
	return nil
}

// disgrace matches a crash or a race in a log.
var disgrace = regexp.MustCompile(`(?m)^panic: .*|^fatal error: .*|WARNING: DATA RACE|"msg":"panic"|msg=panic |"reason":"internal"`)

// listening waits for the line "listening NAME ADDR", which is on stdout, or on
// stderr where stdout belongs to a command.
func (p *process) listening(name string) (string, error) {
	re := regexp.MustCompile(`(?m)^listening ` + regexp.QuoteMeta(name) + ` (\S+)$`)
	if m := re.FindStringSubmatch(p.stdout.String()); m != nil { // as most times: nobody is left to read a long log again and again
		return m[1], nil
	}
	type found struct {
		m   []string
		err error
	}
	results := make(chan found, 2)
	for _, o := range []*output{p.stdout, p.stderr} {
		go func() { // ends by awaitAfter's bound; the channel has room for both
			m, err := o.awaitAfter(0, re, patience, p.exited)
			results <- found{m, err}
		}()
	}
	var err error
	for range 2 {
		r := <-results
		if r.err == nil {
			return r.m[1], nil
		}
		err = r.err
	}
	return "", fmt.Errorf("%w; its stderr:\n%s", err, p.stderr)
}

// ambassador is a running ambassador in a Go test.
type ambassador struct {
	*process
	t testing.TB
}

// start runs the binary with args and with folders of its own, until the end of
// the test.
func start(t testing.TB, args ...string) *ambassador {
	t.Helper()
	return startCmd(t, exec.Command(binary, args...))
}

// startCmd is start for a command line that ends in the ambassador.
func startCmd(t testing.TB, cmd *exec.Cmd) *ambassador {
	t.Helper()
	dir := shortDir(t)
	cmd.Env = append(cmd.Environ(), "RUNTIME_DIRECTORY="+dir, "TMPDIR="+dir, "GORACE=halt_on_error=1")
	p, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	a := &ambassador{p, t}
	t.Cleanup(a.finish)
	return a
}

func (a *ambassador) finish() {
	if err := a.end(); err != nil {
		a.t.Error(err)
	}
	if a.t.Failed() {
		a.t.Logf("%s\nstdout:\n%s\nstderr:\n%s", strings.Join(a.cmd.Args, " "), a.stdout, tail(a.stderr.String(), 16<<10))
	}
}

// tail is the last n bytes of a text.
func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// shortDir is a new folder with a name short enough for unix sockets (sun_path
// has 108 bytes, and t.TempDir's name holds the test's).
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "amb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// addr is where the listener called name is bound.
func (a *ambassador) addr(name string) string {
	a.t.Helper()
	addr, err := a.listening(name)
	if err != nil {
		a.t.Fatal(err)
	}
	return addr
}

// await waits for a line in the log.
func (a *ambassador) await(re string) []string {
	a.t.Helper()
	return a.awaitAfter(0, re)
}

// awaitAfter waits for a line in the log after its first from bytes.
func (a *ambassador) awaitAfter(from int, re string) []string {
	a.t.Helper()
	m, err := a.stderr.awaitAfter(from, regexp.MustCompile(re), patience, a.exited)
	if err != nil {
		a.t.Fatalf("%v; the log:\n%s", err, tail(a.stderr.String(), 16<<10))
	}
	return m
}

// ended checks how the process ends.
func (a *ambassador) ended(code int) {
	a.t.Helper()
	got, err := a.exit(patience)
	if err != nil {
		a.t.Fatal(err)
	}
	if got != code {
		a.t.Errorf("exit code = %d, want %d", got, code)
	}
}

// ask runs one of the client commands against this process.
func (a *ambassador) ask(args ...string) (stdout string, code int) {
	a.t.Helper()
	stdout, stderr, code, err := ask(a.process, args...)
	if err != nil {
		a.t.Fatal(err)
	}
	if code != 0 {
		a.t.Logf("ambassador %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout, code
}

// ask runs `ambassador COMMAND --admin ADDR ARGS`.
func ask(p *process, args ...string) (stdout, stderr string, code int, err error) {
	admin, err := p.listening("admin")
	if err != nil {
		return "", "", 0, err
	}
	line := append([]string{args[0], "--admin", admin}, args[1:]...)
	q, err := launch(exec.Command(binary, line...))
	if err != nil {
		return "", "", 0, err
	}
	code, err = q.exit(patience)
	if err != nil {
		q.signal(os.Kill)
	}
	return q.stdout.String(), q.stderr.String(), code, err
}

// get fetches a path of the admin API.
func get(p *process, path string) (body string, status int, err error) {
	return request(p, http.MethodGet, path)
}

// request asks the admin API without a body.
func request(p *process, method, path string) (body string, status int, err error) {
	admin, err := p.listening("admin")
	if err != nil {
		return "", 0, err
	}
	return requestAt(admin, method, path)
}

// requestAt asks the HTTP server at an address as it is printed.
func requestAt(addr, method, path string) (body string, status int, err error) {
	req, err := http.NewRequest(method, "http://localhost"+path, nil)
	if err != nil {
		return "", 0, err
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, addr)
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	_, err = text.ReadFrom(resp.Body)
	return text.String(), resp.StatusCode, err
}

// dial connects to an address as the ambassador prints it.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return dialTCP(addr)
}

// dialTCP connects as programs do, with a blocking connect. Go's own takes for a
// failure to connect what was a connection that has been reset at once.
func dialTCP(addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), addr)
	defer file.Close()
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(file)
}

// sample adds up the series of a metric that have all the given labels.
func sample(p *process, selector string) (float64, error) {
	name, labels, err := parseSelector(selector)
	if err != nil {
		return 0, err
	}
	text, status, err := get(p, "/metrics")
	if err != nil || status != http.StatusOK {
		return 0, errors.Join(err, fmt.Errorf("GET /metrics: status %d", status))
	}
	return sum(text, name, labels), nil
}

var selectorForm = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})?$`)

// parseSelector reads name{label=value,…}; values may be quoted.
func parseSelector(s string) (name string, labels []string, err error) {
	m := selectorForm.FindStringSubmatch(s)
	if m == nil {
		return "", nil, fmt.Errorf("%q is not name{label=value,…}", s)
	}
	for l := range strings.SplitSeq(m[2], ",") {
		if k, v, ok := strings.Cut(l, "="); ok {
			labels = append(labels, k+`="`+strings.Trim(v, `"`)+`"`)
		}
	}
	return m[1], labels, nil
}

// sum adds up the matching lines of a metrics page.
func sum(text, name string, labels []string) float64 {
	var total float64
line:
	for l := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(l), " ")
		rest, found := strings.CutPrefix(series, name)
		if !ok || !found || rest != "" && rest[0] != '{' {
			continue
		}
		have := strings.Split(strings.Trim(rest, "{}"), ",")
		for _, want := range labels {
			if !slices.Contains(have, want) {
				continue line
			}
		}
		v, _ := strconv.ParseFloat(value, 64)
		total += v
	}
	return total
}

// eventually asks until the answer is nil. What it asks about is another
// process, which has no channel to wait on; where there is a line to wait for,
// wait for that.
func eventually(within time.Duration, ask func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(within)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-end:
			return fmt.Errorf("after %v: %w", within, err)
		}
	}
}

// awaitMetric waits until a metric is at least want.
func awaitMetric(p *process, selector string, want float64) error {
	return eventually(patience, func() error {
		got, err := sample(p, selector)
		if err == nil && got < want {
			err = fmt.Errorf("%s = %v, want at least %v", selector, got, want)
		}
		return err
	})
}

// metric waits until a metric is at least want.
func (a *ambassador) metric(selector string, want float64) {
	a.t.Helper()
	if err := awaitMetric(a.process, selector, want); err != nil {
		a.t.Fatal(err)
	}
}

// connect opens a connection to a listener of the ambassador.
func (a *ambassador) connect(listener string) net.Conn {
	a.t.Helper()
	c, err := dial(a.t.Context(), a.addr(listener))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c
}
