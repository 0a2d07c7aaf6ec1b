package starttls

import (
	"bytes"
	"fmt"
)

// Mends that several servers share.
const (
	mendNoTLS  = "the server speaks no TLS on this port: use its TLS port, or remove tls (forward: --plain)"
	mendDirect = "the server speaks TLS at once: remove starttls"
)

// identifyBytes is how many bytes are enough for Identify.
const identifyBytes = 5

// Identify says what a server is that did not speak TLS when we began TLS at
// once: what names its first bytes ("a MySQL or MariaDB greeting"), advice is the
// mend. Five bytes are enough, fewer may do. A server that closed without a byte
// (first is empty) is judged by its port only; then what is empty, and so is
// advice if TLS is usual on that port. It is a guess either way: for texts, never
// for decisions.
func Identify(first []byte, port uint16) (what, advice string) {
	if len(first) == 0 {
		return "", adviceForClose(port)
	}
	if what, advice = identifyBinary(first); what != "" {
		return what, advice
	}
	if what, advice = identifyText(first, port); what != "" {
		return what, advice
	}
	return fmt.Sprintf("no protocol known here (first bytes % x)", got(first)), adviceForPort(port)
}

// fits is the advice to use a STARTTLS protocol, implemented or not.
func fits(name string) string {
	if _, ok := Lookup(name); ok {
		return "set starttls: " + name + " (forward: --starttls " + name + ")"
	}
	return "starttls: " + name + " fits, which this version does not have yet"
}

// stranger is a server whose first bytes are none of the protocol that starttls
// names: what the protocol expected there is said with do.
func stranger(protocol, do string, first []byte) *RefusedError {
	what, advice := Identify(first, 0)
	switch {
	case len(first) > 0 && first[0] == 0x15:
		advice = mendDirect
	case advice == mendNoTLS:
		advice = "remove starttls; " + mendNoTLS
	case advice == "":
		advice = "check that the endpoint is the right port; if the server speaks TLS at once, remove starttls"
	}
	return &RefusedError{Protocol: protocol, Got: got(first), Advice: advice,
		What: fmt.Sprintf("the server %s with %q, which looks like %s", do, got(first), what)}
}

func identifyBinary(b []byte) (what, advice string) {
	switch {
	case isMySQL(b):
		return "a MySQL or MariaDB greeting", fits("mysql")
	case len(b) >= 3 && b[0] == 'E' && b[1] == 0 && b[2] == 0: // ErrorResponse shorter than 64 KiB
		return "a PostgreSQL error", fits("postgres")
	case isLDAP(b):
		return "an LDAP message", fits("ldap")
	case bytes.HasPrefix(b, []byte{0x15, 3}):
		return "a TLS alert", "the server speaks TLS and refused ours: its log says why"
	case bytes.HasPrefix(b, []byte{0x16, 3}):
		return "a TLS handshake", ""
	case bytes.HasPrefix(b, []byte{4, 1}):
		return "a Microsoft SQL Server answer", "its TLS is inside TDS packets, which this version does not have"
	}
	return "", ""
}

// IsMySQLGreeting says whether a server's first bytes are those of MySQL's or
// MariaDB's greeting, or of the error that comes instead. Five bytes are needed.
func IsMySQLGreeting(first []byte) bool { return isMySQL(first) }

// isMySQL knows the header of the first packet (3 bytes of length, the lowest
// first; sequence 0) and its first byte: protocol version 10, or ff for an error
// such as a blocked host. A greeting is never as long as 4 KiB.
func isMySQL(b []byte) bool {
	if len(b) < 5 || b[3] != 0 || b[4] != 0x0a && b[4] != 0xff {
		return false
	}
	n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	return n > 0 && n < 4096
}

// isLDAP knows an LDAPMessage (RFC 4511 §4.1.1): a SEQUENCE whose first element
// is an INTEGER; a length in long form pushes that element out of sight.
func isLDAP(b []byte) bool {
	if len(b) < 3 || b[0] != 0x30 {
		return false
	}
	return b[1] < 0x80 && b[2] == 0x02 || b[1] >= 0x81 && b[1] <= 0x84
}

