package relay

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// Records of TLS 1.3 other than application data after the handshake, in both
// directions. crypto/tls does not send them by itself, so the records of one end are
// made here, with the keys of its key log.

// The content types, handshake messages and alerts that are made here.
const (
	typeAlert, typeHandshake, typeData = 21, 22, 23

	messageTicket, messageKeyUpdate = 4, 24

	alertWarning, alertFatal         = 1, 2
	alertCloseNotify, alertInternal  = 0, 80
	updateNotRequested, updateWanted = 0, 1
)

// recordEnd is an application that writes its records itself, and reads through
// a tls.Conn.
type recordEnd struct {
	*end
	t      *testing.T
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// newRecordLeg is newLeg with a recordEnd. Its sides may be changed before the
// handshake.
func newRecordLeg(t *testing.T, change func(client *tls.Config)) (*recordEnd, Leg) {
	t.Helper()
	far, near := connected(t)
	for _, c := range []net.Conn{far, near} { // so that little is in the kernel when a test has the peer not read
		c.(*net.TCPConn).SetReadBuffer(64 << 10)
		c.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	var keys bytes.Buffer
	server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{certificate(t)}, SessionTicketsDisabled: true, KeyLogWriter: &keys})
	cfg := &tls.Config{InsecureSkipVerify: true}
	if change != nil {
		change(cfg)
	}
	transport := NewTransport(near)
	client := tls.Client(transport, cfg)
	handshake(t, server, client)
	if suite := server.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("the records here are made for AES-128-GCM, and the handshake chose %s", tls.CipherSuiteName(suite))
	}
	r := &recordEnd{end: &end{server, far}, t: t}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); f[0] == "SERVER_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			r.use(secret)
		}
	}
	return r, TLS(client, transport, nil)
}

// connected returns both ends of a TCP connection.
func connected(t testing.TB) (far, near net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if far, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return far, near
}

func handshake(t testing.TB, a, b *tls.Conn) {
	t.Helper()
	shaken := make(chan error, 1)
	go func() { shaken <- a.Handshake() }() // awaited below
	if err := b.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
}

// use switches to a generation of keys.
func (r *recordEnd) use(secret []byte) {
	r.secret, r.seq = secret, 0
	block, err := aes.NewCipher(expandLabel(r.t, secret, "key", 16))
	if err != nil {
		r.t.Fatal(err)
	}
	if r.aead, err = cipher.NewGCM(block); err != nil {
		r.t.Fatal(err)
	}
	r.iv = expandLabel(r.t, secret, "iv", 12)
}

// expandLabel is HKDF-Expand-Label of RFC 8446, without a context.
func expandLabel(t *testing.T, secret []byte, label string, n int) []byte {
	info := append([]byte{0, byte(n), byte(len("tls13 " + label))}, "tls13 "+label+"\x00"...)
	out, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// record makes a record.
func (r *recordEnd) record(contentType byte, content ...byte) []byte {
	nonce := bytes.Clone(r.iv)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], r.seq)
	for i, b := range seq {
		nonce[4+i] ^= b
	}
	r.seq++
	header := []byte{typeData, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(content)+1+r.aead.Overhead()))
	return r.aead.Seal(header, nonce, append(bytes.Clone(content), contentType), header)
}

func (r *recordEnd) data(s string) []byte { return r.record(typeData, []byte(s)...) }

// keyUpdate makes the message and switches to the next keys.
func (r *recordEnd) keyUpdate(request byte) []byte {
	b := r.record(typeHandshake, messageKeyUpdate, 0, 0, 1, request)
	r.use(expandLabel(r.t, r.secret, "traffic upd", 32))
	return b
}

func (r *recordEnd) send(records ...[]byte) {
	r.t.Helper()
	if _, err := r.raw.Write(bytes.Join(records, nil)); err != nil {
		r.t.Fatal(err)
	}
}

// closeNotify sends close_notify and FIN.
func (r *recordEnd) closeNotify() {
	r.send(r.record(typeAlert, alertWarning, alertCloseNotify))
	r.raw.(*net.TCPConn).CloseWrite()
}

// withRecords runs a test on every engine, with an upstream that makes its own
// records.
func withRecords(t *testing.T, f func(t *testing.T, p *pair, peer *recordEnd), change ...func(*tls.Config)) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			var peer *recordEnd
			var leg Leg
			p := newPair(t, engine(), kind{}, kind{}, func(c *Config) {
				var client func(*tls.Config)
				if len(change) > 0 {
					client = change[0]
				}
				peer, leg = newRecordLeg(t, client)
				c.Upstream.raw.Close()
				c.Upstream = leg
			})
			p.up.raw.Close()
			p.up = peer.end
			p.up.SetDeadline(time.Now().Add(bound))
			f(t, p, peer)
		})
	}
}

