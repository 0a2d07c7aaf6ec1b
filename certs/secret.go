package certs

import (
	"errors"
	"io/fs"
	"strings"
)

// maxSecret bounds a file with a password or a token: a token that contains a
// chain has a few KiB.
const maxSecret = 64 << 10

// ReadSecret reads a file that contains one password or token and nothing else. A
// line break at its end, which editors add, is removed. A file that every user
// may write is refused: see ReadGuarded. The error is a *fs.PathError.
func ReadSecret(path string) ([]byte, error) {
	b, err := ReadGuarded(path, maxSecret)
	if err != nil {
		return nil, err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is empty; write the password or token there, and nothing else")}
	}
	return []byte(text), nil
}
