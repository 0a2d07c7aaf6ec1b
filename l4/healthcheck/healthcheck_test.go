package healthcheck

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// endless is a server that never stops.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	e.read += len(b)
	return len(b), nil
}

// fails is a server that says text, and then nothing for a read that ends with err.
func fails(text string, err error) io.Reader {
	return io.MultiReader(strings.NewReader(text), iotest.ErrReader(err))
}

func TestExpect(t *testing.T) {
	for _, c := range []struct {
		name   string
		server io.Reader
		sent   string
		want   string // of the error; empty: none
	}{
		{"at once", strings.NewReader("+PONG\r\n"), "PING\r\n", ""},
		{"in pieces", iotest.OneByteReader(strings.NewReader("-x\r\n+PONG")), "PING\r\n", ""},
		{"another answer", fails("-ERR", os.ErrDeadlineExceeded), "PING\r\n", `health.expect wants "+PONG", the server said "-ERR"`},
		{"the end", strings.NewReader(""), "", `health.expect wants "+PONG", the server said ""`},
		{"a quoted password", strings.NewReader("-ERR 'hunter2' of 'me'"), `AUTH me "hunter2"`, `the server said "-ERR '***' of 'me'"`},
		{"too much", &endless{}, "", "the server said"},
		{"a reset", fails("-ERR", syscall.ECONNRESET), "", syscall.ECONNRESET.Error()},
	} {
		_, err := Expect(c.server, "+PONG", c.sent)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && errors.Is(err, context.DeadlineExceeded) == errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v is a timeout, or should be", c.name, err)
		}
		if e, ok := c.server.(*endless); ok && e.read > maxAnswer+4096 {
			t.Errorf("%d bytes were read", e.read)
		}
	}
}

func TestHear(t *testing.T) {
	for _, c := range []struct {
		name   string
		server io.Reader
		first  string
		err    error
	}{
		{"a greeting", strings.NewReader("hello"), "hello", nil},
		{"silence", iotest.ErrReader(os.ErrDeadlineExceeded), "", nil},
		{"the end", strings.NewReader(""), "", io.EOF},
		{"a long greeting", bytes.NewReader(make([]byte, 100)), strings.Repeat("\x00", 64), nil},
	} {
		if first, err := Hear(c.server); string(first) != c.first || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", c.name, first, err)
		}
	}
}
