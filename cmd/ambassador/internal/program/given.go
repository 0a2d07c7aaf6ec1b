package program

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"ambassador/certs"
)

// What the command line names: the configuration, a token. It may be a pipe, as in
// `ambassador run -c <(render)`, where files that a configuration names may not.

// PipeTimeout bounds the wait for the end of a pipe.
const PipeTimeout = 10 * time.Second

// IsPipe says whether the path leads to a pipe.
func IsPipe(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeNamedPipe != 0
}

// ReadGiven reads a small file or a pipe that a flag names.
func ReadGiven(path string, most int) ([]byte, error) {
	if IsPipe(path) {
		return ReadPipe(path, most, PipeTimeout)
	}
	return certs.ReadFile(path, most)
}

// ReadPipe reads a pipe to its end, at most so many bytes and for so long. The error
// is a *fs.PathError.
func ReadPipe(path string, most int, limit time.Duration) ([]byte, error) {
	var text []byte
	done := make(chan error, 1)
	go func() { // received below; left behind at the limit, until a writer comes or the process ends
		var err error
		text, err = readToEnd(path, most)
		done <- err
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-done:
		return text, err
	case <-t.C:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("this pipe has not been closed at its other end within %s; close it after writing, or give a regular file", limit)}
	}
}

// readToEnd is ReadPipe without a bound in time: opening a pipe waits for a writer.
func readToEnd(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(text) > most {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d KiB came through this pipe; give the right one", most>>10)}
	}
	return text, err
}
