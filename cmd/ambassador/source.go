package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ambassador/certs"
)

// What the command line names: the configuration, a token. It may be a pipe, as in
// `ambassador run -c <(render)`, where files that a configuration names may not.

const (
	// maxConfigFile bounds a configuration, in bytes: about 50,000 rules. Kubernetes
	// keeps at most 1 MiB in a ConfigMap.
	maxConfigFile = 4 << 20
	// pipeTimeout bounds the wait for the end of a pipe.
	pipeTimeout = 10 * time.Second
)

// configSource is where a configuration is read from: at first a regular file or a
// pipe, from then on a regular file. It is used by one goroutine at a time.
type configSource struct {
	path string
	used bool // it has been read
}

// read gives the text.
func (s *configSource) read() ([]byte, error) {
	first := !s.used
	s.used = true
	switch {
	case !isPipe(s.path):
		return certs.ReadGuarded(s.path, maxConfigFile)
	case first:
		return readPipe(s.path, maxConfigFile, pipeTimeout)
	}
	return nil, errors.New("a pipe cannot be read again; to be able to reload, start with -c and a regular file")
}

// folder is where relative paths start. Pipes and what else is in /dev have no folder
// of their own.
func (s *configSource) folder() (string, error) {
	if isPipe(s.path) || strings.HasPrefix(s.path, "/dev/") {
		return os.Getwd()
	}
	return filepath.Abs(filepath.Dir(s.path))
}

// isPipe says whether the path leads to a pipe.
func isPipe(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeNamedPipe != 0
}

// readGiven reads a small file or a pipe that a flag names.
func readGiven(path string, most int) ([]byte, error) {
	if isPipe(path) {
		return readPipe(path, most, pipeTimeout)
	}
	return certs.ReadFile(path, most)
}

// readPipe reads a pipe to its end, at most so many bytes and for so long. The error
// is a *fs.PathError.
func readPipe(path string, most int, limit time.Duration) ([]byte, error) {
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

// readToEnd is readPipe without a bound in time: opening a pipe waits for a writer.
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
