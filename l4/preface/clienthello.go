package preface

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"

	"ambassador/policy"
)

// ClientHello is what a TLS client says in plaintext before it gets an answer.
type ClientHello struct {
	// ServerName is the server that the client names, as policy.ParseHost returns it;
	// empty: there is no name that rules could match.
	ServerName string
	// ECH: the client has encrypted another ClientHello (RFC 9849), or pretends to
	// (GREASE), which cannot be told apart. ServerName is that of the outer one.
	ECH bool

	why string // there is no ServerName; empty if there is one
}

// noHello is a client that does not begin with a ClientHello.
func noHello(format string, args ...any) *Error { return malformed("no ClientHello: "+format, args...) }

const (
	// MaxHello bounds a ClientHello: usual ones have 200 to 2,000 bytes, and a ticket
	// with the client's certificates may add some thousands.
	MaxHello = 32 << 10
	// helloRead is the first read: most hellos have 200 to 600 bytes, and those with a
	// post-quantum key 1,700 to 1,900.
	helloRead = 2 << 10
	// maxHelloRaw bounds what is read for a ClientHello of MaxHello: a client may cut
	// it into small records, but not into bytes.
	maxHelloRaw = MaxHello + 8<<10

	recordHeader    = 5 // type, version, length
	recordHandshake = 22
	maxRecord       = 16 << 10
	helloHeader     = 4 // type, length
	typeClientHello = 1

	extensionServerName = 0
	extensionECH        = 0xfe0d
)

// ReadClientHello reads the first message of a TLS client, which the server still has to
// see: raw is all that was read, whatever err says, and may be more than the message. A
// client that sends something else is recognized by its first bytes. The error is an
// *Error, or that of r.
//
// crypto/tls is no replacement. It refuses what servers accept (a name that ends in a
// dot, an extension of ECH that it cannot parse), so that a rule would not see the name
// that the server sees; and it waits for 5 bytes before it says that they are no TLS,
// while a client of another protocol may wait for an answer to fewer.
func ReadClientHello(r io.Reader) (hello ClientHello, raw []byte, err error) {
	h := helloReader{raw: make([]byte, 0, helloRead)}
	for {
		message, err := h.message()
		if err != nil {
			return ClientHello{}, h.raw, err
		}
		if message != nil {
			hello, err := parseClientHello(message)
			return hello, h.raw, err
		}
		if err := h.read(r); err != nil {
			return ClientHello{}, h.raw, err
		}
	}
}

// helloReader puts a handshake message together.
type helloReader struct {
	raw  []byte // all that was read
	next int    // where in raw the next record begins
	// joined is the content of the records before next, where there was more than
	// one; of the first alone it is a part of raw.
	joined []byte
}

// read reads once.
func (h *helloReader) read(r io.Reader) error {
	if len(h.raw) >= maxHelloRaw {
		return noHello("none in the first %d bytes", len(h.raw))
	}
	if len(h.raw) == cap(h.raw) {
		h.raw = append(make([]byte, 0, min(2*cap(h.raw), maxHelloRaw)), h.raw...)
	}
	n, err := r.Read(h.raw[len(h.raw):cap(h.raw)])
	h.raw = h.raw[:len(h.raw)+n]
	if n > 0 {
		return nil // the next read, if there is one, has an end behind it
	}
	return err
}

// message is the content of the handshake message; nil: it is not complete.
func (h *helloReader) message() ([]byte, error) {
	for {
		record, err := cutRecord(h.raw[h.next:], h.next == 0)
		if record == nil || err != nil {
			return nil, err
		}
		if h.next == 0 {
			h.joined = record
		} else {
			h.joined = append(h.joined, record...)
		}
		h.next += recordHeader + len(record)
		if message, err := cutHello(h.joined); message != nil || err != nil {
			return message, err
		}
	}
}

// cutRecord is the content of the record at the beginning of b; nil: it is not complete.
// An error needs as few bytes as can be, since a client of another protocol may wait for
// an answer. First is the first record. Appending to the content makes a copy.
func cutRecord(b []byte, first bool) ([]byte, error) {
	switch {
	case len(b) > 0 && b[0] != recordHandshake, len(b) > 1 && b[1] != 3,
		first && len(b) > recordHeader && b[recordHeader] != typeClientHello:
		return nil, noHello("the client sends %q", b[:min(len(b), recordHeader+1)])
	case len(b) < recordHeader:
		return nil, nil
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	if n == 0 || n > maxRecord {
		return nil, noHello("a record of %d bytes", n)
	}
	if len(b) < recordHeader+n {
		return nil, nil
	}
	return b[recordHeader : recordHeader+n : recordHeader+n], nil
}

// cutHello is the content of the message at the beginning of b; nil: it is not complete.
func cutHello(b []byte) ([]byte, error) {
	if len(b) < helloHeader {
		return nil, nil
	}
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	switch {
	case n > MaxHello:
		return nil, noHello("a message of %d bytes, and the most is %d", n, MaxHello)
	case len(b) < helloHeader+n:
		return nil, nil
	}
	return b[helloHeader : helloHeader+n : helloHeader+n], nil
}

// parseClientHello reads the content of a ClientHello (RFC 8446, 4.1.2).
func parseClientHello(message []byte) (ClientHello, error) {
	bad := func(what string) (ClientHello, error) { return ClientHello{}, noHello("malformed %s", what) }
	s := cryptobyte.String(message)
	var session, suites, compressions, extensions cryptobyte.String
	if !s.Skip(2+32) || !s.ReadUint8LengthPrefixed(&session) || !s.ReadUint16LengthPrefixed(&suites) || !s.ReadUint8LengthPrefixed(&compressions) {
		return bad("beginning")
	}
	if !s.Empty() && (!s.ReadUint16LengthPrefixed(&extensions) || !s.Empty()) { // before TLS 1.2 there may be none
		return bad("extensions")
	}
	var name []byte
	var hello ClientHello
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) {
			return bad("extensions")
		}
		switch kind {
		case extensionECH:
			hello.ECH = true
		case extensionServerName:
			var ok bool
			if name, ok = parseServerName(data, name); !ok {
				return bad("server_name")
			}
		}
	}
	hello.ServerName, hello.why = canonicalServerName(name)
	return hello, nil
}

// parseServerName reads the extension (RFC 6066, section 3): a list of at most one name
// of the only kind that is defined. Before is the name of an earlier such extension.
func parseServerName(data cryptobyte.String, before []byte) (name []byte, ok bool) {
	var names cryptobyte.String
	if before != nil || !data.ReadUint16LengthPrefixed(&names) || names.Empty() || !data.Empty() {
		return nil, false
	}
	for !names.Empty() {
		var kind uint8
		var value cryptobyte.String
		if !names.ReadUint8(&kind) || !names.ReadUint16LengthPrefixed(&value) || value.Empty() {
			return nil, false
		}
		if kind != 0 {
			continue
		}
		if name != nil {
			return nil, false
		}
		name = value
	}
	return name, true
}

// canonicalServerName is the name for rules, or why there is none.
func canonicalServerName(name []byte) (canonical, why string) {
	if name == nil {
		return "", "the ClientHello names no server"
	}
	host, addr, err := policy.ParseHost(string(name))
	switch {
	case err != nil:
		return "", "the ClientHello's server name is none: " + err.Error()
	case addr.IsValid():
		return "", fmt.Sprintf("the ClientHello's server name is an address, %s, which no rule about names matches", addr)
	}
	return host, ""
}
