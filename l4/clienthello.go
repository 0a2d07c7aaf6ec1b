package l4

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"

	"ambassador/policy"
)

// clientHello is what a TLS client says in the clear before anything is answered.
type clientHello struct {
	// serverName is whom the client wants to reach, as policy.ParseHost gives a
	// name; empty: it says nothing that rules could match.
	serverName string
	// ech: the client encrypts another hello (RFC 9849), or pretends to (GREASE),
	// which nobody can tell apart. The name is that of the outer one.
	ech bool
	// why there is no serverName, in words; empty if there is one.
	why string
}

// noHelloError is a client that does not begin with a TLS ClientHello.
type noHelloError struct{ detail string }

func (e *noHelloError) Error() string { return "no ClientHello: " + e.detail }

const (
	// helloRead is what is read at first: most hellos have 200 to 600 bytes, and
	// those with a post-quantum key 1,700 to 1,900.
	helloRead = 2 << 10
	// maxHelloRaw bounds what is read for a ClientHello of maxHello: a client may cut
	// it into small records, but not into bytes.
	maxHelloRaw = maxHello + 8<<10

	recordHeader    = 5 // type, version, length
	recordHandshake = 22
	maxRecord       = 16 << 10
	helloHeader     = 4 // type, length
	typeClientHello = 1

	extensionServerName = 0
	extensionECH        = 0xfe0d
)

// readClientHello reads a client's first message and ends nothing: raw is all that
// was read, whatever err says, and has to be passed on. It may be more than the
// hello. Who sends no hello is recognized by its first bytes. Errors:
// *noHelloError, and what r has.
func readClientHello(r io.Reader) (hello clientHello, raw []byte, err error) {
	h := helloReader{raw: make([]byte, 0, helloRead)}
	for {
		message, err := h.message()
		if err != nil {
			return clientHello{}, h.raw, err
		}
		if message != nil {
			hello, err := parseClientHello(message)
			return hello, h.raw, err
		}
		if err := h.read(r); err != nil {
			return clientHello{}, h.raw, err
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

// read takes what the client has sent by now.
func (h *helloReader) read(r io.Reader) error {
	if len(h.raw) >= maxHelloRaw {
		return &noHelloError{fmt.Sprintf("none in the first %d bytes", len(h.raw))}
	}
	if len(h.raw) == cap(h.raw) {
		h.raw = append(make([]byte, 0, min(2*cap(h.raw), maxHelloRaw)), h.raw...)
	}
	n, err := r.Read(h.raw[len(h.raw):cap(h.raw)])
	h.raw = h.raw[:len(h.raw)+n]
	if n > 0 {
		return nil // an end behind it is found by the next read, if there is one
	}
	return err
}

// message is the content of the handshake message; nil: there is more to come.
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

// cutRecord is the content of the record that b begins with; nil: there is more to
// come. First: what comes is known by as few bytes as can be, for who speaks
// another protocol may wait for an answer. Appending to it makes a copy.
func cutRecord(b []byte, first bool) ([]byte, error) {
	switch {
	case len(b) > 0 && b[0] != recordHandshake, len(b) > 1 && b[1] != 3,
		first && len(b) > recordHeader && b[recordHeader] != typeClientHello:
		return nil, &noHelloError{fmt.Sprintf("the client sends %q", b[:min(len(b), recordHeader+1)])}
	case len(b) < recordHeader:
		return nil, nil
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	if n == 0 || n > maxRecord {
		return nil, &noHelloError{fmt.Sprintf("a record of %d bytes", n)}
	}
	if len(b) < recordHeader+n {
		return nil, nil
	}
	return b[recordHeader : recordHeader+n : recordHeader+n], nil
}

// cutHello is the content of the message that b begins with; nil: there is more to
// come.
func cutHello(b []byte) ([]byte, error) {
	if len(b) < helloHeader {
		return nil, nil
	}
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	switch {
	case n > maxHello:
		return nil, &noHelloError{fmt.Sprintf("a message of %d bytes, and the most is %d", n, maxHello)}
	case len(b) < helloHeader+n:
		return nil, nil
	}
	return b[helloHeader : helloHeader+n : helloHeader+n], nil
}

// parseClientHello reads the content of a ClientHello (RFC 8446, 4.1.2).
func parseClientHello(message []byte) (clientHello, error) {
	malformed := func(what string) (clientHello, error) { return clientHello{}, &noHelloError{"malformed " + what} }
	s := cryptobyte.String(message)
	var session, suites, compressions, extensions cryptobyte.String
	if !s.Skip(2+32) || !s.ReadUint8LengthPrefixed(&session) || !s.ReadUint16LengthPrefixed(&suites) || !s.ReadUint8LengthPrefixed(&compressions) {
		return malformed("beginning")
	}
	if !s.Empty() && (!s.ReadUint16LengthPrefixed(&extensions) || !s.Empty()) { // before TLS 1.2 there may be none
		return malformed("extensions")
	}
	var name []byte
	var hello clientHello
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) {
			return malformed("extensions")
		}
		switch kind {
		case extensionECH:
			hello.ech = true
		case extensionServerName:
			var ok bool
			if name, ok = parseServerName(data, name); !ok {
				return malformed("server_name")
			}
		}
	}
	hello.serverName, hello.why = canonicalServerName(name)
	return hello, nil
}

// parseServerName reads the extension (RFC 6066, 3): a list in which only one kind
// of name has ever been defined, and once at most. Before is what an earlier such
// extension has given.
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

// canonicalServerName is the name for rules, or says why there is none.
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
