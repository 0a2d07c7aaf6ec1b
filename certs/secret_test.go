package certs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadSecret(t *testing.T) {
	for _, tt := range []struct{ name, content, want, err string }{
		{"alone", "pass word", "pass word", ""},
		{"spaces belong to it", " pass word \n", " pass word ", ""},
		{"line break", "password\n", "password", ""},
		{"line break of Windows", "password\r\n", "password", ""},
		{"line break of old Macs", "password\r", "password", ""},
		{"several line breaks", "password\n\r\n\n", "password", ""},
		{"byte order mark", "\xef\xbb\xbfpäss\n", "päss", ""},
		{"UTF-16", "\xff\xfep\x00\xe4\x00s\x00\r\x00\n\x00", "päs", ""},
		{"UTF-16 big endian", "\xfe\xff\x00p\x00\xe4\x00s\x00\n", "päs", ""},
		{"not UTF-8", "p\xe4ss", "p\xe4ss", ""},
		{"nothing", "", "", "it is empty; write the password or token there"},
		{"only a line break", "\r\n", "", "it is empty"},
		{"only a mark", "\xef\xbb\xbf\n", "", "it is empty"},
		{"two lines", "password\nother\n", "", "it has more than one line; write one password or token there"},
		{"two lines of old Macs", "password\rother", "", "it has more than one line"},
		{"an empty line before it", "\npassword\n", "", "it has more than one line"},
	} {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSecret(path)
		if string(got) != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

// Text ends with any content, and leaves alone what has no mark.
func FuzzText(f *testing.F) {
	for _, seed := range []string{"", "x", "\xff\xfe", "\xff\xfex", "\xfe\xff\xd8\x00", "\xef\xbb\xbfx"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := Text(b)
		marked := bytes.HasPrefix(b, []byte(markUTF8)) || bytes.HasPrefix(b, []byte(markUTF16LE)) || bytes.HasPrefix(b, []byte(markUTF16BE))
		if !marked && !bytes.Equal(got, b) {
			t.Errorf("%q became %q", b, got)
		}
	})
}
