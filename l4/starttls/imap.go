package starttls

import (
	"bytes"
	"fmt"
	"io"
)

const (
	imapName     = "imap"
	imapStartTLS = "A1 STARTTLS\r\n"
	imapTag      = "A1 "
	// imapMessagesMax bounds the untagged answers before the tagged one.
	imapMessagesMax = 32
)

func imap() Protocol {
	return Protocol{Name: imapName, Upgrade: imapUpgrade, Refuse: refuseWith("* BYE "), Quit: "A2 LOGOUT\r\n"}
}

func imapUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	greeting, err := imapGreeting(&up)
	if err != nil {
		return nil, err
	}
	up.ifClosed, up.ifSilent = hintAnswerClosed, ""
	if err := up.send([]byte(imapStartTLS)); err != nil {
		return nil, err
	}
	if err := imapAnswer(&up); err != nil {
		return nil, err
	}
	return &Dialogue{Finish: replay(greeting)}, nil
}

// imapGreeting reads the greeting and returns the one for the client. It refuses
// PREAUTH: STARTTLS is not possible after it (RFC 9051 §6.2.1), and a session
// that began in plaintext must not continue as if it were protected
// (CVE-2020-12398).
func imapGreeting(up *leg) ([]byte, error) {
	line, err := up.line(imapName, "greeted")
	switch {
	case err != nil:
		return nil, err
	case hasPrefixFold(line, "* OK "), hasPrefixFold(line, "* OK\r"):
		return imapStripCode(line)
	case hasPrefixFold(line, "* BYE"):
		return nil, &RefusedError{Protocol: imapName, Got: got(line),
			Busy: hasPrefixFold(line, "* BYE [UNAVAILABLE]") || hasPrefixFold(line, "* BYE [LIMIT]"), // RFC 5530, 3
			What: fmt.Sprintf("the server refused the connection: %.200q", bytes.TrimSpace(line))}
	case hasPrefixFold(line, "* PREAUTH"):
		return nil, &RefusedError{Protocol: imapName, Got: got(line),
			What:   "the server greeted with PREAUTH, after which TLS cannot begin",
			Advice: "let it ask for a login on this port, or use its TLS port (993) without starttls"}
	}
	return nil, unexpected(imapName, "greeted", line)
}

// imapStripCode removes the response code from a greeting. CAPABILITY lists what
// the server offers before TLS (STARTTLS, LOGINDISABLED), which does not apply to
// the client. Clients act upon ALERT and REFERRAL, which an attacker could have
// inserted.
func imapStripCode(line []byte) ([]byte, error) {
	const ok = "* OK "
	if !bytes.HasPrefix(line[min(len(ok), len(line)):], []byte("[")) {
		return line, nil
	}
	_, text, found := bytes.Cut(line, []byte("]"))
	if !found {
		return nil, &RefusedError{Protocol: imapName, Got: got(line), What: "the server greeted with a response code that has no end"}
	}
	text = bytes.TrimLeft(text, " [")
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("ready\r\n") // the grammar requires some text
	}
	return append([]byte(ok), text...), nil
}

// imapAnswer reads up to the tagged answer to STARTTLS. It drops the untagged
// lines before it, which were sent in plaintext.
func imapAnswer(up *leg) error {
	for range imapMessagesMax {
		line, err := up.line(imapName, "answered")
		switch {
		case err != nil:
			return err
		case hasPrefixFold(line, imapTag+"OK"):
			return nil
		case hasPrefixFold(line, imapTag), hasPrefixFold(line, "* BYE"):
			return &RefusedError{Protocol: imapName, Got: got(line),
				What:   fmt.Sprintf("the server refused STARTTLS: %.200q", bytes.TrimSpace(line)),
				Advice: "enable TLS there (Dovecot: ssl = required), or use its TLS port (993) without starttls"}
		case !hasPrefixFold(line, "* "):
			return unexpected(imapName, "answered STARTTLS", line)
		}
	}
	return &RefusedError{Protocol: imapName, What: fmt.Sprintf("the server sent %d untagged lines and no answer to STARTTLS", imapMessagesMax)}
}
