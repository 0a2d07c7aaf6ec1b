package healthcheck

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"unicode"

	"ambassador/l4/netconn"
)

// maxAnswer bounds the bytes that Expect reads in search of the answer.
const maxAnswer = 64 << 10

// Hear waits for bytes that the server sends unasked, within the deadline of conn, and
// returns the first of them. Silence and data are success.
func Hear(conn io.Reader) ([]byte, error) {
	var buf [64]byte
	n, err := conn.Read(buf[:])
	if n > 0 || err == nil || netconn.IsTimeout(err) {
		return buf[:n], nil
	}
	return nil, err
}

// Expect reads until the server has sent want, within the deadline of conn. Sent is what
// it was sent before. The error is *UnexpectedError, or that of a read.
func Expect(conn io.Reader, want, sent string) ([]byte, error) {
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		switch {
		case bytes.Contains(got, []byte(want)):
			return got, nil
		case err == nil && len(got) < maxAnswer:
			continue
		case err != nil && !netconn.IsTimeout(err) && !netconn.IsEOF(err):
			return got, err
		}
		return got, &UnexpectedError{want, withoutWords(got, sent)}
	}
}

// withoutWords returns an answer without the words of sent: a server may quote a
// password that it rejects.
func withoutWords(got []byte, sent string) []byte {
	for word := range strings.FieldsFuncSeq(sent, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' }) {
		if len(word) > 3 { // shorter ones are in any answer
			got = bytes.ReplaceAll(got, []byte(word), []byte("***"))
		}
	}
	return got
}

// UnexpectedError means that a server did not send what health.expect requires.
type UnexpectedError struct {
	want string
	got  []byte
}

// Error quotes the first 64 bytes of the answer.
func (e *UnexpectedError) Error() string {
	return fmt.Sprintf("health.expect wants %q, the server said %q", e.want, e.got[:min(len(e.got), 64)])
}

// Is makes the error a timeout: the server may have been silent, and a client would see
// a timeout.
func (e *UnexpectedError) Is(target error) bool { return target == context.DeadlineExceeded }
