package embedded

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An authority is neither opened nor made in a folder that others could have written
// to, or with a file that they could have written: its root would be theirs.
func TestStorageOfOthers(t *testing.T) {
	open := func(dir string) error {
		s, err := NewServer(ServerOptions{Names: []string{"localhost"}, Storage: dir, Password: []byte("secret"), PlainKeys: true})
		if err == nil {
			s.Close()
		}
		return err
	}
	dir := filepath.Join(t.TempDir(), "ca")
	if err := open(dir); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	chmod := func(path string, mode fs.FileMode) func() error { return func() error { return os.Chmod(path, mode) } }
	for _, tt := range []struct {
		name         string
		change, undo func() error
		want         string
	}{
		{"a folder for everybody", chmod(dir, 0o777), chmod(dir, 0o700), "others may write it (mode 0777)"},
		{"a key that others can read", chmod(in(keyFile), 0o644), chmod(in(keyFile), 0o600), "others may read this secret"},
		{"a root that others can write", chmod(in(rootFile), 0o666), chmod(in(rootFile), 0o644), "others may write it"},
		{"a database that others can write", chmod(in(databaseFile), 0o666), chmod(in(databaseFile), 0o600), "others may write it"},
		{"a link out", func() error {
			return errors.Join(os.Rename(in(intermediateFile), in("x")), os.Symlink(in("x"), in(intermediateFile)))
		}, func() error { return os.Rename(in("x"), in(intermediateFile)) }, "not a regular file"},
	} {
		if err := tt.change(); err != nil {
			t.Fatal(err)
		}
		if err := open(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
		if err := tt.undo(); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(dir); err != nil {
		t.Errorf("as it was: %v", err)
	}
	empty := t.TempDir()
	if err := os.Chmod(empty, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := open(empty); err == nil {
		t.Error("a new one is made in a folder for everybody")
	}
	if left, _ := os.ReadDir(empty); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}
