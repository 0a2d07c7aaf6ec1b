package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"testing"
)

// twins are a tls.Conn with its Shadow, and a Conn: both continue the same connection
// from the same state, and are fed with the same bytes.
type twins struct {
	ours  *end
	conn  *Conn
	feed  *feed // of conn
	peer  *State
	seal  protection // of the peer
	open  protection // of the peer
	wild  bool       // the peer has sent something that crypto/tls checks more closely
	bytes []byte     // of the peer, not delivered yet
	sent  []byte     // application data of the peer
	got   [2][]byte
	errs  [2]error
}

func newTwins(t testing.TB, k kind) *twins {
	t.Helper()
	ours, other := connect(t, k)
	w := &twins{ours: ours, feed: &feed{fed: true}}
	for _, e := range []*end{ours, other} {
		e.check(t)
		e.shadow.Detach()
		if e == ours {
			w.bytes = e.shadow.Tail() // the server's ticket, or a part of it
		}
		e.shadow.Keep(nil)
		s, err := e.shadow.Export(false)
		if err != nil {
			t.Fatal(err)
		}
		if e == ours {
			w.conn = resume(t, w.feed, s)
		} else {
			w.peer = s
		}
	}
	ours.feed.fed = true
	w.renew()
	for k.client && k.tickets && (len(w.bytes) == 0 || Whole(w.bytes) < len(w.bytes)) {
		b := make([]byte, 4096)
		n, err := ours.raw.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		w.bytes = append(w.bytes, b[:n]...)
	}
	return w
}

func (w *twins) renew() {
	w.seal, _ = w.peer.out.protection(w.peer.suite)
	w.open, _ = w.peer.in.protection(w.peer.suite)
}

// record adds a record of the peer.
func (w *twins) record(typ byte, content []byte, padding int) {
	b := append(append([]byte{}, content...), typ)
	b = append(b, make([]byte, padding)...)
	w.bytes, _ = w.peer.out.seal(&w.seal, w.bytes, b[len(b)-1], b[:len(b)-1])
}

// keyUpdate adds a KeyUpdate, in two records if split is not 0.
func (w *twins) keyUpdate(request bool, split, padding int) {
	m := keyUpdate
	if request {
		m[4] = 1
	}
	if split > 0 {
		w.record(typeHandshake, m[:split], padding)
	}
	w.record(typeHandshake, m[split:], padding)
	w.peer.out.update(w.peer.suite)
	w.renew()
}

// ticket adds a NewSessionTicket.
func (w *twins) ticket(label int) {
	m := append(make([]byte, 4+4), 1, 0) // lifetime, age, nonce
	m = append(m, byte(label>>8), byte(label))
	m = append(append(m, make([]byte, label)...), 0, 0)
	m = append([]byte{messageNewSessionTicket, byte(len(m) >> 16), byte(len(m) >> 8), byte(len(m))}, m...)
	for len(m) > 0 {
		n := min(len(m), maxPlaintext)
		w.record(typeHandshake, m[:n], 0)
		m = m[n:]
	}
}

// data adds application data.
func (w *twins) data(n, padding int) {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(len(w.sent) + i)
	}
	w.sent = append(w.sent, b...)
	w.record(typeApplicationData, b, padding)
}

// deliver gives the first n bytes to both.
func (w *twins) deliver(n int) {
	in := w.bytes[:n]
	w.bytes = w.bytes[n:]
	w.feed.in = bytes.Clone(in)
	w.read(1, w.conn)

	// As the relay does it.
	s, f := w.ours.shadow, w.ours.feed
	in = append(bytes.Clone(s.Tail()), in...)
	whole := Whole(in)
	if f.end != nil {
		whole = len(in)
	}
	s.Keep(in[whole:])
	f.in = bytes.Clone(in[:whole])
	before, out := len(w.got[0]), len(f.out)
	w.read(0, w.ours)
	s.Received(in[:whole], len(w.got[0])-before)
	s.Sent(f.out[out:])
}

func (w *twins) read(i int, c io.Reader) {
	buf := make([]byte, 5000)
	for w.errs[i] == nil {
		n, err := c.Read(buf)
		w.got[i] = append(w.got[i], buf[:n]...)
		if isTimeout(err) {
			return
		}
		w.errs[i] = err
	}
}

