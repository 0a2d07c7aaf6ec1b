package tlsrecord

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/iotest"
	"time"
)

// kinds are all combinations of TLS 1.3.
func kinds(yield func(kind) bool) {
	for _, s := range suites {
		for i := range 8 {
			if !yield(kind{suite: s.id, client: i&1 != 0, mutual: i&2 != 0, tickets: i&4 != 0}) {
				return
			}
		}
	}
}

func (k kind) String() string {
	return fmt.Sprintf("%s client=%v mutual=%v tickets=%v", tls.CipherSuiteName(k.suite), k.client, k.mutual, k.tickets)
}

// A connection that crypto/tls has begun continues in a Conn, and again in another one.
func TestHandOver(t *testing.T) {
	for k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			ours, peer := connect(t, k)
			if got := ours.ConnectionState().CipherSuite; got != k.suite {
				t.Fatalf("suite %#x, want %#x", got, k.suite)
			}
			both(t, ours, peer, "with crypto/tls")
			peer.check(t)
			c := ours.handOver(t)
			both(t, c, peer, "in the successor")
			c = again(t, c)
			both(t, c, peer, "in the second successor")
			closeBoth(t, c, peer)
		})
	}
}

// A state exported before the first byte has no record yet but the tickets.
func TestHandOverAtOnce(t *testing.T) {
	for k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			ours, peer := connect(t, k)
			c := ours.handOver(t)
			both(t, c, peer, "12345") // as long as a KeyUpdate
		})
	}
}

// Resumed sessions have no certificate, and other secrets.
func TestResumed(t *testing.T) {
	for _, client := range []bool{false, true} {
		k := kind{suite: tls.TLS_AES_128_GCM_SHA256, client: client, mutual: true, tickets: true, cache: tls.NewLRUClientSessionCache(1)}
		for i := range 3 {
			ours, peer := connect(t, k)
			both(t, ours, peer, "brings the ticket")
			if resumed := ours.ConnectionState().DidResume; resumed != (i > 0) {
				t.Fatalf("connection %d: resumed %v", i, resumed)
			}
			both(t, ours.handOver(t), peer, "hello")
		}
	}
}

// closeBoth ends a connection, one direction after the other.
func closeBoth(t *testing.T, a, b interface {
	io.ReadWriter
	CloseWrite() error
}) {
	t.Helper()
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Errorf("the second CloseWrite: %v", err)
	}
	if _, err := a.Write([]byte("late")); err == nil {
		t.Error("a Write after CloseWrite has worked")
	}
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after close_notify: %d, %v", n, err)
	}
	say(t, b, a, "half closed")
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the peer's close_notify: %d, %v", n, err)
		}
	}
}

// Half-closed connections stay half closed.
func TestHandOverHalfClosed(t *testing.T) {
	k := kind{suite: tls.TLS_AES_256_GCM_SHA384, client: true}
	t.Run("by us", func(t *testing.T) {
		ours, peer := connect(t, k)
		if err := ours.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		ours.shadow.Detach()
		s, err := ours.shadow.Export(true)
		if err != nil {
			t.Fatal(err)
		}
		c := resume(t, ours.raw, s)
		if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after close_notify: %d, %v", n, err)
		}
		say(t, peer, c, "half closed")
		if _, err := c.Write([]byte("late")); err != errShutdown {
			t.Errorf("Write: %v", err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	t.Run("by the peer", func(t *testing.T) {
		ours, peer := connect(t, k)
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after close_notify: %d, %v", n, err)
		}
		c := again(t, ours.handOver(t))
		say(t, c, peer, "half closed")
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after close_notify: %d, %v", n, err)
		}
	})
}

// Both sides update their keys, asked and unasked, before, between and after.
func TestKeyUpdate(t *testing.T) {
	for k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			ours, other := connect(t, k)
			both(t, ours, other, "first")
			peer := other.handOver(t) // crypto/tls never begins a KeyUpdate
			update := func(c interface {
				io.ReadWriter
			}) {
				for _, request := range []bool{true, false, true} {
					peer.rekey(t, request)
					both(t, peer, c, "12345") // as long as a KeyUpdate
				}
				peer.rekey(t, true)
				peer.rekey(t, true)
				both(t, peer, c, "two")
				both(t, peer, c, "54321")
			}
			update(ours)
			ours.check(t)
			c := ours.handOver(t)
			update(c)
			c = again(t, c)
			c.rekey(t, true)
			both(t, c, peer, "ours")
			c = again(t, c)
			update(c)
		})
	}
}

