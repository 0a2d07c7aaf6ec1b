package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestErrorsNameTheFix asserts what a user reads when a socket's folder cannot be used.
func TestErrorsNameTheFix(t *testing.T) {
	dir := t.TempDir()
	file, absent := filepath.Join(dir, "file"), filepath.Join(dir, "absent")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{absent + "/x.sock", "the folder " + absent + " does not exist; create it (mkdir -p " + absent + ") or choose another"},
		{file + "/x.sock", file + " is not a folder; choose another path"},
		{file, "a file that is no socket is there; move it away or choose another path"},
	} {
		if _, err := Listen(t.Context(), c.path, Config{}); err == nil || err.Error() != "listen unix:"+c.path+": "+c.want {
			t.Errorf("%s:\n got %v\nwant %s", c.path, err, c.want)
		}
	}
	for number, want := range map[syscall.Errno]string{
		syscall.ENOENT: "the folder " + dir + " takes no new files; choose another",
		syscall.EACCES: fmt.Sprintf("uid %d may not create files in %s (permission denied); allow that, or choose another folder", os.Geteuid(), dir),
		syscall.EPERM:  fmt.Sprintf("uid %d may not create files in %s (operation not permitted); allow that, or choose another folder", os.Geteuid(), dir),
		syscall.EROFS:  "the folder " + dir + " is mounted read-only; choose one that can be written, like /run/ambassador",
		syscall.ENOSPC: "the folder " + dir + " has no room (no space left on device); make room, or choose another folder",
		syscall.EINVAL: "mkdirat .A: invalid argument",
	} {
		cause := &fs.PathError{Op: "mkdirat", Path: ".A", Err: number}
		err := explained(dir+"/x.sock", cause)
		if err.Error() != want || !errors.Is(err, number) {
			t.Errorf("%v:\n got %v\nwant %s", number, err, want)
		}
	}
}