// write writes application data in both.
func (w *twins) write(t testing.TB, n int) {
	b := make([]byte, n)
	out := len(w.ours.feed.out)
	_, err0 := w.ours.Write(b)
	w.ours.shadow.Sent(w.ours.feed.out[out:])
	_, err1 := w.conn.Write(b)
	if (err0 == nil) != (err1 == nil) {
		t.Fatalf("write: crypto/tls %v, Conn %v", err0, err1)
	}
}

// compare compares both. It returns false after an error.
func (w *twins) compare(t testing.TB) bool {
	t.Helper()
	if !bytes.Equal(w.got[0], w.got[1]) {
		t.Fatalf("crypto/tls has read %d bytes, Conn %d", len(w.got[0]), len(w.got[1]))
	}
	if w.errs[0] != nil && w.wild {
		return false
	}
	if (w.errs[0] == nil) != (w.errs[1] == nil) || w.errs[0] != nil && w.errs[0].Error() != w.errs[1].Error() {
		t.Fatalf("crypto/tls: %v, Conn: %v", w.errs[0], w.errs[1])
	}
	if !bytes.Equal(w.ours.feed.out, w.feed.out) {
		t.Fatalf("crypto/tls has written\n%x, Conn\n%x", w.ours.feed.out, w.feed.out)
	}
	if w.errs[0] != nil {
		return false
	}
	w.ours.check(t)
	if a, b := w.encoded(t); !bytes.Equal(a, b) {
		t.Fatalf("the state of the Shadow is\n%x, that of the Conn\n%x", a, b)
	}
	return true
}

