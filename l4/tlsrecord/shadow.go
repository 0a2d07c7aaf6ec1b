package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// Shadow follows the records of a tls.Conn, so that the state of its TLS 1.3 connection
// can be exported at any time after the handshake. A KeyLog makes it.
//
// It is used in two ways, one after the other. First it is the connection below the
// tls.Conn. After Detach the caller feeds the tls.Conn with whole records, and tells the
// Shadow about them with Received and Sent. Safe for concurrent use, except for Detach.
type Shadow struct {
	conn net.Conn // nil after Detach

	mu    sync.Mutex // the KeyLog's may be taken within it
	setup *setup     // guarded by mu, like all below; nil after Established
	ok    bool       // the records are followed; false during the handshake, and if Export fails
	suite *suite
	in    receiver
	out   keys
	// Received bytes that the tls.Conn does not have yet. Of those, given are the rest of
	// a record that is counted already.
	buf   []byte
	given int
}

// setup is what a Shadow needs until the handshake is over.
type setup struct {
	log    *KeyLog
	random random
	seen   []byte // the ClientHello's beginning, then a server's records after the secrets are known
	known  int    // secrets
	length int    // of a secret
	begun  bool   // the ClientHello was seen
	failed bool   // the handshake cannot be followed
	frame  frame
}

// frame finds the ends of records in a stream.
type frame struct {
	header [headerSize]byte
	got    int // bytes of header
	left   int // bytes of the record, after its header
}

// take returns how many bytes of b belong to the current record.
func (f *frame) take(b []byte) (n int) {
	if f.got < headerSize {
		n = copy(f.header[f.got:], b)
		if f.got += n; f.got < headerSize {
			return n
		}
		f.left = recordSize(f.header[:]) - headerSize
	}
	k := min(f.left, len(b)-n)
	if f.left -= k; f.left == 0 {
		f.got = 0
	}
	return n + k
}

// Read reads for the tls.Conn: in the handshake not beyond a record, so that crypto/tls
// holds nothing afterwards; then only whole records.
func (s *Shadow) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.ok && s.given == 0 {
			s.count()
		}
		if n := s.give(b); n > 0 || len(b) == 0 {
			return n, nil
		}
		n, err := s.receive(b[:min(len(b), maxRaw-maxRecord)])
		switch {
		case n > 0 && s.ok:
			s.buf = append(s.buf, b[:n]...)
		case n > 0:
			return s.within(b[:n]), err
		case err == nil: // again
		case s.ok && len(s.buf) > 0 && !isTimeout(err):
			s.lose() // the stream ends within a record: crypto/tls knows the error
		default:
			return 0, err
		}
	}
}

