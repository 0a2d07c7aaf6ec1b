package starttls

import (
	"bytes"
	"fmt"
)

// Hints that several servers share.
const (
	hintNoTLS  = "the server speaks no TLS on this port: use its TLS port, or remove tls (forward: --plain)"
	hintDirect = "the server speaks TLS at once: remove starttls"
	hintFTP    = "FTP over TLS (AUTH TLS) is not supported, because each transfer has a connection of its own, to a port that the server names in the dialogue; " +
		"let the client do its TLS itself, or use SFTP"
)

// Unsupported says why a protocol that has a request for TLS is none of Names; empty if
// there is nothing to say about the name.
func Unsupported(name string) string {
	if name == "ftp" {
		return hintFTP
	}
	return ""
}

// identifyBytes is how many bytes suffice for Identify.
const identifyBytes = 5

// Identify guesses the protocol of a server that did not answer our ClientHello
// with TLS. What describes its first bytes ("a MySQL or MariaDB greeting"),
// advice says how to fix it. Five bytes suffice, fewer may. If the server closed
// without a byte (first is empty), only its port counts; then what is empty, and
// so is advice if TLS is usual on that port. Use the guess for texts, never for
// decisions.
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

// unexpected is the error for a server whose first bytes are not of the protocol
// that starttls names. Do is the verb of the message: the server greeted,
// answered, ….
func unexpected(protocol, do string, first []byte) *RefusedError {
	what, advice := Identify(first, 0)
	switch {
	case len(first) > 0 && first[0] == 0x15:
		advice = hintDirect
	case advice == hintNoTLS:
		advice = "remove starttls; " + hintNoTLS
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

// IsMySQLGreeting reports whether a server's first bytes are those of MySQL's or
// MariaDB's greeting, or of the error in its place. Five bytes are needed.
func IsMySQLGreeting(first []byte) bool { return isMySQL(first) }

// isMySQL recognizes the header of the first packet (3 bytes of length, the
// lowest first; sequence 0) and its first byte: protocol version 10, or ff for an
// error such as a blocked host. A greeting is always shorter than 4 KiB.
func isMySQL(b []byte) bool {
	if len(b) < 5 || b[3] != 0 || b[4] != 0x0a && b[4] != 0xff {
		return false
	}
	n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	return n > 0 && n < 4096
}

// isLDAP recognizes an LDAPMessage (RFC 4511 §4.1.1): a SEQUENCE whose first
// element is an INTEGER. If the length has the long form, that element is not
// within the first bytes.
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
		{"HTTP", "an HTTP answer", hintNoTLS},
		{"<html", "an HTTP answer", hintNoTLS},
		{"<HTML", "an HTTP answer", hintNoTLS},
		{"<!DOC", "an HTTP answer", hintNoTLS},
		{"SSH-", "an SSH greeting", "the server speaks SSH, which has no TLS: check the endpoint, or remove tls (forward: --plain)"},
		{"* OK", "an IMAP greeting", fits("imap")},
		{"* PRE", "an IMAP greeting", fits("imap")},
		{"* BYE", "an IMAP greeting", fits("imap")},
		{"+OK", "a POP3 greeting", fits("pop3")},
		{"<?xml", "an XMPP stream", fits("xmpp")},
		{"<stre", "an XMPP stream", fits("xmpp")},
		{"AMQP", "an AMQP header", hintNoTLS},
		{"INFO ", "a NATS greeting", fits("nats")},
		{"BYE \"", "a ManageSieve greeting", fits("sieve")}, // in place of a greeting: RFC 5804, 1.2
		{"\"IMPL", "a ManageSieve greeting", fits("sieve")},
		{"ERROR", "a memcached error", hintNoTLS},
	} {
		if bytes.HasPrefix(b, []byte(known.prefix)) {
			return known.what, known.advice
		}
	}
	switch {
	case isErrorLine(b) && port == 110:
		return "a POP3 error", fits("pop3")
	case isErrorLine(b):
		return "a Redis error", hintNoTLS
	case isReplyCode(b) && port == 21:
		return "an FTP greeting", hintFTP
	case isReplyCode(b) && port == 24:
		return "an LMTP greeting", fits("lmtp")
	case isReplyCode(b):
		return "an SMTP (or FTP) greeting", fits("smtp") + "; LMTP has starttls: lmtp"
	case isNNTP(b):
		return "an NNTP greeting", fits("nntp")
	}
	return "", ""
}

// isErrorLine recognizes "-ERR", "-DENIED" and the like, of Redis and POP3.
func isErrorLine(b []byte) bool {
	return len(b) >= 2 && b[0] == '-' && b[1] >= 'A' && b[1] <= 'Z'
}

// isReplyCode recognizes the three digits that begin an SMTP reply (RFC 5321
// §4.2): 220, and the refusals 421 and 5yz.
func isReplyCode(b []byte) bool {
	if len(b) < 4 || b[3] != ' ' && b[3] != '-' {
		return false
	}
	digits := string(b[:3])
	return digits == "220" || digits == "421" || b[0] == '5' && isDigit(b[1]) && isDigit(b[2])
}

// isNNTP recognizes the greetings of an NNTP server, and its refusal (RFC 3977 §5.1.1).
func isNNTP(b []byte) bool {
	return bytes.HasPrefix(b, []byte("200 ")) || bytes.HasPrefix(b, []byte("201 ")) || bytes.HasPrefix(b, []byte("400 "))
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
	case 24:
		return ifPort(port, "LMTP", fits("lmtp"))
	case 119:
		return ifPort(port, "NNTP", fits("nntp"))
	case 4190:
		return ifPort(port, "ManageSieve", fits("sieve"))
	case 4222:
		return ifPort(port, "NATS", fits("nats"))
	case 5222, 5269:
		return ifPort(port, "XMPP", fits("xmpp"))
	case 6379:
		return ifPort(port, "Redis", hintNoTLS)
	case 80, 8080:
		return ifPort(port, "HTTP", hintNoTLS)
	case 5672:
		return ifPort(port, "AMQP", hintNoTLS)
	case 1883:
		return ifPort(port, "MQTT", hintNoTLS)
	case 1433:
		return ifPort(port, "Microsoft SQL Server", "its TLS is inside TDS packets, which this version does not have")
	}
	return ""
}

// adviceForClose is the advice for a server that closed after our ClientHello.
func adviceForClose(port uint16) string {
	switch port {
	case 0, 443, 465, 563, 636, 853, 989, 990, 993, 995, 5223, 5671, 6380, 8443, 8883:
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

// identifyByte is Identify for a server that answered a request for TLS with a
// byte that the protocol does not have. No more is read, because that would
// prolong the caller's wait.
func identifyByte(b byte) (what, advice string) {
	const wrong = "remove starttls; "
	switch b {
	case 0x15:
		return "a TLS alert", hintDirect
	case 'H':
		return "an HTTP answer", wrong + hintNoTLS
	case '2':
		return "an SMTP or FTP greeting", "for SMTP, " + fits("smtp")
	case '*':
		return "an IMAP greeting", fits("imap")
	case '+':
		return "a POP3 greeting", fits("pop3")
	case '-':
		return "a Redis error", wrong + hintNoTLS
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
