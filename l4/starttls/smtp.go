package starttls

import (
	"fmt"
	"io"
	"strings"
)

const (
	smtpName = "smtp"
	// smtpEHLO has an address literal, as RFC 5321 §4.1.4 requires of a client without
	// a name of its own. The client's own EHLO follows under TLS.
	smtpEHLO = "EHLO [127.0.0.1]\r\n"
)

func smtp() Protocol {
	return Protocol{Name: smtpName, Upgrade: smtpUpgrade, Refuse: refuseWith("421 4.3.2 "), Quit: "QUIT\r\n"}
}

func smtpUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	banner, err := smtpBanner(&up)
	if err != nil {
		return nil, err
	}
	up.ifClosed, up.ifSilent = hintAnswerClosed, ""
	if err := smtpOffers(&up); err != nil {
		return nil, err
	}
	answer, err := smtpAsk(&up, "STARTTLS\r\n")
	if err != nil {
		return nil, err
	}
	if !answer.is("220") {
		return nil, smtpRefused("STARTTLS", answer, "its log has the cause, mostly a certificate that it cannot load")
	}
	return &Dialogue{Finish: replay(banner.text)}, nil
}

// smtpBanner reads the greeting. A transient refusal is passed on to the client.
// A permanent one becomes transient for the client: plaintext must not make its
// mail bounce.
func smtpBanner(up *leg) (*smtpReply, error) {
	banner, err := smtpRead(up)
	if err != nil {
		return nil, err
	}
	if banner.is("220") {
		return banner, nil
	}
	refused := smtpRefused("the connection", banner, "")
	refused.Busy = banner.is("4") // transient: RFC 5321, 4.2.1
	if banner.is("421") {
		refused.Reply = banner.text
	}
	return nil, refused
}

// smtpOffers asks for the server's extensions, and requires STARTTLS among them.
func smtpOffers(up *leg) error {
	answer, err := smtpAsk(up, smtpEHLO)
	if err != nil {
		return err
	}
	if !answer.is("250") {
		return smtpRefused("EHLO", answer, "")
	}
	for _, line := range strings.Split(string(answer.text), "\r\n")[1:] {
		if len(line) > 4 && strings.EqualFold(strings.TrimSpace(line[4:]), "STARTTLS") {
			return nil
		}
	}
	return &RefusedError{Protocol: smtpName, Got: got(answer.text), What: "the server does not offer STARTTLS",
		Advice: "enable it there (Postfix: smtpd_tls_security_level = encrypt and smtpd_tls_chain_files), or use its TLS port (465) without starttls"}
}

func smtpRefused(what string, answer *smtpReply, advice string) *RefusedError {
	return &RefusedError{Protocol: smtpName, Got: got(answer.text), Advice: advice,
		What: fmt.Sprintf("the server refused %s: %.200q", what, strings.TrimSpace(string(answer.last)))}
}

// smtpReply is one reply of a server (RFC 5321 §4.2), of one line or more.
type smtpReply struct {
	text []byte // all of it
	last []byte // the last line
}

func (r *smtpReply) is(code string) bool { return hasPrefixFold(r.text, code) }

func smtpAsk(up *leg, command string) (*smtpReply, error) {
	if err := up.send([]byte(command)); err != nil {
		return nil, err
	}
	return smtpRead(up)
}

// smtpRead reads one reply up to its last line, which has no hyphen after the
// code. All lines have the same code.
func smtpRead(up *leg) (*smtpReply, error) {
	var r smtpReply
	for {
		line, err := up.line(smtpName, "answered")
		if err != nil {
			return nil, err
		}
		if !isSMTPLine(line) || len(r.text) > 0 && string(line[:3]) != string(r.text[:3]) {
			return nil, unexpected(smtpName, "answered", line)
		}
		r.text, r.last = append(r.text, line...), line
		if len(r.text) > lineTextMax {
			return nil, tooLong(smtpName, r.text, lineTextMax)
		}
		if line[3] != '-' {
			return &r, nil
		}
	}
}

// isSMTPLine recognizes a code of three digits, and the character that may follow
// it.
func isSMTPLine(line []byte) bool {
	return len(line) >= 5 && line[0] >= '2' && line[0] <= '5' && isDigit(line[1]) && isDigit(line[2]) &&
		(line[3] == ' ' || line[3] == '-' || line[3] == '\r')
}
