package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func fifo(t *testing.T, path string) string {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keysOfFiles are configurations by the key that names a file, with a verb for it.
func keysOfFiles() map[string]string {
	identity := good + "identities: {me: {%s}}"
	files := func(more string) string { return fmt.Sprintf(identity, "files: {"+more+"}") }
	step := func(more string) string {
		return fmt.Sprintf(identity, "step: {url: 'https://127.0.0.1:1', fingerprint: "+strings.Repeat("0", 64)+", names: [a], "+more+"}")
	}
	return map[string]string{
		"admin.token_file":                    good + "admin: {token_file: %q}",
		"listeners.l.socks5.users_file":       ruled("socks5: {users_file: %q}", allowAll),
		"listeners.l.http_connect.users_file": ruled("http_connect: {users_file: %q}", allowAll),
		"listeners.l.tls.ca":                  listening("tls: {identity: me, ca: %q, principals: [any]}"),
		"upstreams.u.tls.ca":                  good + "    tls: {ca: %q}",
		"upstreams.u.health.password_file":    good + "    starttls: mysql\n    tls: {}\n    health: {user: me, password_file: %q}",
		"identities.me.files.cert":            files("cert: %q, key: absent"),
		"identities.me.files.key":             files("cert: absent, key: %q"),
		"identities.me.files.pkcs12":          files("pkcs12: %q"),
		"identities.me.files.ca":              files("cert: absent, key: absent, ca: %q"),
		"identities.me.files.crl":             files("cert: absent, key: absent, crl: %q"),
		"identities.me.files.password_file":   files("cert: absent, key: absent, password_file: %q"),
		"identities.me.step.password_file":    step("provisioner: p, password_file: %q"),
		"identities.me.step.token_file":       step("storage: s, token_file: %q"),
	}
}

// TestNoKeyReadsWhatIsNoFile hangs until the test's timeout, or takes all memory,
// where it fails.
func TestNoKeyReadsWhatIsNoFile(t *testing.T) {
	folder := shortDir(t)
	in := func(name string) string { return filepath.Join(folder, name) }
	fifo(t, in("pipe"))
	ln, err := net.Listen("unix", in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	large, err := os.Create(in("large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(1 << 32); err != nil { // without a block on the disk
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", in("link")); err != nil {
		t.Fatal(err)
	}
	for key, text := range keysOfFiles() {
		for path, want := range map[string]string{
			in("pipe"): "it is a pipe, not a regular file", in("socket"): "it is a socket, not", folder: "it is a directory, not",
			"/dev/zero": "it is a device, not", in("link"): "it is a device, not", in("large"): "it has more than",
		} {
			f, err := parse(fmt.Sprintf(text, path))
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			i := slices.IndexFunc(f.checkFiles(), func(p Problem) bool {
				return p.Path == key && strings.Contains(p.Text, path) && strings.Contains(p.Text, want)
			})
			if i < 0 {
				t.Errorf("%s: %s: the problems are %v, want one with %q", key, path, f.checkFiles(), want)
			}
		}
	}
}

// A link to a regular file is one, as Kubernetes mounts them.
func TestLinksToFilesAreRead(t *testing.T) {
	folder := t.TempDir()
	for _, dir := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(folder, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(folder, "..1", "ambassador.yaml"), ruled("socks5: {users_file: users}", allowAll))
	writeFile(t, filepath.Join(folder, "..1", "users"), htpasswdLine(t, "alice", "wonderland"))
	for name, to := range map[string]string{"..data": "..1", "ambassador.yaml": "..data/ambassador.yaml", "users": "..data/users"} {
		if err := os.Symlink(to, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, errs, code := explained(t, "-c", filepath.Join(folder, "ambassador.yaml")); code != 0 {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
}

// A reload that meets a pipe fails at once, and the next one is as good as ever.
func TestReloadWithAPipe(t *testing.T) {
	one, two := namedEcho(t, "one"), namedEcho(t, "two")
	s := serveFile(t, oneListener(one))
	folder := t.TempDir()
	token := fifo(t, filepath.Join(folder, "token"))
	refused := func(want string) {
		t.Helper()
		body, status := s.admin("POST", "/v1/reload")
		if status != 422 || !strings.Contains(body, want) {
			t.Errorf("reload: %d %s; want 422 and %q", status, body, want)
		}
		says(t, s.connect("front"), "a", "one: a")
	}
	writeFile(t, s.config, oneListener(two, fmt.Sprintf("admin: {token_file: %q}", token)))
	refused("admin.token_file: read " + token + ": it is a pipe, not a regular file")
	if err := os.Remove(s.config); err != nil {
		t.Fatal(err)
	}
	fifo(t, s.config) // which nobody writes to
	refused(s.config + ": a pipe cannot be read again")
	if err := os.Remove(s.config); err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.config, oneListener(two))
	if body, status := s.admin("POST", "/v1/reload"); status != 200 {
		t.Errorf("the reload after that: %d %s", status, body)
	}
	says(t, s.connect("front"), "b", "two: b")
}

// feed opens a pipe that has text in it and has been closed at its other end.
func feed(t *testing.T, text string) (path string) {
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

func TestAConfigurationFromAPipe(t *testing.T) {
	s := &configSource{path: feed(t, good+"    tls: {ca: ca.crt}")}
	f, err := s.load(testEnv)
	if err != nil {
		t.Fatal(err)
	}
	if wd, err := os.Getwd(); err != nil || f.Upstreams[0].TLS.CA != filepath.Join(wd, "ca.crt") {
		t.Errorf("a relative path is %s, want it in %s, %v", f.Upstreams[0].TLS.CA, wd, err)
	}
	if _, err := s.load(testEnv); err == nil || !strings.Contains(err.Error(), "a pipe cannot be read again; to be able to reload, start with -c and a regular file") {
		t.Errorf("read again: %v", err)
	}
	if out, errs, code := explained(t, "-c", feed(t, good)); code != 0 || !strings.Contains(out, "ok (1 listener") {
		t.Errorf("check: exit code %d\n%s%s", code, out, errs)
	}
	out, errs := newOutput(), newOutput()
	if code := run(t.Context(), []string{"run", "--print-config", "-c", feed(t, good)}, strings.NewReader(""), out, errs); code != 0 || out.String() != good {
		t.Errorf("run: exit code %d\n%s%s", code, out, errs)
	}
	if code := run(t.Context(), []string{"run", "--watch", "-c", feed(t, good)}, strings.NewReader(""), out, errs); code != 2 || !strings.Contains(errs.String(), "is a pipe, which cannot be read again") {
		t.Errorf("--watch: exit code %d\n%s", code, errs)
	}
}

func TestPipesAreBounded(t *testing.T) {
	path := fifo(t, filepath.Join(t.TempDir(), "pipe"))
	if _, err := readPipe(path, 10, time.Millisecond); err == nil || !strings.Contains(err.Error(), "has not been closed at its other end within 1ms") {
		t.Errorf("a pipe without a writer: %v", err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0) // lets the reader that was left behind go on
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readPipe(path, 10, time.Millisecond); err == nil || !strings.Contains(err.Error(), "has not been closed") {
		t.Errorf("a pipe that is held open: %v", err)
	}
	w.Close()
	if _, err := readPipe(feed(t, strings.Repeat("x", 11)), 10, patience); err == nil || !strings.Contains(err.Error(), "came through this pipe") {
		t.Errorf("more than the bound: %v", err)
	}
	if text, err := readPipe(feed(t, strings.Repeat("x", 10)), 10, patience); err != nil || len(text) != 10 {
		t.Errorf("as much as the bound: %q, %v", text, err)
	}
}

// TestFilesHaveOneReader asserts that whoever reads a file reads it through
// certs.ReadFile or certs.Folder, which wait for nobody and have a bound.
func TestFilesHaveOneReader(t *testing.T) {
	opens := map[string]string{ // what may open files itself, and why
		"certs/readfile.go":             "the reader",
		"cmd/ambassador/source.go":      "pipes that a command line names",
		"cmd/ambassador/adminsocket.go": "locks a folder",
	}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("../..", path)
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		found := ""
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := call.X.(*ast.Ident); ok && pkg.Name == "os" && slices.Contains([]string{"ReadFile", "Open", "OpenFile"}, call.Sel.Name) {
				found = call.Sel.Name
			}
			return true
		})
		if why := opens[rel]; (found != "") != (why != "") {
			t.Errorf("%s calls os.%s; it is listed here %q: read files by certs.ReadFile", rel, found, why)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