// What is no TLS 1.3 is passed on, and not exported.
func TestNotFollowed(t *testing.T) {
	ours, peer := connect(t, kind{suite: tls.TLS_AES_128_GCM_SHA256, client: true, version: tls.VersionTLS12})
	both(t, ours, peer, "TLS 1.2")
	for _, e := range []*end{ours, peer} {
		if _, err := e.shadow.Export(false); err != errLost {
			t.Errorf("Export: %v", err)
		}
	}
	if n := len(clientLog.shadows) + len(serverLog.shadows); n > 0 {
		t.Errorf("%d handshakes are still watched", n)
	}
}

// A failed handshake leaves nothing in the KeyLog, and its error is that of crypto/tls.
func TestFailedHandshake(t *testing.T) {
	for _, first := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "\x16\x03\x01\x00\x01\x01", "\x80\x2e\x01\x03\x01", "\x16\x03\x01\xff\xff12345", "\x17\x03\x03\x00\x00"} {
		for _, client := range []bool{false, true} {
			errs := [2]string{}
			for i, shadowed := range []bool{false, true} {
				a, b := sockets(t)
				io.WriteString(b, first)
				finish(b)
				var log KeyLog
				var s *Shadow
				c := &tls.Config{KeyLogWriter: &log, InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate()}}
				conn, makeTLS := a, tls.Server
				if client {
					makeTLS = tls.Client
				}
				if s = log.Server(a); client {
					s = log.Client(a)
				}
				if shadowed {
					conn = s
				}
				secure := makeTLS(conn, c)
				errs[i] = fmt.Sprint(secure.Handshake())
				if s.Established(secure.ConnectionState()) || len(log.shadows) > 0 {
					t.Errorf("%q: the handshake is still watched", first)
				}
			}
			if errs[0] != errs[1] {
				t.Errorf("%q: %s, and without a Shadow: %s", first, errs[1], errs[0])
			}
		}
	}
}

// Bulk in both directions survives hand-overs at any moment: of bytes inside records too.
func TestHandOverInBulk(t *testing.T) {
	const size = 8 << 20
	for _, s := range suites {
		t.Run(tls.CipherSuiteName(s.id), func(t *testing.T) {
			ours, peer := connect(t, kind{suite: s.id, tickets: true, client: true})
			sent, received := sha256.New(), sha256.New()
			source := rand.NewChaCha8([32]byte{1})
			done := make(chan error, 2)
			go func() {
				_, err := io.Copy(io.MultiWriter(peer, sent), io.LimitReader(source, size))
				done <- errors.Join(err, peer.CloseWrite())
			}()
			go func() {
				_, err := io.Copy(received, peer)
				done <- err
			}()
			echo(t, ours)
			for range 2 {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
			if got, want := received.Sum(nil), sent.Sum(nil); string(got) != string(want) {
				t.Errorf("received %x, sent %x", got, want)
			}
		})
	}
}

// choppy is a connection that reads few bytes, and then none for once.
type choppy struct {
	net.Conn
	random *rand.Rand
	block  bool
}

func (c *choppy) Read(b []byte) (int, error) {
	if c.block = !c.block; c.block {
		return 0, os.ErrDeadlineExceeded
	}
	return c.Conn.Read(b[:min(len(b), 1+c.random.IntN(40000))])
}

// echo sends back all that is received, and hands over often.
func echo(t *testing.T, e *end) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	e.shadow.conn = &choppy{Conn: e.raw, random: random}
	var c io.ReadWriter = e
	buf := make([]byte, 64<<10)
	for handed := 0; ; {
		n, err := c.Read(buf)
		if _, err := c.Write(buf[:n]); err != nil {
			t.Fatal(err)
		}
		switch {
		case err == io.EOF:
			if handed < 20 {
				t.Errorf("handed over %d times", handed)
			}
			if err := c.(*Conn).CloseWrite(); err != nil {
				t.Error(err)
			}
			return
		case err != nil && !isTimeout(err):
			t.Fatal(err)
		case err == nil || random.IntN(8) > 0:
			continue
		}
		handed++
		if own, is := c.(*Conn); is {
			c = again(t, own)
			continue
		}
		e.raw = e.shadow.conn // choppy
		c = e.handOver(t)
	}
}

