package certs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// info is a file of an owner and a mode.
type info struct {
	uid  uint32
	mode fs.FileMode
}

func (i info) Name() string       { return "x" }
func (i info) Size() int64        { return 0 }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return &syscall.Stat_t{Uid: i.uid} }

func TestCheckOurs(t *testing.T) {
	us, other := uint32(os.Geteuid()), uint32(os.Geteuid()+1)
	for _, tt := range []struct {
		info   info
		secret bool
		want   string // part of the error; empty: none
	}{
		{info{us, 0o700}, false, ""},
		{info{us, 0o755}, false, ""}, // systemd's StateDirectory
		{info{0, 0o755}, false, ""},
		{info{us, 0o600}, true, ""},
		{info{us, 0o400}, true, ""},
		{info{other, 0o700}, false, "belongs to uid"},
		{info{us, 0o777}, false, "others may write it (mode 0777)"},
		{info{us, 0o770}, false, "others may write it"},
		{info{us, 0o777 | fs.ModeSticky}, false, "others may write it"},
		{info{us, 0o702}, false, "others may write it"},
		{info{us, 0o640}, true, "others may read this secret"},
		{info{us, 0o604}, true, "others may read this secret"},
		{info{other, 0o600}, true, "belongs to uid"},
	} {
		if err := checkOurs(tt.info, tt.secret); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, secret %v: %v; want %q", tt.info, tt.secret, err, tt.want)
		}
	}
}

func TestCheckMode(t *testing.T) {
	for _, tt := range []struct {
		mode          fs.FileMode
		secret        bool
		warning, fail bool
	}{
		{0o600, true, false, false},
		{0o640, true, false, false},
		{0o660, true, false, false}, // its group was chosen
		{0o644, true, true, false},  // a secret that Kubernetes mounts
		{0o644, false, false, false},
		{0o602, true, false, true},
		{0o666, true, false, true},
		{0o666, false, false, true},
	} {
		warning, err := CheckMode(info{0, tt.mode}, tt.secret)
		if (warning != nil) != tt.warning || (err != nil) != tt.fail {
			t.Errorf("%#o, secret %v: warning %v, error %v", tt.mode, tt.secret, warning, err)
		}
	}
}

func TestFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	f, err := MakeFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := func(name string) string { return filepath.Join(path, name) }
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("made with %v, %v", info, err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read("key", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing is there: %v", err)
	}
	if err := errors.Join(os.Symlink(outside, in("key")), os.Symlink(outside, in("key.new"))); err != nil {
		t.Fatal(err)
	}
	if b, err := f.Read("key", true); err == nil || !strings.Contains(err.Error(), in("key")+": it is not a regular file") {
		t.Errorf("a link out is read: %q, %v", b, err)
	}
	if err := f.Replace("key", []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := f.Read("key", true); err != nil || string(b) != "ours" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "theirs" {
		t.Errorf("a link was followed: %q, %v", b, err)
	}
	if err := syscall.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read("fifo", true); err == nil || !strings.Contains(err.Error(), "not a regular file") { // else it waits
		t.Errorf("a pipe: %v", err)
	}
	if _, err := f.Create("fifo"); err == nil {
		t.Error("a pipe is opened")
	}
	for mode, want := range map[fs.FileMode]string{0o644: "others may read this secret", 0o620: "others may write it"} {
		if err := os.Chmod(in("key"), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read("key", true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%#o: %v; want %q", mode, err, want)
		}
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	var at *fs.PathError
	if _, err := OpenFolder(path); !errors.As(err, &at) || at.Path != path || !strings.Contains(err.Error(), "others may write it") {
		t.Errorf("a folder for everybody: %v", err)
	}
}

// The folder that was checked is used, even if its path leads elsewhere since.
func TestFolderThatIsSwapped(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	f, err := MakeFolder(at("me"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Replace("key", []byte("ours"), 0o600), os.Rename(at("me"), at("old")), os.Mkdir(at("me"), 0o777),
		os.WriteFile(filepath.Join(at("me"), "key"), []byte("theirs"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if b, err := f.Read("key", true); err != nil || string(b) != "ours" {
		t.Errorf("%q, %v", b, err)
	}
}

// systemd makes the state folder of a dynamic user a link to another one.
func TestFolderBehindALink(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "private"), 0o700), os.Symlink("private", filepath.Join(dir, "state"))); err != nil {
		t.Fatal(err)
	}
	f, err := MakeFolder(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// A folder and files of another user are not used. Only root can make them.
func TestFolderOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	path := t.TempDir()
	f, err := MakeFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	key := filepath.Join(path, "key")
	if err := errors.Join(os.WriteFile(key, []byte("theirs"), 0o600), os.Lchown(key, 4711, 4711)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read("key", false); err == nil || !strings.Contains(err.Error(), "belongs to uid 4711") {
		t.Errorf("a file of another user: %v", err)
	}
	if err := os.Chown(path, 4711, 4711); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFolder(path); err == nil || !strings.Contains(err.Error(), "belongs to uid 4711") {
		t.Errorf("a folder of another user: %v", err)
	}
}
