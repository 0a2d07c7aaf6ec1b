package starttls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Bounds of the line protocols. SMTP, IMAP and POP3 allow between 512 and 8192 bytes
// a line; no server's greeting or list of extensions comes near these bounds.
const (
	lineMax     = 4 << 10
	lineTextMax = 32 << 10 // of all lines of one answer
	lineReason  = 400      // of our own reason: a POP3 or SMTP line has 512
)

// line reads one line with its CR LF, byte by byte so that no byte behind it is
// read. It returns a *RefusedError for anything but one line of text: a lone CR
// or LF could end the line for one side and not for the other. Do is the verb of
// the message, as of unexpected.
func (l *leg) line(protocol, do string) ([]byte, error) {
	return l.lineOf(lineMax, protocol, do)
}

// lineOf is line with another bound than lineMax.
func (l *leg) lineOf(limit int, protocol, do string) ([]byte, error) {
	line := make([]byte, 0, 128)
	for read := l.read; len(line) < limit; read = l.readRest {
		line = append(line, 0)
		n := len(line)
		if err := read(line[n-1:]); err != nil {
			return nil, err
		}
		last, afterCR := line[n-1], n > 1 && line[n-2] == '\r'
		switch {
		case afterCR && last == '\n':
			return line, nil
		case afterCR, last < ' ' && last != '\r' && last != '\t', last == 0x7f:
			if n < identifyBytes {
				return nil, unexpected(protocol, do, l.more(line))
			}
			return nil, &RefusedError{Protocol: protocol, Got: got(line),
				What: fmt.Sprintf("the server sent the byte %#02x in a line", last)}
		}
	}
	return nil, tooLong(protocol, line, limit)
}

func tooLong(protocol string, text []byte, limit int) *RefusedError {
	return &RefusedError{Protocol: protocol, Got: got(text),
		What: fmt.Sprintf("the server sent an answer of more than %d bytes", limit)}
}

// hasPrefixFold compares the beginning of a line, ignoring case.
func hasPrefixFold(line []byte, prefix string) bool {
	return len(line) >= len(prefix) && bytes.EqualFold(line[:len(prefix)], []byte(prefix))
}

// replay passes the server's greeting on to the client after TLS has begun.
func replay(greeting []byte) Part {
	return func(downstream, _ io.ReadWriter) (Result, error) {
		down := leg{side: Downstream, rw: downstream}
		err := down.forward(greeting)
		return Result{Down: down.forwarded}, err
	}
}

// refuseWith tells a client that waits for a greeting why there is none: with the
// server's own refusal, else in a line that begins with prefix.
func refuseWith(prefix string) func(io.ReadWriter, error) error {
	return func(downstream io.ReadWriter, why error) error {
		down := leg{side: Downstream, rw: downstream}
		return down.send(replyOr(why, []byte(prefix+reason(why, lineReason)+"\r\n")))
	}
}

// replyOr returns the server's own refusal if why has one, else ours.
func replyOr(why error, ours []byte) []byte {
	var refused *RefusedError
	if errors.As(why, &refused) && len(refused.Reply) > 0 {
		return refused.Reply
	}
	return ours
}

// Hints shared by the protocols in which the server speaks first.
const (
	hintGreetingClosed = "the server closed without a greeting: it refuses connections from here, or is another service"
	hintGreetingSilent = "the server sent no greeting: if it speaks TLS at once, remove starttls; if it is PostgreSQL, LDAP or XMPP, set starttls to that"
	hintAnswerClosed   = "the server closed instead of answering"
)
