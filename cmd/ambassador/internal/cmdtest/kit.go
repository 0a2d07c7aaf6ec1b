package cmdtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"

	"ambassador/certs/embedded"
	"ambassador/certs/files"
)

// Patience bounds every wait of a test for something that should happen at once.
const Patience = 30 * time.Second

// Output is what a process, or a part of this one, has printed so far.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer  // guarded by mu
	more chan struct{} // guarded by mu; closed at the next write
}

// NewOutput is an output with nothing in it.
func NewOutput() *Output { return &Output{more: make(chan struct{})} }

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Await waits for a match and gives its submatches.
func (o *Output) Await(t *testing.T, re string) []string {
	t.Helper()
	end := time.After(Patience)
	for {
		o.mu.Lock()
		m, more := regexp.MustCompile(re).FindStringSubmatch(o.text.String()), o.more
		o.mu.Unlock()
		if m != nil {
			return m
		}
		select {
		case <-more:
		case <-end:
			t.Fatalf("%q was never printed:\n%s", re, o)
		}
	}
}

// WriteConfig writes a configuration and gives its path.
func WriteConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ambassador.yaml")
	WriteFile(t, path, text)
	return path
}

// WriteFile writes a file that its owner alone may read.
func WriteFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// OneListener is a configuration with the listener "front" before an upstream.
func OneListener(upstream string, more ...string) string {
	return fmt.Sprintf(`
drain: {timeout: 20s}
listeners:
  front: {listen: "127.0.0.1:0", upstream: up}
upstreams:
  up: {endpoints: [%q], required: false, health: {interval: 0s}}
%s
`, upstream, strings.Join(more, "\n"))
}

// Nobody is an address without a listener.
func Nobody(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Occupied is an address on which somebody else listens.
func Occupied(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

// Self is the test binary.
func Self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// ShortDir is a folder whose path leaves room for a socket's name.
func ShortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "amb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// AskHandler asks a handler without a connection.
func AskHandler(h http.Handler, method, target string, edit ...func(*http.Request)) (status int, body string) {
	r := httptest.NewRequest(method, target, nil)
	for _, f := range edit {
		f(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// Pairs issues identities into files of a folder.
type Pairs struct {
	t      *testing.T
	CA     *embedded.CA
	Folder string
}

// NewPairs makes a CA and an empty folder.
func NewPairs(t *testing.T) *Pairs {
	t.Helper()
	ca, err := embedded.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Close)
	return &Pairs{t, ca, t.TempDir()}
}

// Issue writes a new pair under a name; the old one of that name is replaced.
func (p *Pairs) Issue(name string) files.Files {
	p.t.Helper()
	cert, key, err := p.CA.IssuePEM(p.t.Context(), []string{name}, time.Hour)
	if err != nil {
		p.t.Fatal(err)
	}
	f := files.Files{Cert: filepath.Join(p.Folder, name+".crt"), Key: filepath.Join(p.Folder, name+".key")}
	WriteFile(p.t, f.Key, string(key))
	WriteFile(p.t, f.Cert, string(cert))
	return f
}

// Htpasswd is the line of a user, with a password that is cheap to check.
func Htpasswd(t *testing.T, user, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return user + ":" + string(hash) + "\n"
}

// DialPrinted connects to an address as it was printed.
func DialPrinted(t *testing.T, addr string) net.Conn {
	t.Helper()
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	c, err := net.DialTimeout(network, addr, Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(Patience))
	return c
}

// AskPrinted asks an HTTP server at an address as it was printed.
func AskPrinted(addr, method, path string) (body string, status int, err error) {
	client := http.Client{Timeout: Patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if path, ok := strings.CutPrefix(addr, "unix:"); ok {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}}}
	req, err := http.NewRequest(method, "http://localhost"+path, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), resp.StatusCode, err
}

// NamedEcho is a service that says its name before each line that it echoes.
func NamedEcho(t *testing.T, name string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	ServeEcho(ln, name)
	return ln.Addr().String()
}

// ServeEcho serves what NamedEcho does on a listener.
func ServeEcho(ln net.Listener, name string) {
	go func() { // ends with ln, and each connection with its client
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s: %s\n", name, lines.Text())
				}
			}()
		}
	}()
}