// The errors of the peer's side are those of a tls.Conn.
func TestErrors(t *testing.T) {
	k := kind{suite: tls.TLS_AES_128_GCM_SHA256, client: true}
	record := func(c *Conn, typ byte, content string) []byte {
		c.out.prepare(c.suite, &c.seal)
		b, _ := c.out.seal(&c.seal, nil, typ, []byte(content))
		return b
	}
	for name, attack := range map[string]func(c *Conn) []byte{
		"plaintext":       func(*Conn) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") },
		"another version": func(*Conn) []byte { return []byte{23, 3, 1, 0, 17} },
		"oversized":       func(*Conn) []byte { return []byte{23, 3, 3, 0x41, 1} },
		"forged":          func(*Conn) []byte { return append([]byte{23, 3, 3, 0, 20}, make([]byte, 20)...) },
		"too short":       func(*Conn) []byte { return append([]byte{23, 3, 3, 0, 5}, make([]byte, 5)...) },
		"alert":           func(c *Conn) []byte { return record(c, typeAlert, "\x02\x28") },
		"unknown alert":   func(c *Conn) []byte { return record(c, typeAlert, "\x02\xc8") },
		"user canceled": func(c *Conn) []byte {
			return append(record(c, typeAlert, "\x01\x5a"), record(c, typeAlert, "\x01\x00")...)
		},
		"long alert":        func(c *Conn) []byte { return record(c, typeAlert, "\x02\x28\x00") },
		"unknown type":      func(c *Conn) []byte { return record(c, 99, "hello") },
		"only padding":      func(c *Conn) []byte { return record(c, 0, "\x00\x00") },
		"empty handshake":   func(c *Conn) []byte { return record(c, typeHandshake, "") },
		"unknown message":   func(c *Conn) []byte { return record(c, typeHandshake, "\x63\x00\x00\x00") },
		"long message":      func(c *Conn) []byte { return record(c, typeHandshake, "\x04\x01\x00\x01") },
		"bad KeyUpdate":     func(c *Conn) []byte { return record(c, typeHandshake, "\x18\x00\x00\x01\x02") },
		"long KeyUpdate":    func(c *Conn) []byte { return record(c, typeHandshake, "\x18\x00\x00\x02\x00\x00") },
		"after a KeyUpdate": func(c *Conn) []byte { return record(c, typeHandshake, "\x18\x00\x00\x01\x00\x18") },
		"split message":     func(c *Conn) []byte { return append(record(c, typeHandshake, "\x18\x00"), record(c, 23, "x")...) },
		"bad CCS":           func(*Conn) []byte { return []byte{20, 3, 3, 0, 1, 2} },
		"protected CCS":     func(c *Conn) []byte { return append(record(c, 20, "\x01"), record(c, 23, "x")...) },
		"bad protected CCS": func(c *Conn) []byte { return record(c, 20, "\x02") },
		"bad CCS inside":    func(c *Conn) []byte { return append(record(c, typeHandshake, "\x18\x00"), 20, 3, 3, 0, 1, 2) },
		"long CCS":          func(*Conn) []byte { return append([]byte{20, 3, 3, 0x40, 1}, make([]byte, 1<<14+1)...) },
		"CCS in a message":  func(c *Conn) []byte { return append(record(c, typeHandshake, "\x18\x00"), 20, 3, 3, 0, 1, 1) },
		"CCS":               func(c *Conn) []byte { return append([]byte{20, 3, 3, 0, 1, 1}, record(c, typeAlert, "\x01\x00")...) },
		"many CCS":          func(c *Conn) (b []byte) { return repeat(17, func() []byte { return []byte{20, 3, 3, 0, 1, 1} }) },
		"many empty":        func(c *Conn) (b []byte) { return repeat(17, func() []byte { return record(c, 23, "") }) },
		"some empty": func(c *Conn) (b []byte) {
			return append(repeat(16, func() []byte { return record(c, 23, "") }), record(c, 23, "x")...)
		},
		"many KeyUpdates": func(c *Conn) (b []byte) {
			return repeat(17, func() []byte {
				b := record(c, typeHandshake, "\x18\x00\x00\x01\x00")
				c.out.update(c.suite)
				c.seal = protection{}
				return b
			})
		},
		"ends":            func(*Conn) []byte { return nil },
		"ends in header":  func(c *Conn) []byte { return record(c, 23, "hello")[:4] },
		"ends in record":  func(c *Conn) []byte { return record(c, 23, "hello")[:9] },
		"ends in message": func(c *Conn) []byte { return record(c, typeHandshake, "\x18\x00") },
		"close_notify":    func(c *Conn) []byte { return append(record(c, typeAlert, "\x01\x00"), "garbage"...) },
	} {
		t.Run(name, func(t *testing.T) {
			var got [2]string
			for i := range got {
				ours, other := connect(t, k)
				peer := other.handOver(t)
				var c io.ReadWriter = ours
				if i > 0 {
					c = ours.handOver(t)
				}
				got[i] = outcomeOf(t, c, peer, attack)
			}
			if got[0] != got[1] {
				t.Errorf("crypto/tls:\n%s\nConn:\n%s", got[0], got[1])
			}
		})
	}
}

