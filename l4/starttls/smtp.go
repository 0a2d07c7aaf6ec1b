package starttls

import (
	"fmt"
	"io"
	"strings"
)

const (
	smtpName = "smtp"
	lmtpName = "lmtp"
	// smtpOwnName is an address literal, as RFC 5321 §4.1.4 requires of a client without
	// a name of its own. The client's own EHLO follows under TLS.
	smtpOwnName = "[127.0.0.1]"
)

// The advice for a server that does not offer STARTTLS.
const (
	smtpHint = "enable it there (Postfix: smtpd_tls_security_level = encrypt and smtpd_tls_chain_files), or use its TLS port (465) without starttls"
	lmtpHint = "enable it there (Dovecot: ssl = required), or use its TLS port without starttls"
)

func smtp() Protocol {
	return smtpDialogue{name: smtpName, verb: "EHLO", host: smtpOwnName, hint: smtpHint}.protocol()
}

// lmtp is SMTP with another greeting of the client (RFC 2033 §4.1).
func lmtp() Protocol {
	return smtpDialogue{name: lmtpName, verb: "LHLO", host: smtpOwnName, hint: lmtpHint}.protocol()
}

// smtpDialogue is what differs between SMTP and LMTP, and what is configured.
type smtpDialogue struct{ name, verb, host, hint string }

func (d smtpDialogue) protocol() Protocol {
	return Protocol{Name: d.name, Upgrade: d.upgrade, Refuse: refuseWith("421 4.3.2 "), Quit: "QUIT\r\n", with: d.with}
}

func (d smtpDialogue) with(o Options) (Protocol, error) {
	switch {
	case o.Direct:
		return Protocol{}, errNotDirect
	case o.EHLOName != "":
		if err := checkEHLOName(o.EHLOName); err != nil {
			return Protocol{}, err
		}
		d.host = o.EHLOName
	}
	return d.protocol(), nil
}

// checkEHLOName accepts the characters of a domain and of an address literal (RFC 5321
// §4.1.3). The name is part of a line, so it must not end that line.
func checkEHLOName(name string) error {
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:[]", r)) {
			return fmt.Errorf("ehlo_name: %.100q is no host name; write one like mail.example.com, or an address like [192.0.2.1]", name)
		}
	}
	if len(name) > 255 {
		return fmt.Errorf("ehlo_name: %d characters; the most is 255", len(name))
	}
	return nil
}

func (d smtpDialogue) upgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream, ifClosed: hintGreetingClosed, ifSilent: hintGreetingSilent}
	banner, err := d.banner(&up)
	if err != nil {
		return nil, err
	}
	up.ifClosed, up.ifSilent = hintAnswerClosed, ""
	if err := d.offers(&up, banner); err != nil {
		return nil, err
	}
	answer, err := d.ask(&up, "STARTTLS\r\n")
	if err != nil {
		return nil, err
	}
	if !answer.is("220") {
		return nil, d.refused("STARTTLS", answer, "its log has the cause, mostly a certificate that it cannot load")
	}
	return &Dialogue{Finish: replay(banner.text)}, nil
}

// banner reads the greeting. A transient refusal is passed on to the client.
// A permanent one becomes transient for the client: plaintext must not make its
// mail bounce.
func (d smtpDialogue) banner(up *leg) (*smtpReply, error) {
	banner, err := d.read(up)
	if err != nil {
		return nil, err
	}
	if banner.is("220") {
		return banner, nil
	}
	refused := d.refused("the connection", banner, "")
	refused.Busy = banner.is("4") // transient: RFC 5321, 4.2.1
	if banner.is("421") {
		refused.Reply = banner.text
	}
	return nil, refused
}

// offers asks for the server's extensions, and requires STARTTLS among them.
func (d smtpDialogue) offers(up *leg, banner *smtpReply) error {
	answer, err := d.ask(up, d.verb+" "+d.host+"\r\n")
	if err != nil {
		return err
	}
	if !answer.is("250") {
		return d.refused(d.verb, answer, d.isAnother(banner, answer))
	}
	for _, line := range strings.Split(string(answer.text), "\r\n")[1:] {
		if len(line) > 4 && strings.EqualFold(strings.TrimSpace(line[4:]), "STARTTLS") {
			return nil
		}
	}
	return &RefusedError{Protocol: d.name, Got: got(answer.text), What: "the server does not offer STARTTLS", Advice: d.hint}
}

// isAnother is the advice for a server that does not know our EHLO or LHLO. FTP's
// greeting is the same as SMTP's.
func (d smtpDialogue) isAnother(banner, answer *smtpReply) string {
	text := strings.ToUpper(string(banner.text) + string(answer.text))
	switch {
	case d.name == lmtpName && strings.Contains(text, "SMTP"):
		return "the server speaks SMTP: " + fits(smtpName)
	case d.name == smtpName && (strings.Contains(text, "LMTP") || strings.Contains(text, "LHLO")):
		return "the server speaks LMTP: " + fits(lmtpName)
	case strings.Contains(text, "SMTP") || strings.Contains(text, "LMTP"):
		return ""
	}
	return "if the server speaks LMTP, " + fits(lmtpName) + "; if it speaks FTP: " + hintFTP
}

func (d smtpDialogue) refused(what string, answer *smtpReply, advice string) *RefusedError {
	return &RefusedError{Protocol: d.name, Got: got(answer.text), Advice: advice,
		What: fmt.Sprintf("the server refused %s: %.200q", what, strings.TrimSpace(string(answer.last)))}
}

// smtpReply is one reply of a server (RFC 5321 §4.2), of one line or more.
type smtpReply struct {
	text []byte // all of it
	last []byte // the last line
}

func (r *smtpReply) is(code string) bool { return hasPrefixFold(r.text, code) }

func (d smtpDialogue) ask(up *leg, command string) (*smtpReply, error) {
	if err := up.send([]byte(command)); err != nil {
		return nil, err
	}
	return d.read(up)
}

// read reads one reply up to its last line, which has no hyphen after the
// code. All lines have the same code.
func (d smtpDialogue) read(up *leg) (*smtpReply, error) {
	var r smtpReply
	for {
		line, err := up.line(d.name, "answered")
		if err != nil {
			return nil, err
		}
		if !isSMTPLine(line) || len(r.text) > 0 && string(line[:3]) != string(r.text[:3]) {
			return nil, unexpected(d.name, "answered", line)
		}
		r.text, r.last = append(r.text, line...), line
		if len(r.text) > lineTextMax {
			return nil, tooLong(d.name, r.text, lineTextMax)
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
