package process

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smaps has the fields of a mapping that parseMappings reads, and one more.
func smaps(head, anonymous, swap string) string {
	return head + "\nRss:                 100 kB\nAnonymous:           " + anonymous + " kB\nSwap:                " + swap + " kB\nVmFlags: rd ex mr mw me\n"
}

// Only pages that are the same in the file may be dropped.
func TestParseMappings(t *testing.T) {
	const (
		code      = "00400000-013b6000 r-xp 00000000 fe:00 10461857                           /usr/bin/ambassador"
		constants = "013b6000-025d9000 r--p 00fb6000 fe:00 10461857                           /usr/bin/ambassador (deleted)"
	)
	for _, test := range []struct {
		name, text string
		want       []mapping
	}{
		{"code and constants", smaps(code, "0", "0") + smaps(constants, "0", "0"), []mapping{{0x400000, 0x13b6000}, {0x13b6000, 0x25d9000}}},
		{"a breakpoint in the code", smaps(code, "4", "0") + smaps(constants, "0", "0"), []mapping{{0x13b6000, 0x25d9000}}},
		{"a relocated page in swap", smaps(code, "0", "4"), nil},
		{"data", smaps("025d9000-026ad000 rw-p 021d9000 fe:00 10461857    /usr/bin/ambassador", "0", "0"), nil},
		{"shared", smaps("025d9000-026ad000 r--s 021d9000 fe:00 10461857    /var/cache/x", "0", "0"), nil},
		{"no file", smaps("7ffe7d5f2000-7ffe7d5f4000 r-xp 00000000 00:00 0    [vdso]", "0", "0"), nil},
		{"a field is missing", code + "\nAnonymous:   0 kB\n", nil},
		{"no address", smaps("x-y r-xp 00000000 fe:00 10461857 /x", "0", "0"), nil},
		{"no end", smaps("400000-x r-xp 00000000 fe:00 10461857 /x", "0", "0"), nil},
		{"an empty range", smaps("400000-400000 r-xp 00000000 fe:00 10461857 /x", "0", "0"), nil},
		{"empty", "", nil},
	} {
		if got := parseMappings(test.text); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %x, want %x", test.name, got, test.want)
		}
	}
}

// The pages that the start has used leave the process, and what runs afterwards works.
func TestSettleDropsCode(t *testing.T) {
	m := memory{code: codeMappings()}
	if len(m.code) == 0 {
		t.Fatal("no mapping of code")
	}
	for _, of := range m.code { // map all of it; an older kernel has only what has run
		unix.Syscall(unix.SYS_MADVISE, of.start, of.end-of.start, unix.MADV_POPULATE_READ)
	}
	before := residentFiles(t)
	least := before
	for range 20 { // what runs meanwhile maps its pages again, and those around them
		m.settle()
		if least = min(least, residentFiles(t)); least <= before*3/4 { // the kernel maps large pages as a whole
			return
		}
	}
	t.Errorf("%d kB of files resident, %d before", least, before)
}

// residentFiles returns how many kB of mapped files are resident.
func residentFiles(t *testing.T) (kb int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssFile:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}
