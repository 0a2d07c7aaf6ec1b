package logs

import (
	"slices"
	"strings"
	"sync"

	"ambassador/cmd/ambassador/internal/output"
)

// maxTail bounds what Tail returns, in bytes.
const maxTail = 32 << 10

// tail keeps the last lines of the log. Only the flush of a logWriter adds to it, in the
// background.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu; whole lines, at most two times maxTail
}

// add takes whole lines.
func (t *tail) add(lines []byte) {
	lines = lastLines(lines)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.text)+len(lines) > 2*maxTail {
		t.text = t.text[:copy(t.text, lastLines(t.text))]
	}
	t.text = append(t.text, lines...)
}

// lastLines is the end of text without the first, incomplete line.
func lastLines(text []byte) []byte {
	cut := len(text) - maxTail
	if cut <= 0 {
		return text
	}
	i := slices.Index(text[cut-1:], '\n')
	return text[cut+i:]
}

// Tail returns the last lines that were written, the oldest first, without control
// characters.
func (l *Log) Tail() []string {
	t := &l.out.tail
	t.mu.Lock()
	text := string(lastLines(t.text))
	t.mu.Unlock()
	if text == "" {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		lines[i] = output.Visible(withoutColor.Replace(line))
	}
	return lines
}
