package tlsrecord

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"os"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"
	_ "unsafe" // for linkname
)

// crypto/tls chooses between the suites by the processor. The tests choose themselves.
//
//go:linkname tls13Suites crypto/tls.defaultCipherSuitesTLS13
var tls13Suites []uint16

//go:linkname tls13SuitesNoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var tls13SuitesNoAES []uint16

var suitesMu sync.Mutex

// only makes handshakes negotiate one suite until the result is called.
func only(id uint16) (undo func()) {
	suitesMu.Lock()
	a, b := tls13Suites, tls13SuitesNoAES
	tls13Suites, tls13SuitesNoAES = []uint16{id}, []uint16{id}
	return func() {
		tls13Suites, tls13SuitesNoAES = a, b
		suitesMu.Unlock()
	}
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// kind is a way to connect.
type kind struct {
	suite   uint16
	client  bool // we are the client
	mutual  bool
	tickets bool
	version uint16 // the latest; 0: TLS 1.3
	cache   tls.ClientSessionCache
}

// end is one end of a connection: a tls.Conn on a feed on a Shadow.
type end struct {
	*tls.Conn
	feed   *feed
	shadow *Shadow
	raw    net.Conn
}

// feed passes through, or is fed by the test: it never waits.
type feed struct {
	net.Conn
	fed     bool
	in, out []byte
	end     error
}

func (f *feed) Read(b []byte) (int, error) {
	switch {
	case !f.fed:
		return f.Conn.Read(b)
	case len(f.in) > 0:
		n := copy(b, f.in)
		f.in = f.in[n:]
		return n, nil
	case f.end != nil:
		return 0, f.end
	}
	return 0, os.ErrDeadlineExceeded
}

func (f *feed) Write(b []byte) (int, error) {
	if !f.fed {
		return f.Conn.Write(b)
	}
	f.out = append(f.out, b...)
	return len(b), nil
}

func (f *feed) SetWriteDeadline(t time.Time) error {
	if !f.fed {
		return f.Conn.SetWriteDeadline(t)
	}
	return nil
}

var clientLog, serverLog KeyLog

// connect makes a connection; ours is the end that the kind describes.
func connect(t testing.TB, k kind) (ours, peer *end) {
	t.Helper()
	a, b := sockets(t)
	server := &tls.Config{Certificates: []tls.Certificate{certificate()}, MaxVersion: k.version, SessionTicketsDisabled: !k.tickets, KeyLogWriter: &serverLog}
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", MaxVersion: k.version, ClientSessionCache: k.cache, KeyLogWriter: &clientLog}
	if k.mutual {
		server.ClientAuth = tls.RequireAnyClientCert
		client.Certificates = server.Certificates
	}
	if k.tickets && k.cache == nil {
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1) // else the client wants no ticket
	}
	if k.tickets { // one key for all servers
		server.SetSessionTicketKeys([][32]byte{{1}})
	}
	asClient := func(raw net.Conn) *end {
		s := clientLog.Client(raw)
		f := &feed{Conn: s}
		return &end{tls.Client(f, client), f, s, raw}
	}
	asServer := func(raw net.Conn) *end {
		s := serverLog.Server(raw)
		f := &feed{Conn: s}
		return &end{tls.Server(f, server), f, s, raw}
	}
	if k.client {
		ours, peer = asClient(a), asServer(b)
	} else {
		ours, peer = asServer(a), asClient(b)
	}
	defer only(k.suite)()
	failed := make(chan error, 1)
	go func() { failed <- peer.Handshake() }()
	if err := ours.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	ours.shadow.Established(ours.ConnectionState())
	peer.shadow.Established(peer.ConnectionState())
	return ours, peer
}

// sockets returns the two ends of a connection.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
		ends[i].SetDeadline(time.Now().Add(time.Minute))
	}
	return ends[0], ends[1]
}

// finish ends one direction of a connection.
func finish(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// truth reads what crypto/tls itself knows of a direction: "in" or "out".
func truth(c *tls.Conn, direction string) (secret []byte, seq uint64) {
	half := reflect.ValueOf(c).Elem().FieldByName(direction)
	number := half.FieldByName("seq")
	var b [8]byte
	for i := range b {
		b[i] = byte(number.Index(i).Uint())
	}
	return half.FieldByName("trafficSecret").Bytes(), binary.BigEndian.Uint64(b[:])
}

// check compares a Shadow with its tls.Conn.
func (e *end) check(t testing.TB) {
	t.Helper()
	s := e.shadow
	if !s.ok {
		t.Fatal("the Shadow has lost the connection")
	}
	for direction, got := range map[string]*keys{"in": &s.in.keys, "out": &s.out} {
		secret, seq := truth(e.Conn, direction)
		if got.seq != seq {
			t.Errorf("%s: %d records, want %d", direction, got.seq, seq)
		}
		if !bytes.Equal(got.secret[:s.suite.secret], secret) {
			t.Errorf("%s: the secret is that of another generation", direction)
		}
	}
}

// handOver ends the use of the tls.Conn, which no call may be using, and returns its
// successor.
func (e *end) handOver(t testing.TB) *Conn {
	t.Helper()
	e.check(t)
	e.shadow.Detach()
	s, err := e.shadow.Export(false)
	if err != nil {
		t.Fatal(err)
	}
	return resume(t, e.raw, s)
}

// again hands over a Conn.
func again(t testing.TB, c *Conn) *Conn {
	t.Helper()
	s, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	return resume(t, c.conn, s)
}

// resume sends a state through its encoding.
func resume(t testing.TB, raw net.Conn, s *State) *Conn {
	t.Helper()
	b, err := s.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	var decoded State
	if err := decoded.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	c := NewConn(raw, &decoded)
	decoded.Clear()
	return c
}

// say sends a text from one end to the other.
func say(t testing.TB, from io.Writer, to io.Reader, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

// both says something in both directions.
func both(t testing.TB, a, b io.ReadWriter, text string) {
	t.Helper()
	say(t, a, b, text)
	say(t, b, a, text)
}

// rekey makes a Conn send a KeyUpdate.
func (c *Conn) rekey(t testing.TB, request bool) {
	t.Helper()
	c.outMu.Lock()
	defer c.outMu.Unlock()
	message := keyUpdate
	if request {
		message[4] = 1
	}
	if err := c.write(typeHandshake, message[:]); err != nil {
		t.Fatal(err)
	}
	c.out.update(c.suite)
	c.seal = protection{}
}
