package starttls

import (
	"fmt"
	"io"
)

const (
	ldapName = "ldap"
	// ldapStartTLS is an LDAPMessage with ID 1 and the ExtendedRequest
	// 1.3.6.1.4.1.1466.20037 (RFC 4511 §4.14.1).
	ldapStartTLS = "\x30\x1d\x02\x01\x01\x77\x18\x80\x16" + "1.3.6.1.4.1.1466.20037"
	// ldapUnbind is an UnbindRequest with ID 2 (RFC 4511 §4.3).
	ldapUnbind = "\x30\x05\x02\x01\x02\x42\x00"
	// ldapMessageMax bounds a message before TLS, and the first message of a refused
	// client: a bind with a Kerberos ticket has less than 64 KiB.
	ldapMessageMax = 64 << 10
	ldapReasonMax  = 1000
)

// Tags of BER elements (RFC 4511, appendix B).
const (
	berInteger   = 0x02
	berString    = 0x04
	berEnum      = 0x0a
	berSequence  = 0x30
	ldapExtended = 0x78 // ExtendedResponse
)

// ldapAnswers has the tags of the responses to requests that have one.
var ldapAnswers = map[byte]byte{
	0x60: 0x61, // bind
	0x63: 0x65, // search
	0x66: 0x67, // modify
	0x68: 0x69, // add
	0x4a: 0x6b, // delete
	0x6c: 0x6d, // modify DN
	0x6e: 0x6f, // compare
	0x77: ldapExtended,
}

// Result codes (RFC 4511, 4.1.9).
const (
	ldapBusy        = 51
	ldapUnavailable = 52
)

func ldap() Protocol {
	return Protocol{Name: ldapName, Upgrade: ldapUpgrade, Refuse: ldapRefuse, Quit: ldapUnbind}
}

func ldapUpgrade(upstream io.ReadWriter) (*Dialogue, error) {
	up := leg{side: Upstream, rw: upstream,
		ifClosed: "the server closed instead of answering StartTLS: it is no LDAP server, or speaks TLS at once (then remove starttls)"}
	if err := up.send([]byte(ldapStartTLS)); err != nil {
		return nil, err
	}
	msg, err := ldapRead(&up)
	if err != nil {
		return nil, err
	}
	if msg.body == nil {
		return nil, unexpected(ldapName, "answered StartTLS", msg.head)
	}
	if err := ldapCheck(msg.body); err != nil {
		return nil, err
	}
	return &Dialogue{}, nil
}

// ldapMessage is one LDAPMessage as read.
type ldapMessage struct {
	head []byte // tag and length, or the bytes read in their place
	body []byte // the content; nil if head is not that of an LDAPMessage
}

// ldapRead reads one LDAPMessage and no byte beyond it.
func ldapRead(l *leg) (ldapMessage, error) {
	head := make([]byte, 2, 6)
	if err := l.read(head[:1]); err != nil {
		return ldapMessage{}, err
	}
	if head[0] != berSequence {
		return ldapMessage{head: l.more(head[:1])}, nil
	}
	if err := l.readRest(head[1:]); err != nil {
		return ldapMessage{}, err
	}
	size := int(head[1])
	if n := int(head[1]) - 0x80; n >= 0 { // the long form: n bytes of length follow
		if n == 0 || n > 4 {
			return ldapMessage{head: head}, nil
		}
		head = head[:2+n]
		if err := l.readRest(head[2:]); err != nil {
			return ldapMessage{}, err
		}
		size = 0
		for _, b := range head[2:] {
			size = size<<8 | int(b)
		}
	}
	if size < 0 || size > ldapMessageMax { // negative where int has 32 bits
		return ldapMessage{head: head}, nil
	}
	body := make([]byte, size)
	if err := l.readRest(body); err != nil {
		return ldapMessage{}, err
	}
	return ldapMessage{head, body}, nil
}

// ldapCheck returns nil for an ExtendedResponse to message 1 with result 0.
func ldapCheck(body []byte) error {
	id, rest, ok := ber(body, berInteger)
	response, _, ok2 := ber(rest, ldapExtended)
	code, rest, ok3 := ber(response, berEnum)
	_, rest, ok4 := ber(rest, berString) // matchedDN
	text, _, ok5 := ber(rest, berString)
	if !ok || !ok2 || !ok3 || !ok4 || !ok5 || len(code) != 1 {
		return &RefusedError{Protocol: ldapName, Got: got(body), What: "the server answered StartTLS with something else",
			Advice: "check that the endpoint is an LDAP server"}
	}
	if len(id) == 1 && id[0] == 1 && code[0] == 0 {
		return nil
	}
	return &RefusedError{Protocol: ldapName, Got: got(body), Busy: code[0] == ldapBusy,
		What:   fmt.Sprintf("the server refused StartTLS: result %d %.200q", code[0], text),
		Advice: "let it have a certificate (slapd: TLSCertificateFile, TLSCertificateKeyFile), or use its TLS port (636) without starttls"}
}

// ber cuts the first element off b, which must have that tag.
func ber(b []byte, tag byte) (content, rest []byte, ok bool) {
	if len(b) < 2 || b[0] != tag {
		return nil, nil, false
	}
	size, b := int(b[1]), b[2:]
	if n := size - 0x80; n >= 0 {
		if n == 0 || n > 4 || len(b) < n {
			return nil, nil, false
		}
		size = 0
		for _, c := range b[:n] {
			size = size<<8 | int(c)
		}
		b = b[n:]
	}
	if size < 0 || size > len(b) {
		return nil, nil, false
	}
	return b[:size], b[size:], true
}

// ldapRefuse answers the client's first request with the result unavailable.
func ldapRefuse(downstream io.ReadWriter, why error) error {
	down := leg{side: Downstream, rw: downstream}
	msg, err := ldapRead(&down)
	if err != nil {
		return err
	}
	id, rest, ok := ber(msg.body, berInteger)
	if !ok || len(id) == 0 || len(id) > 4 || len(rest) == 0 {
		return &GreetingError{Protocol: ldapName, Detail: fmt.Sprintf("%q, which begins no LDAP message", got(msg.head))}
	}
	answer, ok := ldapAnswers[rest[0]]
	if !ok {
		return ErrNoAnswer
	}
	result := append([]byte{berEnum, 1, ldapUnavailable}, berOf(berString, nil)...)
	result = append(result, berOf(berString, []byte(reason(why, ldapReasonMax)))...)
	return down.send(berOf(berSequence, append(berOf(berInteger, id), berOf(answer, result)...)))
}

// berOf encodes an element with a content of less than 64 KiB.
func berOf(tag byte, content []byte) []byte {
	n := len(content)
	if n < 0x80 {
		return append([]byte{tag, byte(n)}, content...)
	}
	return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
}