func repeat(n int, f func() []byte) (b []byte) {
	for range n {
		b = append(b, f()...)
	}
	return b
}

// outcomeOf sends an attack, and tells what c makes of it: errors, and answers.
func outcomeOf(t *testing.T, c io.ReadWriter, peer *Conn, attack func(*Conn) []byte) (s string) {
	t.Helper()
	peer.conn.Write(attack(peer))
	finish(peer.conn)
	got, err := io.ReadAll(c)
	_, write := c.Write([]byte("hello"))
	var op *net.OpError
	var header tls.RecordHeaderError
	s = fmt.Sprintf("read %q, %v\nalert: %v, header: %v %v\nwrite %v\n", got, err, errors.As(err, &op), errors.As(err, &header), header.RecordHeader, write)
	if own, ok := c.(*Conn); ok && err != nil {
		if _, again := own.Read(make([]byte, 1)); again != err {
			t.Errorf("Read again: %v, after %v", again, err)
		}
	}
	switch own := c.(type) { // end the peer's read
	case *end:
		finish(own.raw)
	case *Conn:
		finish(own.conn)
	}
	answer, err := io.ReadAll(peer)
	return s + fmt.Sprintf("answer %q, alert %v", answer, err)
}

// A sequence number that reaches the limit of its key has a KeyUpdate before it.
func TestRecordLimit(t *testing.T) {
	for _, s := range suites {
		a, b := sockets(t)
		near := State{suite: s, in: receiver{client: true}, out: keys{seq: s.most - 2}}
		far := State{suite: s, in: receiver{keys: keys{seq: s.most - 2}}}
		x, y := resume(t, a, &near), resume(t, b, &far)
		for i := range 4 {
			say(t, x, y, "hello")
			want := []uint64{s.most - 1, s.most, 1, 2}[i]
			if x.out.seq != want || y.in.seq != want {
				t.Errorf("record %d has the numbers %d, %d, want %d", i, x.out.seq, y.in.seq, want)
			}
		}
	}
	last := keys{seq: 1<<64 - 1}
	p, _ := last.protection(suites[0])
	if _, err := last.seal(&p, nil, 23, nil); err != errSequence {
		t.Errorf("seal: %v", err)
	}
	if _, _, err := last.open(&p, make([]byte, 30)); err != errSequence {
		t.Errorf("open: %v", err)
	}
}

// Handshakes with the same random, one of which an attacker has copied, are not followed
// with each other's secrets.
func TestSameRandom(t *testing.T) {
	var log KeyLog
	a, b := log.Client(nil), log.Client(nil)
	var r random
	log.watch(r, a)
	log.watch(r, b)
	for range 2 {
		for _, side := range []string{"CLIENT", "SERVER"} {
			fmt.Fprintf(&log, "%s_TRAFFIC_SECRET_0 %x %x\n", side, r, make([]byte, 32))
		}
	}
	state := tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, HandshakeComplete: true}
	if a.Established(state) || b.Established(state) {
		t.Error("a connection is followed with another's secrets")
	}
}

// One byte at a time, with the Shadow and with the successor.
func TestOneByteReads(t *testing.T) {
	ours, peer := connect(t, kind{suite: tls.TLS_CHACHA20_POLY1305_SHA256, tickets: true, client: true})
	ours.shadow.conn = &oneByte{ours.raw}
	both(t, ours, peer, "one by one")
	c := ours.handOver(t)
	c.conn = &oneByte{ours.raw}
	both(t, c, peer, "one by one")
}

type oneByte struct{ net.Conn }

func (c *oneByte) Read(b []byte) (int, error) { return iotest.OneByteReader(c.Conn).Read(b) }

// After a handshake that has panicked, the KeyLog keeps nothing.
func TestForget(t *testing.T) {
	a, b := sockets(t)
	go io.Copy(io.Discard, b) // ends with the sockets
	var log KeyLog
	s := log.Client(a)
	conn := tls.Client(s, &tls.Config{KeyLogWriter: &log, InsecureSkipVerify: true})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err == nil || len(log.shadows) != 1 {
		t.Fatalf("%v, and %d connections are watched, want 1", err, len(log.shadows))
	}
	s.Forget()
	if len(log.shadows) > 0 {
		t.Error("the connection is still watched")
	}
}
