package certs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// maxSecret bounds a file with a password or a token: a token with a chain in it
// has a few KiB.
const maxSecret = 64 << 10

// ReadSecret reads a file that holds one password or token and nothing else. A
// line break at its end, which editors leave there, is not part of it. One that every
// user may write is refused: see CheckMode. The error is a *fs.PathError.
func ReadSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a pipe could wait for ever
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is not a regular file")}
	}
	if _, err := CheckMode(info, true); err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case len(b) > maxSecret:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d KiB is no password or token; give the right file", maxSecret>>10)}
	case text == "":
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is empty; write the password or token there, and nothing else")}
	}
	return []byte(text), nil
}
