package program

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
)

func TestPipesAreBounded(t *testing.T) {
	path := cmdtest.Fifo(t, filepath.Join(t.TempDir(), "pipe"))
	if _, err := ReadPipe(path, 10, time.Millisecond); err == nil || !strings.Contains(err.Error(), "has not been closed at its other end within 1ms") {
		t.Errorf("a pipe without a writer: %v", err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0) // lets the reader that was left behind go on
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPipe(path, 10, time.Millisecond); err == nil || !strings.Contains(err.Error(), "has not been closed") {
		t.Errorf("a pipe that is held open: %v", err)
	}
	w.Close()
	if _, err := ReadPipe(cmdtest.Feed(t, strings.Repeat("x", 11)), 10, cmdtest.Patience); err == nil || !strings.Contains(err.Error(), "came through this pipe") {
		t.Errorf("more than the bound: %v", err)
	}
	if text, err := ReadPipe(cmdtest.Feed(t, strings.Repeat("x", 10)), 10, cmdtest.Patience); err != nil || len(text) != 10 {
		t.Errorf("as much as the bound: %q, %v", text, err)
	}
}
