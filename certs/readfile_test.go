package certs

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// noFiles makes one of each kind that ReadFile must refuse, by the words of the error.
func noFiles(t *testing.T) map[string]string {
	t.Helper()
	dir, err := os.MkdirTemp("", "no") // a short path, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := syscall.Mkfifo(in("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := os.Symlink("pipe", in("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("large"), make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		in("pipe"):   "it is a pipe, not a regular file",
		in("link"):   "it is a pipe, not a regular file",
		in("socket"): "it is a socket, not a regular file",
		dir:          "it is a directory, not a regular file",
		"/dev/zero":  "it is a device, not a regular file",
		in("large"):  "it has more than 1 MiB",
		in("absent"): "no such file",
	}
}

// TestReadFileRefusesOtherTypes hangs until the test's timeout if it fails.
func TestReadFileRefusesOtherTypes(t *testing.T) {
	for path, want := range noFiles(t) {
		b, err := ReadFile(path, 1<<20)
		var where *fs.PathError
		if b != nil || !errors.As(err, &where) || where.Path != path || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d bytes, %v; want an error with the path and %q", path, len(b), err, want)
		}
		if _, err := ReadSecret(path); err == nil {
			t.Errorf("%s: it is taken for a secret", path)
		}
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	want := bytes.Repeat([]byte("x"), 1024)
	if err := os.WriteFile(in("file"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	// As Kubernetes does: a link to a file behind a link to a folder.
	for name, target := range map[string]string{"..data": ".", "link": "..data/file"} {
		if err := os.Symlink(target, in(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"file", "link"} {
		if got, err := ReadFile(in(name), len(want)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, err := ReadFile(in(name), len(want)-1); err == nil {
			t.Errorf("%s: a file of more bytes than the bound is read", name)
		}
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		return // there is no /proc
	}
	// A file whose size is reported as 0, but which has content.
	if got, err := ReadFile("/proc/self/status", 1<<16); err != nil || len(got) == 0 {
		t.Errorf("/proc/self/status: %q, %v", got, err)
	}
	if _, err := ReadFile("/proc/self/status", 10); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("/proc/self/status within 10 bytes: %v", err)
	}
}
