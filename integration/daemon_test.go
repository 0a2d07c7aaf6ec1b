package integration

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// daemon is a server of the system, run by a test on loopback ports with a
// folder of its own. It takes TLS with a client certificate only, or, as the
// plaintext twin, no TLS at all: the same client before both must see the same.
type daemon struct {
	dir, port string
	command   func() *exec.Cmd // for every start; nil where stopping is not by signal
	within    time.Duration    // bounds the wait for its port; zero: patience
	*process
}

// newDaemon makes the folder, which every user may enter, and takes a port.
func newDaemon(t testing.TB) *daemon {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{dir: shortDir(t), port: port}
	if err := os.Chmod(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) file(name string) string { return filepath.Join(d.dir, name) }
func (d *daemon) addr() string            { return "127.0.0.1:" + d.port }

// write puts a text into a file of the folder.
func (d *daemon) write(t testing.TB, name, text string) string {
	t.Helper()
	if err := os.WriteFile(d.file(name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return d.file(name)
}

// mkdir makes folders in the folder, owned by the user if one is named.
func (d *daemon) mkdir(t testing.TB, owner string, names ...string) {
	t.Helper()
	for _, n := range names {
		err := os.Mkdir(d.file(n), 0o755)
		if owner != "" {
			uid, gid := ids(t, owner)
			err = errors.Join(err, os.Chown(d.file(n), uid, gid))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ids are the numbers of a user of the system.
func ids(t testing.TB, name string) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup(name)
	if err == nil {
		uid, err = strconv.Atoi(u.Uid)
	}
	if err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// start runs the server until the end of the test, and waits until its port
// answers.
func (d *daemon) start(t testing.TB) {
	t.Helper()
	p, err := launch(d.command())
	if err != nil {
		t.Fatal(err)
	}
	d.process = p
	t.Cleanup(func() { d.stop(t) })
	err = eventually(cmp.Or(d.within, patience), func() error {
		if !p.running() {
			return nil // the dial below says so
		}
		c, err := net.DialTimeout("tcp", d.addr(), patience)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil || !p.running() {
		t.Fatalf("%s: %v\n%s%s", p.name(), err, tail(p.stdout.String(), 8<<10), tail(p.stderr.String(), 8<<10))
	}
}

// stop shuts the server down, or kills it if that takes too long. It asks more than
// once: on a busy host prosody lost a signal, and went on.
func (d *daemon) stop(t testing.TB) {
	t.Helper()
	if d.process == nil || !d.running() {
		return
	}
	var err error
	for range 3 {
		d.signal(syscall.SIGTERM)
		if _, err = d.exit(patience / 3); err == nil {
			return
		}
	}
	if err != nil {
		t.Error(err)
		d.signal(os.Kill)
		d.exit(patience)
	}
}

// sbin finds a program that may not be on a user's PATH; without it the test ends.
func sbin(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		missing(t, name)
	}
	return path
}

// needRoot ends a test whose server drops root's rights by itself.
func needRoot(t testing.TB, server string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("%s starts as root only", server)
	}
}

// front starts `forward` with our certificate before the server, and waits until
// it is ready: until it has reached the server through the whole path.
func front(t testing.TB, d *daemon, keys *pki, flags ...string) (a *ambassador, port string) {
	t.Helper()
	a = start(t, append(append([]string{"forward", "--listen", "127.0.0.1:0", "--to", d.addr(), "--server-name", "localhost"}, keys.client()...), flags...)...)
	_, port, _ = net.SplitHostPort(a.addr("forward"))
	if _, code := a.ask("wait"); code != 0 {
		t.Fatal("the server is up, and the ambassador is not ready")
	}
	return a, port
}

// twins runs the same client against the plaintext twin and through the ambassador.
// Both must end alike and print the same, except for what edit removes. It returns
// the output.
func twins(t testing.TB, direct, through *exec.Cmd, edit ...string) string {
	t.Helper()
	want, got := transcript(t, direct, edit), transcript(t, through, edit)
	if got != want {
		t.Errorf("%s\nthrough the ambassador:\n%s\nto the twin without TLS:\n%s", through, tail(got, 3000), tail(want, 3000))
	}
	return got
}

// transcript is a client's output and exit. edit are texts and their replacements, in
// turns.
func transcript(t testing.TB, cmd *exec.Cmd, edit []string) string {
	t.Helper()
	p, err := launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.exit(4 * patience)
	if err != nil {
		p.signal(os.Kill)
		t.Fatal(err)
	}
	return strings.NewReplacer(edit...).Replace(fmt.Sprintf("exit code %d\n%s%s", code, p.stdout, p.stderr))
}

// rejected proves that the server refuses a wrong certificate: with one of another CA
// the client fails, and the session ends for reason. Servers refuse differently: by
// an alert, a close, or a message of the protocol.
func rejected(t testing.TB, d *daemon, keys *pki, starttls, reason string, client func(port string) *exec.Cmd) {
	t.Helper()
	conf := place{addr: d.addr(), starttls: starttls, identity: "client-other"}.configFile(t, keys)
	a := start(t, "run", "-c", conf)
	_, port, _ := net.SplitHostPort(a.addr("front"))
	if out, _, err := try(client(port)); err == nil {
		t.Errorf("the server takes a certificate of another CA: %s", out)
	}
	cause := ""
	if reason == "upstream_tls_rejected" {
		cause = `,"cause":"the server rejected our certificate \(CN=app, issued by CN=another CA\): `
	}
	a.await(`"msg":"session".*"reason":"` + reason + `"` + cause)
}

// firstContact proves that without --starttls, or with a wrong one, the error names
// the server's protocol and the flag to add. hello is the client's first message, for
// the protocols in which it speaks first.
func firstContact(t testing.TB, d *daemon, keys *pki, starttls, hello, want string) {
	t.Helper()
	a := start(t, "run", "-c", place{addr: d.addr(), starttls: starttls}.configFile(t, keys))
	_, port, _ := net.SplitHostPort(a.addr("front"))
	k := newTalk(t, port)
	k.c.Write([]byte(hello))
	a.await(`"msg":"session".*"cause":".*` + strings.ReplaceAll(want, "; ", `(?:; |","hint":")`))
}

// talk is a session by hand: it sends each line after the last answer matches.
type talk struct {
	t testing.TB
	c net.Conn
	b []byte
}

func newTalk(t testing.TB, port string) *talk {
	t.Helper()
	c, err := dialTCP("127.0.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &talk{t: t, c: c}
}

// say sends text as it is.
func (k *talk) say(text string) {
	k.t.Helper()
	if _, err := k.c.Write([]byte(text)); err != nil {
		k.t.Fatal(err)
	}
}

// hear reads until the bytes since the last call end with suffix.
func (k *talk) hear(suffix string) string {
	k.t.Helper()
	buf := make([]byte, 4096)
	for {
		if text := string(k.b); strings.HasSuffix(text, suffix) {
			k.b = nil
			return text
		}
		n, err := k.c.Read(buf)
		k.b = append(k.b, buf[:n]...)
		if err != nil && !strings.HasSuffix(string(k.b), suffix) {
			k.t.Fatalf("%v after %q, waiting for %q", err, k.b, suffix)
		}
	}
}
