package starttls

import (
	"bytes"
	"fmt"
	"io"
)

const (
	nntpName     = "nntp"
	nntpStartTLS = "STARTTLS\r\n"
	nntpReader   = "MODE READER\r\n"
)

func nntp() Protocol {
	return Protocol{Name: nntpName, Upgrade: nntpUpgrade, Refuse: refuseWith("400 "), Quit: "QUIT\r\n"}
}

// nntpUpgrade asks for TLS. A server for peers that does not know STARTTLS may have it
// after MODE READER, which hands the connection over to a server for readers, with a
// greeting of its own (RFC 3977 §5.3).
func nntpUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	greeting, err := nntpGreeting(&up)
	if err != nil {
		return nil, err
	}
	up.ifClosed, up.ifSilent = hintAnswerClosed, ""
	answer, err := nntpAsk(&up, nntpStartTLS)
	if err == nil && hasPrefixFold(answer, "500") {
		if greeting, err = nntpAsk(&up, nntpReader); err == nil && !nntpGreets(greeting) {
			return nil, nntpRefused("STARTTLS, and MODE READER", greeting, nntpHint)
		}
		if err == nil {
			answer, err = nntpAsk(&up, nntpStartTLS)
		}
	}
	if err != nil {
		return nil, err
	}
	if !hasPrefixFold(answer, "382") {
		return nil, nntpRefused("STARTTLS", answer, nntpHint)
	}
	return &Dialogue{Finish: replay(greeting)}, nil
}

const nntpHint = "enable TLS there (INN: tlscertfile and tlskeyfile in inn.conf), or use its TLS port (563) without starttls"

// nntpGreeting reads the greeting: 200 and 201 are good; 400 is a refusal for now, and
// 502 one for good (RFC 3977 §5.1.1). Plaintext must not refuse a client for good.
func nntpGreeting(up *leg) ([]byte, error) {
	line, err := up.line(nntpName, "greeted")
	switch {
	case err != nil:
		return nil, err
	case nntpGreets(line):
		return line, nil
	case hasPrefixFold(line, "400 "):
		refused := nntpRefused("the connection", line, "")
		refused.Reply, refused.Busy = line, true
		return nil, refused
	case hasPrefixFold(line, "502 "):
		return nil, nntpRefused("the connection", line, "")
	}
	return nil, unexpected(nntpName, "greeted", line)
}

func nntpGreets(line []byte) bool {
	return len(line) > 3 && (hasPrefixFold(line, "200") || hasPrefixFold(line, "201")) && !isDigit(line[3])
}

func nntpAsk(up *leg, command string) ([]byte, error) {
	if err := up.send([]byte(command)); err != nil {
		return nil, err
	}
	return up.line(nntpName, "answered")
}

func nntpRefused(what string, answer []byte, advice string) *RefusedError {
	return &RefusedError{Protocol: nntpName, Got: got(answer), Advice: advice,
		What: fmt.Sprintf("the server refused %s: %.200q", what, bytes.TrimSpace(answer))}
}
