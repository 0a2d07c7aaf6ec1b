package logs

import (
	"fmt"
	"strings"
	"testing"
)

func TestTailKeepsTheLastWholeLines(t *testing.T) {
	var all tail
	long := strings.Repeat("x", 1000)
	for i := range 200 {
		all.add([]byte(fmt.Sprintf("%d %s\n", i, long)))
	}
	l := &Log{out: &logWriter{}}
	l.out.tail.text = all.text
	lines := l.Tail()
	if len(all.text) > 2*maxTail {
		t.Errorf("%d bytes are kept, at most %d are allowed", len(all.text), 2*maxTail)
	}
	if n := len(lines); n < 30 || n > 33 {
		t.Errorf("Tail returns %d lines of 1 kB, want those of 32 KiB", n)
	}
	for i, line := range lines {
		if want := fmt.Sprintf("%d %s", 200-len(lines)+i, long); line != want {
			t.Fatalf("line %d = %.20q, want %.20q", i, line, want)
		}
	}
}

func TestTailOfOneLineThatIsTooLong(t *testing.T) {
	l := &Log{out: &logWriter{}}
	l.out.tail.add([]byte(strings.Repeat("x", 3*maxTail) + "\n"))
	l.out.tail.add([]byte("a\x1bb\n"))
	if got := l.Tail(); len(got) != 1 || strings.ContainsRune(got[0], '\x1b') {
		t.Errorf("Tail = %.80q, want one line without control characters", got)
	}
}
