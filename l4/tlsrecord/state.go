package tlsrecord

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// State is a connection of TLS 1.3 after its handshake. It contains secrets: it must not
// be logged or written to a file, and Clear must be called after its use.
type State struct {
	suite    *suite
	in       receiver
	out      keys
	notified bool   // our close_notify was written
	plain    []byte // decrypted, and not read yet
	raw      []byte // received, and not decrypted yet
}

// Notified reports whether our close_notify was written.
func (s *State) Notified() bool { return s.notified }

// version is the first byte of an encoded State.
const version = 1

// The bits of its second byte.
const (
	flagClient = 1 << iota
	flagNotified
	flagEnded
	allFlags = flagClient | flagNotified | flagEnded
)

// The longest parts of a State.
const (
	maxPending = 4 + maxMessage + maxPlaintext
	maxRaw     = 2 * bufferSize
)

// VersionError is an encoded State of another version of this package.
type VersionError struct{ Version byte }

// Error names both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("tlsrecord: the state has version %d; this program reads version %d", e.Version, version)
}

// errMalformed is an encoded State that AppendBinary has not written.
var errMalformed = errors.New("tlsrecord: malformed state")

// AppendBinary appends the encoded State, which contains its secrets. It never fails.
//
//	version, flags, suite (2), records without data
//	in, out            each the sequence number (8) and the secret
//	plain, message, raw    each a length (4) and as many bytes
func (s *State) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, version, s.flags())
	b = binary.BigEndian.AppendUint16(b, s.suite.id)
	b = append(b, s.in.useless)
	for _, k := range []*keys{&s.in.keys, &s.out} {
		b = binary.BigEndian.AppendUint64(b, k.seq)
		b = append(b, k.secret[:s.suite.secret]...)
	}
	for _, part := range [][]byte{s.plain, s.in.message, s.raw} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b, nil
}

func (s *State) flags() (b byte) {
	if s.in.client {
		b |= flagClient
	}
	if s.notified {
		b |= flagNotified
	}
	if s.in.ended {
		b |= flagEnded
	}
	return b
}

// UnmarshalBinary decodes what AppendBinary has encoded, and keeps no part of b. The
// error is a *VersionError if the package has another version there.
func (s *State) UnmarshalBinary(b []byte) error {
	*s = State{}
	if len(b) > 0 && b[0] != version {
		return &VersionError{b[0]}
	}
	r := reader{rest: b}
	r.take(1)
	flags := r.number(1)
	s.in.client, s.notified, s.in.ended = flags&flagClient != 0, flags&flagNotified != 0, flags&flagEnded != 0
	s.suite = suiteOf(uint16(r.number(2)))
	s.in.useless = byte(r.number(1))
	if s.suite == nil || flags&^allFlags != 0 || s.in.useless > maxUseless {
		return errMalformed
	}
	for _, k := range []*keys{&s.in.keys, &s.out} {
		k.seq = r.number(8)
		copy(k.secret[:], r.take(s.suite.secret))
	}
	s.plain, s.in.message, s.raw = r.part(maxPlaintext), r.part(maxPending), r.part(maxRaw)
	if r.failed || len(r.rest) > 0 {
		s.Clear()
		return errMalformed
	}
	return nil
}

// Clear overwrites the secrets and the plaintext. It does not reach the copies that
// ciphers have made.
func (s *State) Clear() {
	clear(s.plain)
	*s = State{}
}

// reader reads the parts of an encoded State.
type reader struct {
	rest   []byte
	failed bool
}

// take returns the next n bytes; nil if there are fewer.
func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.failed, r.rest = true, nil
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

// number reads a big-endian number of n bytes.
func (r *reader) number(n int) (v uint64) {
	for _, b := range r.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

// part copies a part of at most that many bytes; an empty one is nil.
func (r *reader) part(most int) []byte {
	n := r.number(4)
	if n > uint64(most) {
		r.failed = true
		return nil
	}
	return append([]byte(nil), r.take(int(n))...)
}