func identifyText(b []byte, port uint16) (what, advice string) {
	for _, known := range []struct {
		prefix, what, advice string
	}{
		{"HTTP", "an HTTP answer", mendNoTLS},
		{"<html", "an HTTP answer", mendNoTLS},
		{"<HTML", "an HTTP answer", mendNoTLS},
		{"<!DOC", "an HTTP answer", mendNoTLS},
		{"SSH-", "an SSH greeting", "the server speaks SSH, which has no TLS: check the endpoint, or remove tls (forward: --plain)"},
		{"* OK", "an IMAP greeting", fits("imap")},
		{"* PRE", "an IMAP greeting", fits("imap")},
		{"* BYE", "an IMAP greeting", fits("imap")},
		{"+OK", "a POP3 greeting", fits("pop3")},
		{"<?xml", "an XMPP stream", fits("xmpp")},
		{"<stre", "an XMPP stream", fits("xmpp")},
		{"AMQP", "an AMQP header", mendNoTLS},
		{"INFO ", "a NATS greeting", mendNoTLS},
		{"ERROR", "a memcached error", mendNoTLS},
	} {
		if bytes.HasPrefix(b, []byte(known.prefix)) {
			return known.what, known.advice
		}
	}
	switch {
	case isErrorLine(b) && port == 110:
		return "a POP3 error", fits("pop3")
	case isErrorLine(b):
		return "a Redis error", mendNoTLS
	case isReplyCode(b) && port == 21:
		return "an FTP greeting", "FTP over TLS is not supported"
	case isReplyCode(b):
		return "an SMTP (or FTP) greeting", fits("smtp")
	}
	return "", ""
}

// isErrorLine knows "-ERR", "-DENIED" and their like, of Redis and POP3.
func isErrorLine(b []byte) bool {
	return len(b) >= 2 && b[0] == '-' && b[1] >= 'A' && b[1] <= 'Z'
}

// isReplyCode knows the three digits that begin an SMTP reply (RFC 5321 §4.2):
// 220, and the refusals 421 and 5yz.
func isReplyCode(b []byte) bool {
	if len(b) < 4 || b[3] != ' ' && b[3] != '-' {
		return false
	}
	digits := string(b[:3])
	return digits == "220" || digits == "421" || b[0] == '5' && isDigit(b[1]) && isDigit(b[2])
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func adviceForPort(port uint16) string {
	switch port {
	case 5432, 6432:
		return ifPort(port, "PostgreSQL", fits("postgres"))
	case 3306:
		return ifPort(port, "MySQL", fits("mysql"))
	case 389:
		return ifPort(port, "LDAP", fits("ldap"))
	case 25, 587:
		return ifPort(port, "SMTP", fits("smtp"))
	case 143:
		return ifPort(port, "IMAP", fits("imap"))
	case 110:
		return ifPort(port, "POP3", fits("pop3"))
	case 5222, 5269:
		return ifPort(port, "XMPP", fits("xmpp"))
	case 6379:
		return ifPort(port, "Redis", mendNoTLS)
	case 80, 8080:
		return ifPort(port, "HTTP", mendNoTLS)
	case 5672:
		return ifPort(port, "AMQP", mendNoTLS)
	case 1883:
		return ifPort(port, "MQTT", mendNoTLS)
	case 1433:
		return ifPort(port, "Microsoft SQL Server", "its TLS is inside TDS packets, which this version does not have")
	}
	return ""
}

// adviceForClose is for a server that closed on our ClientHello.
func adviceForClose(port uint16) string {
	switch port {
	case 0, 443, 465, 636, 853, 989, 990, 993, 995, 5223, 5671, 6380, 8443, 8883:
		return "" // a unix socket, or a port on which TLS is usual
	}
	if advice := adviceForPort(port); advice != "" {
		return advice
	}
	return "PostgreSQL and LDAP servers end a connection so: if it is one, " + fits("postgres") + " or " + fits("ldap")
}

func ifPort(port uint16, protocol, advice string) string {
	return fmt.Sprintf("port %d is usually %s without TLS: if it is here, %s", port, protocol, advice)
}

// identifyByte is Identify for a server that was asked for TLS in another
// protocol and answered with a byte that the protocol does not have. More is not
// read: it would prolong the caller's wait.
func identifyByte(b byte) (what, advice string) {
	const wrong = "remove starttls; "
	switch b {
	case 0x15:
		return "a TLS alert", mendDirect
	case 'H':
		return "an HTTP answer", wrong + mendNoTLS
	case '2':
		return "an SMTP or FTP greeting", "for SMTP, " + fits("smtp")
	case '*':
		return "an IMAP greeting", fits("imap")
	case '+':
		return "a POP3 greeting", fits("pop3")
	case '-':
		return "a Redis error", wrong + mendNoTLS
	case '<':
		return "an XMPP stream", fits("xmpp")
	case 0x30:
		return "an LDAP message", fits("ldap")
	}
	// A MySQL greeting begins with the low byte of its length: 74 for "8.0.36",
	// up to about 120 for MariaDB's longest version strings.
	if b >= 60 && b <= 126 {
		return "a MySQL or MariaDB greeting", "the server may greet like MySQL: " + fits("mysql")
	}
	return "", "check that the endpoint is the right port; if the server speaks TLS at once, remove starttls"
}
