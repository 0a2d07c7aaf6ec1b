package tlsrecord

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

// suite is a cipher suite of TLS 1.3 (RFC 8446, B.4).
type suite struct {
	id     uint16
	hash   func() hash.Hash
	secret int // the length of a traffic secret, which is that of the hash
	key    int // the length of a key
	aead   func(key []byte) (cipher.AEAD, error)
	most   uint64 // records that we protect with one key; then there is a new one
}

// The limits of RFC 8446, 5.5: AES-GCM protects 2^24.5 full records with one key.
// ChaCha20-Poly1305 has no limit that a connection reaches before its sequence number.
var suites = []*suite{
	{tls.TLS_AES_128_GCM_SHA256, sha256.New, 32, 16, aesGCM, 1 << 24},
	{tls.TLS_AES_256_GCM_SHA384, sha512.New384, 48, 32, aesGCM, 1 << 24},
	{tls.TLS_CHACHA20_POLY1305_SHA256, sha256.New, 32, chacha20poly1305.KeySize, chacha20poly1305.New, 1 << 62},
}

// suiteOf returns nil for a suite of another version, or an unknown one.
func suiteOf(id uint16) *suite {
	for _, s := range suites {
		if s.id == id {
			return s
		}
	}
	return nil
}

func aesGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
func (s *suite) expand(secret []byte, label string, n int) ([]byte, error) {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

// maxSecret is the length of the longest traffic secret.
const maxSecret = 48

// keys are the traffic secret of one direction, of which the suite's length is used, and
// the number of records that it has protected.
type keys struct {
	secret [maxSecret]byte
	seq    uint64
}

// update replaces the secret by the next generation (RFC 8446, 7.2).
func (k *keys) update(s *suite) error {
	next, err := s.expand(k.secret[:s.secret], "traffic upd", s.secret)
	if err != nil {
		return err
	}
	copy(k.secret[:], next)
	clear(next)
	k.seq = 0
	return nil
}

// protection is what protects the records of one direction, made of its secret.
type protection struct {
	aead cipher.AEAD
	iv   [12]byte
}

// protection derives key and IV (RFC 8446, 7.3).
func (k *keys) protection(s *suite) (p protection, err error) {
	key, err := s.expand(k.secret[:s.secret], "key", s.key)
	if err != nil {
		return p, err
	}
	defer clear(key)
	iv, err := s.expand(k.secret[:s.secret], "iv", len(p.iv))
	if err != nil {
		return p, err
	}
	copy(p.iv[:], iv)
	p.aead, err = s.aead(key)
	return p, err
}

// prepare derives p, unless that is done. A Conn does that when a record needs it: all
// connections of an upgrade go on at the same moment, and most of them are idle.
func (k *keys) prepare(s *suite, p *protection) (err error) {
	if p.aead == nil {
		*p, err = k.protection(s)
	}
	return err
}

// nonce is that of RFC 8446, 5.3.
func (p *protection) nonce(seq uint64) (n [12]byte) {
	n = p.iv
	for i := range 8 {
		n[4+i] ^= byte(seq >> (56 - 8*i))
	}
	return n
}

// The types of records, and of the messages that may follow a handshake.
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeApplicationData  = 23

	messageNewSessionTicket = 4
	messageKeyUpdate        = 24
)

// The sizes of records (RFC 8446, 5.2). The overhead is the type and the tag, which all
// suites have in common.
const (
	headerSize    = 5
	overhead      = 1 + 16
	maxPlaintext  = 1 << 14
	maxCiphertext = maxPlaintext + 256
	maxRecord     = headerSize + maxCiphertext
)

// errSequence stands for a sequence number that would repeat.
var errSequence = errors.New("tls: sequence number wraparound")

// seal appends one record of at most maxPlaintext bytes, and counts it.
func (k *keys) seal(p *protection, out []byte, typ byte, content []byte) ([]byte, error) {
	if k.seq == 1<<64-1 {
		return out, errSequence
	}
	at, n := len(out), len(content)+overhead
	out = append(out, typeApplicationData, 3, 3, byte(n>>8), byte(n))
	out = append(append(out, content...), typ)
	nonce := p.nonce(k.seq)
	k.seq++
	header, body := out[at:at+headerSize], out[at+headerSize:]
	return p.aead.Seal(out[:at+headerSize], nonce[:], body, header), nil
}

// open decrypts a whole record in place, counts it, and returns its content without the
// padding. An error is the alert that is due.
func (k *keys) open(p *protection, record []byte) (typ byte, content []byte, err error) {
	if k.seq == 1<<64-1 {
		return 0, nil, errSequence
	}
	nonce := p.nonce(k.seq)
	body := record[headerSize:]
	plain, err := p.aead.Open(body[:0], nonce[:], body, record[:headerSize])
	switch {
	case err != nil:
		return 0, nil, alertBadRecordMAC
	case record[0] != typeApplicationData:
		return 0, nil, alertUnexpectedMessage
	case len(plain) > maxPlaintext+1:
		return 0, nil, alertRecordOverflow
	}
	k.seq++
	for i := len(plain) - 1; i >= 0; i-- {
		if plain[i] != 0 {
			return plain[i], plain[:i], nil
		}
	}
	return 0, nil, alertUnexpectedMessage
}

// recordSize is the length of the record that begins with the header.
func recordSize(header []byte) int {
	return headerSize + int(binary.BigEndian.Uint16(header[3:]))
}

// plausible reports whether crypto/tls reads the rest of a record with this header, after
// the handshake. Others are left to it at once, because it knows the error. It judges the
// type when it has the whole record.
func plausible(header []byte) bool {
	return header[1] == 3 && header[2] == 3 && recordSize(header) <= maxRecord
}