func wantRead(t *testing.T, from io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(from, b); string(b[:n]) != want {
		t.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

// New keys, requested by either end, at any position of the stream, also if the
// message arrives in two parts.
func TestKeyUpdate(t *testing.T) {
	withRecords(t, func(t *testing.T, p *pair, peer *recordEnd) {
		for range 20 {
			first := peer.data("a")
			update := peer.keyUpdate(updateWanted)
			last := peer.data("b")
			peer.send(first, update[:9])
			wantRead(t, p.down, "a")
			peer.send(update[9:], last)
			wantRead(t, p.down, "b")
			io.WriteString(p.down, "x")
			wantRead(t, p.up, "x") // with the new keys of our answer
			peer.send(peer.keyUpdate(updateNotRequested), peer.data("c"))
			wantRead(t, p.down, "c")
		}
		peer.closeNotify()
		if rest, err := io.ReadAll(p.down); len(rest) > 0 || err != nil {
			t.Errorf("then %q, %v", rest, err)
		}
		p.down.closeWrite()
		if rest, err := io.ReadAll(p.up); len(rest) > 0 || err != nil {
			t.Errorf("the peer reads %q, %v behind it", rest, err)
		}
		if r := p.result(); r.End != EndClosed || r.Up != 20 || r.Down != 60 || r.Truncated {
			t.Errorf("result %+v", r)
		}
	})
}

// A server may change its keys while it answers a client that has ended, although
// the change cannot be answered any more.
func TestKeyUpdateAfterWeHaveEnded(t *testing.T) {
	withRecords(t, func(t *testing.T, p *pair, peer *recordEnd) {
		p.down.closeWrite()
		if rest, err := io.ReadAll(p.up); len(rest) > 0 || err != nil {
			t.Fatalf("the peer reads %q, %v", rest, err)
		}
		peer.send(peer.data("a"), peer.keyUpdate(updateWanted), peer.data("b"))
		wantRead(t, p.down, "ab")
		peer.send(peer.keyUpdate(updateWanted), peer.data("c"))
		peer.closeNotify()
		if rest, err := io.ReadAll(p.down); string(rest) != "c" || err != nil {
			t.Errorf("the client reads %q, %v; want c", rest, err)
		}
		if r := p.result(); r.End != EndClosed || r.FirstClose != Downstream || r.Down != 3 {
			t.Errorf("result %+v", r)
		}
	})
}

// A peer that requests new keys again and again and reads no answer is not read any
// more before the answers fill our memory.
func TestKeyUpdatesWithoutEnd(t *testing.T) {
	withRecords(t, func(t *testing.T, p *pair, peer *recordEnd) {
		const many = 4 << 20 // more than the small sockets hold, and we
		var sent int
		for sent < many {
			var batch []byte
			for i := 1; len(batch) < 32<<10; i++ {
				batch = append(batch, peer.keyUpdate(updateWanted)...)
				if i%10 == 0 { // crypto/tls refuses more without data between them
					batch = append(batch, peer.data("a")...)
				}
			}
			peer.raw.SetWriteDeadline(time.Now().Add(time.Second / 2))
			n, err := peer.raw.Write(batch)
			if sent += n; err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				break
			}
			if f, ok := p.session.(holder); ok && f.heldFor(Upstream) > 1<<20 {
				t.Fatalf("we hold %d bytes for a peer that reads nothing", f.heldFor(Upstream))
			}
		}
		if sent >= many {
			t.Errorf("a peer that reads nothing could send %d bytes", sent)
		}
	})
}

// holder is a session that reports how many bytes it holds.
type holder interface{ heldFor(Side) int }

// tickets is a session cache that announces each entry.
type tickets chan *tls.ClientSessionState

func (c tickets) Get(string) (*tls.ClientSessionState, bool)    { return nil, false }
func (c tickets) Put(_ string, session *tls.ClientSessionState) { c <- session }

// Session tickets may arrive at any time, in several records, and reach the cache.
func TestLateTickets(t *testing.T) {
	cache := make(tickets, 10)
	withRecords(t, func(t *testing.T, p *pair, peer *recordEnd) {
		ticket := []byte{messageTicket, 0, 0, 20, 0, 0, 1, 0, 1, 2, 3, 4, 1, 7, 0, 6, 't', 'i', 'c', 'k', 'e', 't', 0, 0}
		ticket[3] = byte(len(ticket) - 4)
		for range 3 {
			peer.send(peer.data("a"), peer.record(typeHandshake, ticket[:11]...))
			wantRead(t, p.down, "a")
			rest := peer.record(typeHandshake, ticket[11:]...)
			peer.send(rest[:3])
			io.WriteString(p.down, "x")
			wantRead(t, p.up, "x")
			peer.send(rest[3:], peer.data("b"))
			wantRead(t, p.down, "b")
			select {
			case <-cache:
			case <-time.After(bound):
				t.Fatal("the ticket does not reach the cache")
			}
		}
	}, func(c *tls.Config) { c.ClientSessionCache, c.ServerName = cache, "tickets.test" })
}

// A fatal alert of the peer is a failure of TLS, and is passed on as a reset after the
// bytes that the peer sent before.
func TestAlertOfThePeer(t *testing.T) {
	withRecords(t, func(t *testing.T, p *pair, peer *recordEnd) {
		peer.send(peer.data("a"))
		wantRead(t, p.down, "a")
		peer.send(peer.record(typeAlert, alertFatal, alertInternal))
		wantReset(t, p.down)
		if r := p.result(); r.End != EndUpstreamTLS || r.FirstClose != None || r.ErrSide != Upstream || !isAlert(r.Err) {
			t.Errorf("result %+v", r)
		}
	})
}

// Records that we cannot read are answered with an alert, which arrives.
func TestAlertToThePeer(t *testing.T) {
	withRecords(t, func(t *testing.T, p *pair, peer *recordEnd) {
		record := peer.data("a")
		record[len(record)-1]++
		peer.send(record)
		if _, err := p.up.Read(make([]byte, 1)); !isAlert(err) {
			t.Errorf("the peer reads %v; want an alert", err)
		}
		wantReset(t, p.down)
		if r := p.result(); r.End != EndUpstreamTLS || r.FirstClose != None || r.Err == nil {
			t.Errorf("result %+v", r)
		}
	})
}

// isAlert reports whether err is an alert of the peer.
func isAlert(err error) bool {
	var e *net.OpError
	return errors.As(err, &e) && e.Op == "remote error"
}
