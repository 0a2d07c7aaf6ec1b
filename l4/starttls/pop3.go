package starttls

import (
	"bytes"
	"fmt"
	"io"
)

const pop3Name = "pop3"

func pop3() Protocol {
	return Protocol{Name: pop3Name, Upgrade: pop3Upgrade, Refuse: refuseWith("-ERR [SYS/TEMP] "), Quit: "QUIT\r\n"}
}

func pop3Upgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	greeting, err := up.line(pop3Name, "greeted")
	if err != nil {
		return nil, err
	}
	if hasPrefixFold(greeting, "-ERR") {
		refused := pop3Refused("the connection", greeting, "")
		refused.Reply = greeting
		refused.Busy = hasPrefixFold(greeting, "-ERR [SYS/TEMP]") // RFC 3206, 4
		return nil, refused
	}
	if !hasPrefixFold(greeting, "+OK") {
		return nil, unexpected(pop3Name, "greeted", greeting)
	}
	up.ifClosed, up.ifSilent = hintAnswerClosed, ""
	if err := up.send([]byte("STLS\r\n")); err != nil {
		return nil, err
	}
	answer, err := up.line(pop3Name, "answered STLS")
	if err != nil {
		return nil, err
	}
	if !hasPrefixFold(answer, "+OK") {
		return nil, pop3Refused("STLS", answer, "enable TLS there (Dovecot: ssl = required), or use its TLS port (995) without starttls")
	}
	return &Dialogue{Finish: replay(greeting)}, nil
}

func pop3Refused(what string, answer []byte, advice string) *RefusedError {
	return &RefusedError{Protocol: pop3Name, Got: got(answer), Advice: advice,
		What: fmt.Sprintf("the server refused %s: %.200q", what, bytes.TrimSpace(answer))}
}