// receive reads from below, unlocked: a Write need not wait for it.
func (s *Shadow) receive(b []byte) (int, error) {
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.conn.Read(b)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// give moves bytes from the buffer to b, and returns how many.
func (s *Shadow) give(b []byte) (n int) {
	if s.ok {
		n = copy(b, s.buf[:s.given])
		s.given -= n
		s.skip(n)
		return n
	}
	n = copy(b, s.buf)
	s.skip(n)
	return s.within(b[:n])
}

// skip removes the first n bytes of the buffer.
func (s *Shadow) skip(n int) {
	if s.buf = s.buf[n:]; len(s.buf) == 0 {
		s.buf = nil
	}
}

// within returns how many of the bytes may be given to the tls.Conn, and puts the others
// back into the buffer.
func (s *Shadow) within(b []byte) int {
	if s.setup == nil || s.setup.failed || len(b) == 0 {
		return len(b)
	}
	n := s.setup.frame.take(b)
	if n < len(b) {
		s.buf = append(bytes.Clone(b[n:]), s.buf...)
	}
	if !s.in.client {
		s.greet(b[:n])
	}
	return n
}

// count counts the first record in the buffer, if it is complete.
func (s *Shadow) count() {
	if len(s.buf) < headerSize {
		return
	}
	if !plausible(s.buf) {
		s.lose()
		return
	}
	if n := recordSize(s.buf); len(s.buf) >= n {
		s.follow(s.buf[:n])
		s.given = n
	}
}

// Write writes for the tls.Conn, which writes whole records only.
func (s *Shadow) Write(b []byte) (int, error) {
	s.mu.Lock()
	switch p := s.setup; {
	case s.ok:
		s.sent(b)
	case p == nil || p.failed:
	case !p.begun && s.in.client:
		s.greet(b)
	case p.known == 2 && !s.in.client:
		p.seen = append(p.seen, b...)
	}
	s.mu.Unlock()
	return s.conn.Write(b)
}

// Where the random is in the first record of a connection (RFC 8446, 4.1.2): behind the
// headers of record and message, and the version.
const (
	randomAt  = headerSize + 4 + 2
	randomEnd = randomAt + len(random{})
)

// greet looks for the client's random in the first bytes of the client.
func (s *Shadow) greet(b []byte) {
	p := s.setup
	if p.begun || p.failed || len(b) == 0 {
		return
	}
	p.seen = append(p.seen, b[:min(len(b), randomEnd-len(p.seen))]...)
	const clientHello = 1
	switch {
	case p.seen[0] != typeHandshake, len(p.seen) > headerSize && (p.seen[headerSize] != clientHello || recordSize(p.seen) < randomEnd):
		p.failed = true
	case len(p.seen) == randomEnd:
		copy(p.random[:], p.seen[randomAt:])
		p.seen, p.begun = nil, true
		p.log.watch(p.random, s)
	}
}

// learn is called with a secret of the client or of the server.
func (s *Shadow) learn(client bool, secret []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.setup
	if p == nil {
		return
	}
	k := &s.in.keys
	if client == s.in.client {
		k = &s.out
	}
	copy(k.secret[:], secret)
	p.known++
	p.length = len(secret)
}

// Established must be called after the handshake, with the state of the tls.Conn, also
// if the handshake failed. It reports whether the connection can be followed: it must be
// TLS 1.3. Otherwise the Shadow only passes bytes on.
func (s *Shadow) Established(state tls.ConnectionState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.setup
	if p == nil {
		return s.ok
	}
	s.setup = nil
	if p.begun {
		p.log.forget(p.random, s)
	}
	s.suite = suiteOf(state.CipherSuite)
	s.ok = state.HandshakeComplete && state.Version == tls.VersionTLS13 && s.suite != nil &&
		p.known == 2 && p.length == s.suite.secret && p.frame.got == 0
	if s.ok {
		s.ok = s.tickets(p.seen) == nil
	}
	if !s.ok {
		s.lose()
	}
	return s.ok
}

// Forget ends the handshake if Established was not called: it has panicked. Then the
// connection is not followed, and the KeyLog does not keep it.
func (s *Shadow) Forget() { s.Established(tls.ConnectionState{}) }

// On returns the connection for the tls.Conn after Established: the Shadow, which is on
// raw from now on, or raw itself if there is nothing to follow, and no byte is held.
func (s *Shadow) On(raw net.Conn) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn = raw; s.ok || s.buf != nil {
		return s
	}
	return raw
}

// tickets counts the records that a server has written in the handshake with the keys of
// application traffic: its session tickets. They are the last ones, and the others do
// not open with these keys.
func (s *Shadow) tickets(records []byte) error {
	if len(records) == 0 {
		return nil
	}
	p, err := s.out.protection(s.suite)
	if err != nil {
		return err
	}
	for record := range split(records) {
		_, _, err := s.out.open(&p, bytes.Clone(record))
		if err != nil && s.out.seq > 0 {
			return err
		}
	}
	return nil
}

// lose ends the following of records: from now on the Shadow only passes bytes on.
func (s *Shadow) lose() {
	s.ok, s.in, s.out = false, receiver{client: s.in.client}, keys{}
}

// split returns the records in b, which are whole.
func split(b []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) >= headerSize {
			n := min(recordSize(b), len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// Whole returns the length of the whole records at the beginning of b; len(b) if there
// is something that is no record, because only crypto/tls knows the error for it.
func Whole(b []byte) (n int) {
	for len(b)-n >= headerSize {
		if !plausible(b[n:]) {
			return len(b)
		}
		k := recordSize(b[n:])
		if n+k > len(b) {
			break
		}
		n += k
	}
	return n
}

// NetConn returns the connection below.
func (s *Shadow) NetConn() net.Conn { return s.conn }

// Detach ends the use as a connection. From now on the caller feeds the tls.Conn.
func (s *Shadow) Detach() { s.conn = nil }

// Abandon ends the following of records: the Shadow only passes bytes on.
func (s *Shadow) Abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose()
}

// Tail returns the received bytes that the tls.Conn does not have yet: after Detach the
// bytes that were received before, then those of the last Keep.
func (s *Shadow) Tail() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf
}

