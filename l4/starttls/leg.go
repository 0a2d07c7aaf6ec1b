package starttls

import (
	"errors"
	"fmt"
	"io"
)

// leg is one of the connections of a dialogue, and what it has carried. Every
// error of its methods is a *SideError.
type leg struct {
	side      Side
	rw        io.ReadWriter
	answered  bool   // it has sent a byte
	forwarded int64  // bytes of the other side written to it
	ifClosed  string // the hint if it closes now
	ifSilent  string // the hint if it sends nothing now
}

// read fills buf with the beginning of a message, and reads no byte beyond. A
// close or a timeout here gets the leg's hint.
func (l *leg) read(buf []byte) error {
	err := l.fill(buf)
	if err == nil {
		return nil
	}
	e := l.error("read", err)
	switch {
	case isTimeout(err):
		e.Hint = l.ifSilent
	case l.ifCut(err) != "":
		e.Hint = l.ifCut(err)
	default:
		e.Hint = l.ifClosed
	}
	return e
}

// ifCut returns the hint for a client that closed within a message.
func (l *leg) ifCut(err error) string {
	if l.side == Downstream && err == io.ErrUnexpectedEOF {
		return hintCut
	}
	return ""
}

const hintCut = "the client left inside its first message: check that it speaks this protocol, and its own log for why it gave up"

// readRest fills buf with the rest of a message.
func (l *leg) readRest(buf []byte) error {
	err := l.fill(buf)
	if err == nil {
		return nil
	}
	if err == io.EOF { // io.ReadFull returns it for an end before the first byte of buf
		err = io.ErrUnexpectedEOF
	}
	e := l.error("read", err)
	e.Hint = l.ifCut(err)
	return e
}

// head reads the first n bytes of a message.
func (l *leg) head(n int) ([]byte, error) {
	b := make([]byte, n)
	err := l.read(b[:1])
	if err == nil {
		err = l.readRest(b[1:])
	}
	return b, err
}

func (l *leg) fill(buf []byte) error {
	n, err := io.ReadFull(l.rw, buf)
	l.answered = l.answered || n > 0
	return err
}

// more reads on after first, up to the five bytes that Identify needs. Its errors
// do not matter: it serves an error message.
func (l *leg) more(first []byte) []byte {
	if len(first) >= identifyBytes {
		return first
	}
	all := append(make([]byte, 0, identifyBytes), first...)
	n, _ := io.ReadFull(l.rw, all[len(all):identifyBytes])
	return all[:len(all)+n]
}

// send writes our own bytes.
func (l *leg) send(b []byte) error {
	_, err := l.write(b)
	return err
}

// forward writes bytes of the other side.
func (l *leg) forward(b []byte) error {
	n, err := l.write(b)
	l.forwarded += int64(n)
	return err
}

func (l *leg) write(b []byte) (int, error) {
	n, err := l.rw.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == nil {
		return n, nil
	}
	return n, l.error("write", l.lastWord(err))
}

// lastWord adds to a failed write the error that the other end sent before it
// closed: with TLS 1.3 the server's refusal of our certificate is still unread,
// while the write only reports a broken connection. After a failed write the read
// does not wait for long.
func (l *leg) lastWord(write error) error {
	if l.side != Upstream || isTimeout(write) {
		return write
	}
	_, err := l.rw.Read(make([]byte, 1))
	if err == nil || errors.Is(err, io.EOF) || isTimeout(err) {
		return write
	}
	return fmt.Errorf("%w (after %w)", err, write) // in this order, for errors.As
}

func (l *leg) error(op string, err error) *SideError {
	return &SideError{Side: l.side, Op: op, Err: err, Clean: !l.answered}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