// Says sends a line and checks the line that comes back.
func Says(t *testing.T, c net.Conn, line, want string) {
	t.Helper()
	fmt.Fprintln(c, line)
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || got != want+"\n" {
		t.Fatalf("%q was answered with %q, %v; want %q", line, got, err, want)
	}
}

// Evil has one of each kind that may not reach a terminal.
const Evil = "a\x1b]0;b\a\r\nmsg=c\t\x00\x7f\u0085\u009b31m\u00ad\u061c\u200b\u200e\u202e\u2028\u2029\u2066\ufeff\U000e0041\xff"

// MustBeVisible fails if a text has something that cannot be seen, or a line that
// begins with a part of evil.
func MustBeVisible(t *testing.T, what, text string) {
	t.Helper()
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "msg=c") {
			t.Errorf("%s: a line was made of a text: %q", what, text)
		}
		OnlyVisible(t, what, line)
	}
}

// OnlyVisible fails if a line has a character that cannot be seen.
func OnlyVisible(t *testing.T, what, line string) {
	t.Helper()
	for i, r := range line {
		if _, n := utf8.DecodeRuneInString(line[i:]); !unicode.IsPrint(r) || r == utf8.RuneError && n == 1 {
			t.Fatalf("%s: %U is in %q", what, r, line)
		}
	}
}

// Fill puts a text into every string below v.
func Fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		Fill(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		Fill(v.Index(0), text)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				Fill(f, text)
			}
		}
	}
}

