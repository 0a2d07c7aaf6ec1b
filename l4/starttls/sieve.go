package starttls

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	sieveName     = "sieve"
	sieveStartTLS = "STARTTLS\r\n"
	sieveHint     = "enable TLS there (Dovecot: ssl = required); ManageSieve has no port with TLS at once"
)

func sieve() Protocol {
	return Protocol{Name: sieveName, Upgrade: sieveUpgrade, Refuse: sieveRefuse, Quit: "LOGOUT\r\n"}
}

// sieveUpgrade asks for TLS. The client gets nothing of the greeting: the server sends
// its capabilities again after TLS has begun (RFC 5804 §2.2).
func sieveUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	greeting, err := sieveRead(&up, "greeted")
	switch {
	case err != nil:
		return nil, err
	case !greeting.is("OK"):
		refused := sieveRefused("the connection", greeting, "")
		refused.Busy = greeting.is("BYE (TRYLATER")
		return nil, refused
	case !greeting.startTLS:
		return nil, &RefusedError{Protocol: sieveName, Got: got(greeting.last), What: "the server does not offer STARTTLS", Advice: sieveHint}
	}
	up.ifClosed, up.ifSilent = hintAnswerClosed, ""
	if err := up.send([]byte(sieveStartTLS)); err != nil {
		return nil, err
	}
	answer, err := sieveRead(&up, "answered STARTTLS")
	if err != nil {
		return nil, err
	}
	if !answer.is("OK") {
		return nil, sieveRefused("STARTTLS", answer, sieveHint)
	}
	return &Dialogue{}, nil
}

// sieveAnswer is one answer of a server (RFC 5804 §4): its last line, which begins with
// OK, NO or BYE, and whether a line before it was the capability STARTTLS.
type sieveAnswer struct {
	last     []byte
	startTLS bool
}

// is compares the beginning of the last line, of which a word is followed by a space or
// the end.
func (a *sieveAnswer) is(begin string) bool {
	return hasPrefixFold(a.last, begin) && (len(a.last) == len(begin) || !isLetter(a.last[len(begin)]))
}

// sieveRead reads lines up to the last one of an answer. A line whose string is a literal
// goes on behind it.
func sieveRead(up *leg, do string) (*sieveAnswer, error) {
	var a sieveAnswer
	for total := 0; total <= lineTextMax; {
		line, err := up.line(sieveName, do)
		if err != nil {
			return nil, err
		}
		first := len(line)
		for n, is := sieveLiteral(line); is; n, is = sieveLiteral(line) {
			if total+len(line)+n > lineTextMax {
				return nil, tooLong(sieveName, line, lineTextMax)
			}
			text := make([]byte, n)
			if err := up.readRest(text); err != nil {
				return nil, err
			}
			rest, err := up.line(sieveName, do)
			if err != nil {
				return nil, err
			}
			line = append(append(line, text...), rest...)
		}
		total += len(line)
		a.last = line
		switch {
		case a.is("OK"), a.is("NO"), a.is("BYE"):
			return &a, nil
		case line[0] != '"':
			return nil, unexpected(sieveName, do, line[:first])
		case strings.EqualFold(string(bytes.TrimSpace(line)), `"STARTTLS"`):
			a.startTLS = true
		}
	}
	return nil, tooLong(sieveName, a.last, lineTextMax)
}

// sieveLiteral returns the length of the literal that follows a line which ends in {n}.
func sieveLiteral(line []byte) (n int, is bool) {
	text, ok := bytes.CutSuffix(line, []byte("}\r\n"))
	at := bytes.LastIndexByte(text, '{')
	if !ok || at < 0 {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(string(text[at+1:]), "+"))
	return n, err == nil && n >= 0
}

func isLetter(b byte) bool { return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' }

func sieveRefused(what string, answer *sieveAnswer, advice string) *RefusedError {
	return &RefusedError{Protocol: sieveName, Got: got(answer.last), Advice: advice,
		What: fmt.Sprintf("the server refused %s: %.200q", what, bytes.TrimSpace(answer.last))}
}

// sieveRefuse sends a BYE in place of the greeting. Its text is a quoted string.
func sieveRefuse(downstream io.ReadWriter, why error) error {
	text := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(reason(why, lineReason))
	down := leg{side: Downstream, rw: downstream}
	return down.send([]byte("BYE (TRYLATER) \"" + text + "\"\r\n"))
}
