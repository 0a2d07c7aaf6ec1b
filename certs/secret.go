package certs

import (
	"bytes"
	"errors"
	"io/fs"
)

// maxSecret bounds a file with a password or a token: a token that contains a
// chain has a few KiB.
const maxSecret = 64 << 10

// ReadSecret reads a file that contains one password or token and nothing else.
// Line breaks at its end, which editors add, are removed, and so is a byte order
// mark: see Text. A file with several lines is refused, because it does not say
// which of them is the secret. A file that every user may write is refused: see
// ReadGuarded. The error is a *fs.PathError.
func ReadSecret(path string) ([]byte, error) {
	b, err := ReadGuarded(path, maxSecret)
	if err != nil {
		return nil, err
	}
	secret := bytes.TrimRight(Text(b), "\r\n")
	switch {
	case len(secret) == 0:
		err = errors.New("it is empty; write the password or token there, and nothing else")
	case bytes.ContainsAny(secret, "\r\n"):
		err = errors.New("it has more than one line; write one password or token there, and nothing else")
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return secret, nil
}