// Fifo makes a named pipe and gives its path.
func Fifo(t *testing.T, path string) string {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Feed opens a pipe that has text in it and has been closed at its other end.
func Feed(t *testing.T, text string) (path string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := w.WriteString(text); err != nil { // less than a pipe's buffer
		t.Fatal(err)
	}
	w.Close()
	path = fmt.Sprintf("/dev/fd/%d", r.Fd())
	if _, err := os.Stat(path); err != nil {
		t.Skip("this system has no /dev/fd")
	}
	return path
}

// MustDo fails at the first error.
func MustDo(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Env is the environment of the configurations in tests.
func Env(name string) (string, bool) {
	v, ok := map[string]string{"APP_CERT": "app.crt", "APP_KEY": "/keys/app.key", "PORT": "5432", "EMPTY": "", "YES": "true", "TWO": "2s",
		"CA": "2f4cf5b1a3c2e0d97b6f7a8e9d0c1b2a3f4e5d6c7b8a99887766554433221100"}[name]
	return v, ok
}

// Good is a configuration to make mistakes in; %s is more of the upstream.
const Good = `listeners: {l: {listen: "127.0.0.1:1", upstream: u}}
upstreams:
  u:
    endpoints: ["h:1"]
`

// AllowAll is a rule.
const AllowAll = "{upstream: net}"

// Ruled is a configuration with one listener: keys are those of the listener, rules
// those of its rules, a line each. It has the upstreams net, which is dynamic, and u.
func Ruled(keys string, rules ...string) string {
	text := "listeners:\n  l:\n    listen: 127.0.0.1:1\n" + indent(keys) + "    rules:\n"
	for _, r := range rules {
		text += "      - " + r + "\n"
	}
	return text + "upstreams:\n  net: {dynamic: true}\n  u: {endpoints: [\"h:1\"]}\n"
}

// indent puts keys, a line each, where those of a listener are.
func indent(keys string) (out string) {
	for line := range strings.SplitSeq(keys, "\n") {
		if line != "" {
			out += "    " + line + "\n"
		}
	}
	return out
}

// EnvOf is an environment of nothing but pairs ("KEY=value").
func EnvOf(pairs ...string) func(string) (string, bool) {
	return func(key string) (string, bool) {
		for _, p := range pairs {
			if v, ok := strings.CutPrefix(p, key+"="); ok {
				return v, true
			}
		}
		return "", false
	}
}

// LoginRefused is the code of ask where the login is not taken.
const LoginRefused = 255

// AskSOCKS5 asks in SOCKS5 for "HOST:PORT", and gives the connection with the reply's code:
// one that is refused is closed. User is "NAME:PASSWORD"; empty: no login.
func AskSOCKS5(t *testing.T, at, user, dest string) (c net.Conn, code byte) {
	t.Helper()
	c = DialPrinted(t, at)
	method := byte(0)
	if user != "" {
		method = 2
	}
	c.Write([]byte{5, 1, method})
	if b := ReadN(t, c, 2); b[1] != method {
		t.Fatalf("%s: the method is %d, want %d", dest, b[1], method)
	}
	if name, password, ok := strings.Cut(user, ":"); ok {
		c.Write([]byte("\x01" + string(rune(len(name))) + name + string(rune(len(password))) + password))
		if b := ReadN(t, c, 2); b[1] != 0 {
			c.Close()
			return c, LoginRefused
		}
	}
	host, port, err := net.SplitHostPort(dest)
	if err != nil {
		t.Fatal(err)
	}
	ap, err := netip.ParseAddrPort("0.0.0.0:" + port)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(binary.BigEndian.AppendUint16([]byte("\x05\x01\x00\x03"+string(rune(len(host)))+host), ap.Port()))
	head := ReadN(t, c, 4)
	if address := map[byte]int{1: 4, 4: 16}[head[3]]; address > 0 {
		ReadN(t, c, address+2)
	}
	if head[1] != 0 {
		c.Close()
	}
	return c, head[1]
}

// ReadN reads exactly n bytes.
func ReadN(t *testing.T, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// Localhost is an address as a client asks for it by name.
func Localhost(addr string) string { return strings.Replace(addr, "127.0.0.1", "localhost", 1) }

// Secretive is a configuration with secrets, of which hunter2 is in all.
const Secretive = `# what is beside a secret is printed as it was
listeners: {l: {listen: "127.0.0.1:0", upstream: u}}
upstreams:
  u:
    endpoints: ["127.0.0.1:1"] # nobody
    required: false
    health:
      interval: 1h
      send: |
        AUTH hunter2
        PING
      expect: "$${YES}"
      http: {port: 1, path: '/health?token=hunter2'}
  v: {endpoints: ["127.0.0.1:1"], required: false, health: {interval: 1h, send: "hunter2 $${YES}", http: {port: 1, path: /plain}}}
  w: {endpoints: ["127.0.0.1:1"], required: false, health: {interval: 1h, expect: &pw hunter2, send: *pw}}
`

// As is the environment variable that says what the test binary is to be instead of
// tests, in a process that a test starts: the ambassador, a COMMAND of it, or what its
// sandbox is tried in.
const As = "AMBASSADOR_TEST_AS"

// BeCommand is a COMMAND: `exit N`, `kill`, `await` a signal, `cat`.
func BeCommand(args []string) int {
	switch args[0] {
	case "exit":
		var code int
		fmt.Sscan(args[1], &code)
		fmt.Println("started")
		return code
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "await":
		c := make(chan os.Signal, 8)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
		fmt.Println("up")
		select {
		case s := <-c:
			fmt.Println("got", s)
			return 3
		case <-time.After(Patience):
			return 99
		}
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
		return 0
	}
	return 98
}

// OurLines are the lines about our metrics: all but Go's and the process's.
func OurLines(page string) string {
	var out strings.Builder
	for line := range strings.Lines(page) {
		if strings.Contains(line, "ambassador_") {
			out.WriteString(line)
		}
	}
	return out.String()
}