func (w *twins) encoded(t testing.TB) (shadow, conn []byte) {
	t.Helper()
	a, err := w.ours.shadow.Export(false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.conn.Export()
	if err != nil {
		t.Fatal(err)
	}
	shadow, _ = a.AppendBinary(nil)
	conn, _ = b.AppendBinary(nil)
	return shadow, conn
}

// FuzzRecords sends what a peer may send, and what it must not, to crypto/tls with a
// Shadow, and to a Conn: both read the same, fail in the same way, answer with the same
// bytes, and have the same state.
func FuzzRecords(f *testing.F) {
	for _, script := range []string{
		"0005000000050100", // data
		"010001000005",     // a KeyUpdate
		"0101000801050020", // one that requests another
		"01010001010001010008050105",
		"02100001000005", // a ticket, and a KeyUpdate
		"01000300020500", // in two records
		"0200ff03180000010105", "0318", "0318000001", "030400000000",
		"0401000005", "04025a", "040128", "050105", "05", "06160303", "06170303001100000000000000000000000000000000",
		"0700ff0701ff08ff0700", "0705800900", "00000000000000",
		"0a0500000a0a",
	} {
		b, err := hex.DecodeString(script)
		if err != nil {
			f.Fatal(err)
		}
		for i := range byte(12) {
			f.Add(i, b)
		}
	}
	f.Add(byte(4), []byte("8000020\x150000"))         // a header of another version, of a record that is not complete
	f.Add(byte(2), []byte("200\x03\x03000000000000")) // one of an unknown type
	f.Add(byte(31), []byte("a\x14"))                  // a ChangeCipherSpec that is protected
	f.Fuzz(func(t *testing.T, which byte, script []byte) {
		k := kind{suite: suites[which%3].id, client: which/3&1 != 0, tickets: which/6&1 != 0}
		w := newTwins(t, k)
		next := func() int {
			if len(script) == 0 {
				return 0
			}
			v := script[0]
			script = script[1:]
			return int(v)
		}
		for steps := 0; len(script) > 0 && steps < 100; steps++ {
			w.step(t, next)
			if keep := next(); keep < len(w.bytes) {
				w.deliver(len(w.bytes) - keep)
			}
			if !w.compare(t) {
				return
			}
		}
		w.deliver(len(w.bytes))
		w.compare(t)
	})
}

// step does one step of a script.
func (w *twins) step(t testing.TB, next func() int) {
	switch next() % 11 {
	case 0:
		w.data(next(), next())
	case 1:
		w.keyUpdate(next()&1 != 0, next()%5, next())
	case 2:
		w.ticket(next() * 100)
		w.wild = true // an empty one is refused, and a server refuses all
	case 3:
		n := next()
		b := make([]byte, n%32)
		for i := range b {
			b[i] = byte(next())
		}
		w.record(typeHandshake, b, 0)
		w.wild = true
	case 4:
		w.record(typeAlert, []byte{byte(next()), byte(next())}, next())
	case 5:
		w.bytes = append(w.bytes, 20, 3, 3, 0, 1, byte(next()))
	case 6:
		for range next() % 64 {
			w.bytes = append(w.bytes, byte(next()))
		}
	case 7:
		w.data(maxPlaintext-next(), next())
		w.wild = true // too long with padding
	case 8:
		w.write(t, next())
	case 9:
		w.record(byte(next()), []byte("hello"), next())
	case 10:
		w.write(t, len(keyUpdate)) // as long as a KeyUpdate
	}
}

// Whatever the place of a cut, both know the same state, and a successor continues there.
func TestCuts(t *testing.T) {
	for _, s := range suites {
		for cut := 0; ; cut++ {
			w := newTwins(t, kind{suite: s.id, client: true, tickets: true})
			w.data(1, 0)
			w.data(5, 3)
			w.keyUpdate(true, 0, 0)
			w.ticket(10)
			w.keyUpdate(true, 2, 1)
			w.data(5, 0)
			w.keyUpdate(false, 0, 4)
			w.data(20, 0)
			w.record(typeAlert, []byte{1, 0}, 0)
			if cut >= len(w.bytes) {
				break
			}
			w.deliver(cut)
			if !w.compare(t) {
				t.Fatalf("cut %d: %v", cut, w.errs)
			}
			w.conn = again(t, w.conn)
			w.deliver(len(w.bytes))
			if w.compare(t) || w.errs[1] != io.EOF || !bytes.Equal(w.got[1], w.sent) {
				t.Fatalf("cut %d: read %x, %v, want %x", cut, w.got, w.errs, w.sent)
			}
		}
	}
}

// An encoded state is decoded to the same state or refused, and a Conn from any state
// does not panic.
func FuzzState(f *testing.F) {
	for k := range kinds {
		if k.mutual {
			continue
		}
		w := newTwins(f, k)
		w.keyUpdate(true, 3, 0)
		w.data(100, 0)
		w.deliver(len(w.bytes) - 50)
		if !w.compare(f) {
			f.Fatal(k, w.errs)
		}
		shadow, _ := w.encoded(f)
		f.Add(shadow)
	}
	f.Add([]byte{})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		err := s.UnmarshalBinary(b)
		if err != nil {
			return
		}
		again, err := s.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("encoded again: %x, %v, want %x", again, err, b)
		}
		c := NewConn(&feed{fed: true, end: io.EOF}, &s)
		io.Copy(io.Discard, c)
		c.Write([]byte("hello"))
		c.CloseWrite()
		c.Export()
	})
}

// The errors of decoding.
func TestStateErrors(t *testing.T) {
	w := newTwins(t, kind{suite: tls.TLS_AES_256_GCM_SHA384})
	good, _ := w.encoded(t)
	var s State
	for n := range good {
		if err := s.UnmarshalBinary(good[:n]); err == nil {
			t.Errorf("%d of %d bytes were decoded", n, len(good))
		}
		if s.in.secret != (keys{}).secret {
			t.Errorf("%d of %d bytes: a secret remains", n, len(good))
		}
	}
	for i, b := range map[int]byte{0: 2, 1: 8, 2: 0, 3: 9, 4: 17} {
		bad := bytes.Clone(good)
		bad[i] = b
		err := s.UnmarshalBinary(bad)
		if err == nil {
			t.Errorf("byte %d = %d was decoded", i, b)
		}
		if v, ok := err.(*VersionError); ok != (i == 0) || ok && v.Version != b {
			t.Errorf("byte %d = %d: %v", i, b, err)
		}
	}
	if err := s.UnmarshalBinary(append(good, 0)); err != errMalformed {
		t.Errorf("with another byte: %v", err)
	}
	if err := s.UnmarshalBinary(good); err != nil {
		t.Error(err)
	}
	s.Clear()
	if s.in.secret != (keys{}).secret || s.out.secret != (keys{}).secret {
		t.Error("Clear has left a secret")
	}
}