// Keep replaces the Tail, which is not valid any more, by a copy of b.
func (s *Shadow) Keep(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf = append(s.buf[:0], b...); len(b) == 0 {
		s.buf = nil
	}
}

// Received says that the tls.Conn has read these whole records, and has returned that
// many bytes of plaintext, since the last call; it holds nothing more. A negative number
// is unknown. It must be called before Sent for what the tls.Conn has written meanwhile.
//
// Only if the numbers show that there was more than application data, or padding, are
// the records decrypted once more.
func (s *Shadow) Received(records []byte, plaintext int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ok {
		return
	}
	count, most := 0, 0
	for record := range split(records) {
		if record[0] != typeApplicationData || len(record) <= headerSize+overhead {
			most = -1
			break
		}
		count++
		most += len(record) - headerSize - overhead
	}
	if most == plaintext && count > 0 {
		s.in.seq += uint64(count)
		s.in.useless = 0
		return
	}
	s.follow(records)
}

// follow decrypts a copy of whole records that the tls.Conn receives.
func (s *Shadow) follow(records []byte) {
	var p protection
	renewed, err := true, error(nil)
	for record := range split(records) {
		if s.in.ended {
			return
		}
		if renewed {
			p, err = s.in.protection(s.suite)
		}
		if err == nil {
			_, renewed, err = s.in.record(s.suite, &p, bytes.Clone(record))
		}
		if err != nil {
			s.lose()
			return
		}
	}
}

// Sent says that the tls.Conn has written these whole records.
func (s *Shadow) Sent(records []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ok {
		s.sent(records)
	}
}

// sent counts records. crypto/tls asks for no new keys: a KeyUpdate of its own answers
// one of the peer, and has no padding.
func (s *Shadow) sent(records []byte) {
	for record := range split(records) {
		if s.in.owed == 0 || len(record) != headerSize+len(keyUpdate)+overhead {
			s.out.seq++
			continue
		}
		if err := s.answer(record); err != nil {
			s.lose()
			return
		}
	}
}

// keyUpdate is a KeyUpdate that requests none of the peer (RFC 8446, 4.6.3).
var keyUpdate = [...]byte{messageKeyUpdate, 0, 0, 1, 0}

// answer counts a record that may be the answer to a KeyUpdate.
func (s *Shadow) answer(record []byte) error {
	p, err := s.out.protection(s.suite)
	if err != nil {
		return err
	}
	typ, _, err := s.out.open(&p, bytes.Clone(record))
	if err == nil && typ == typeHandshake {
		s.in.owed--
		err = s.out.update(s.suite)
	}
	return err
}

// errLost is the error of Export for connections that cannot continue elsewhere.
var errLost = errors.New("tlsrecord: the connection's state is not known: it is not TLS 1.3, or TLS has failed")

// Export returns the state of the connection, of which only one may be continued: the
// tls.Conn or the State. The caller has called Detach and holds no record that Received
// and Sent do not know. Notified says that the tls.Conn has written close_notify.
func (s *Shadow) Export(notified bool) (*State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ok || s.given > 0 || s.in.owed > 0 && !notified {
		return nil, errLost
	}
	out := &State{suite: s.suite, in: s.in, out: s.out, notified: notified, raw: bytes.Clone(s.buf)}
	out.in.message, out.in.owed = bytes.Clone(s.in.message), 0
	return out, nil
}

// Close closes the connection below.
func (s *Shadow) Close() error { return s.conn.Close() }

// LocalAddr is that of the connection below.
func (s *Shadow) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// RemoteAddr is that of the connection below.
func (s *Shadow) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// SetDeadline sets that of the connection below.
func (s *Shadow) SetDeadline(t time.Time) error { return s.conn.SetDeadline(t) }

// SetReadDeadline sets that of the connection below.
func (s *Shadow) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline sets that of the connection below.
func (s *Shadow) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }
