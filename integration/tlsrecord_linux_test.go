package integration

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ambassador/l4/tlsrecord"
)

// openSSL is a running openssl s_server or s_client, and our end of the connection.
type openSSL struct {
	stdin  *os.File
	stdout *os.File
	ours   net.Conn // a tls.Conn, then a tlsrecord.Conn
	raw    net.Conn
	shadow *tlsrecord.Shadow // nil after the first hand-over
}

// startOpenSSL connects to an openssl s_server, or accepts an s_client.
func startOpenSSL(t *testing.T, server bool, flags ...string) *openSSL {
	t.Helper()
	keys, cert := rsaServer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	args := append([]string{"s_client", "-connect", addr}, keys...)
	if server {
		l.Close()
		args = append([]string{"s_server", "-accept", addr, "-Verify", "1"}, keys...)
	}
	cmd := exec.Command("openssl", append(append(args, "-tls1_3", "-CAfile", cert), flags...)...)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = in
	o := &openSSL{stdout: out}
	stdin, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, o.stdin = stdin, feed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	stdin.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		out.Close()
		o.stdin.Close()
	})
	out.SetReadDeadline(time.Now().Add(patience))
	pair, err := tls.LoadX509KeyPair(cert, keys[3])
	if err != nil {
		t.Fatal(err)
	}
	var log tlsrecord.KeyLog
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert, ServerName: "localhost",
		KeyLogWriter: &log, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	if server {
		o.raw = dialUntil(t, addr)
		o.shadow = log.Client(o.raw)
		o.ours = tls.Client(o.shadow, cfg)
	} else {
		if o.raw, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		o.shadow = log.Server(o.raw)
		o.ours = tls.Server(o.shadow, cfg)
	}
	t.Cleanup(func() { o.raw.Close() })
	o.raw.SetDeadline(time.Now().Add(patience))
	secure := o.ours.(*tls.Conn)
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	if !o.shadow.Established(secure.ConnectionState()) {
		t.Fatal("the connection cannot be followed")
	}
	return o
}

// dialUntil connects to a server that starts.
func dialUntil(t *testing.T, addr string) net.Conn {
	t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c
		}
		if time.Since(start) > patience {
			t.Fatal(err)
		}
	}
}

// handOver continues in a new Conn what is idle now.
func (o *openSSL) handOver(t *testing.T) {
	t.Helper()
	var s *tlsrecord.State
	var err error
	if own, is := o.ours.(*tlsrecord.Conn); is {
		s, err = own.Export()
	} else {
		o.shadow.Detach()
		s, err = o.shadow.Export(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Clear()
	var next tlsrecord.State
	if err := next.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	clear(b)
	o.ours = tlsrecord.NewConn(o.raw, &next)
	next.Clear()
}

// until reads until a text appears.
func until(t *testing.T, r io.Reader, text string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 64<<10)
	for !bytes.Contains(got, []byte(text)) {
		n, err := r.Read(buf)
		if got = append(got, buf[:n]...); err != nil {
			t.Fatalf("%v; wanted %q after\n%s", err, text, tail(string(got), 2000))
		}
	}
}

// both says something in both directions.
func (o *openSSL) both(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(o.ours, text+"\n"); err != nil {
		t.Fatal(err)
	}
	until(t, o.stdout, text)
	io.WriteString(o.stdin, text+"\n")
	until(t, o.ours, text)
}

// update makes OpenSSL send a KeyUpdate; K requests one of ours.
func (o *openSSL) update(t *testing.T, command string) {
	t.Helper()
	io.WriteString(o.stdin, command+"\n")
	// OpenSSL takes what it reads at once as one command, or as one text.
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlGetInt(int(o.stdin.Fd()), unix.TIOCINQ)
		if err != nil || time.Since(start) > patience {
			t.Fatalf("%d bytes are not read, %v", n, err)
		}
		if n == 0 {
			return
		}
	}
}

// openSSLKinds runs a test with all suites, both roles, and padding.
func openSSLKinds(t *testing.T, test func(t *testing.T, server bool, flags ...string)) {
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		for _, server := range []bool{false, true} {
			for _, padding := range []string{"0", "64"} {
				t.Run(fmt.Sprintf("%s/server=%v/padding=%s", suite, server, padding), func(t *testing.T) {
					test(t, server, "-ciphersuites", suite, "-record_padding", padding)
				})
			}
		}
	}
}

// TestTLSContinuesWithOpenSSL proves that OpenSSL does not notice that a TLS 1.3
// connection continues without crypto/tls, with new keys before, between and after.
func TestTLSContinuesWithOpenSSL(t *testing.T) {
	need(t, "openssl")
	openSSLKinds(t, func(t *testing.T, server bool, flags ...string) {
		o := startOpenSSL(t, server, flags...)
		o.both(t, "hello0")
		for round := range 3 {
			for i, command := range []string{"K", "k", "K"} {
				o.update(t, command)
				o.both(t, fmt.Sprintf("hello%d%d", round, i))
				o.both(t, fmt.Sprint("me", round, i)) // as long as a KeyUpdate
			}
			o.update(t, "K")
			o.update(t, "K")
			o.both(t, fmt.Sprint("hello", round))
			o.handOver(t)
			o.both(t, fmt.Sprint("after", round))
		}
		if err := o.ours.(*tlsrecord.Conn).CloseWrite(); err != nil {
			t.Error(err)
		}
		o.raw.(*net.TCPConn).CloseWrite()
		if n, err := io.Copy(io.Discard, o.ours); n != 0 || err != nil {
			t.Errorf("the end: %d bytes, %v; want close_notify", n, err)
		}
	})
}

// TestTLSBulkContinuesWithOpenSSL proves that no byte is lost or changed when a
// connection is handed over again and again in the middle of bulk in both directions.
func TestTLSBulkContinuesWithOpenSSL(t *testing.T) {
	need(t, "openssl")
	openSSLKinds(t, func(t *testing.T, server bool, flags ...string) {
		o := startOpenSSL(t, server, append(flags, "-quiet")...)
		const size = 4 << 20
		var wg sync.WaitGroup
		defer wg.Wait()
		data := make([]byte, size)
		rand.NewChaCha8([32]byte{7}).Read(data)
		want := sha256.Sum256(data)
		wg.Go(func() { o.stdin.Write(data) }) // it stays open: OpenSSL ends with it
		var mu sync.RWMutex                   // guards o.ours; held for reading by its users
		var turn sync.Mutex                   // held by the one that is next: mu is rarely free on a busy machine
		wg.Go(func() {
			for rest := data; len(rest) > 0; {
				turn.Lock()
				mu.RLock()
				turn.Unlock()
				n, err := o.ours.Write(rest[:min(len(rest), 10000)])
				mu.RUnlock()
				if rest = rest[n:]; err != nil {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			theirs := sha256.New()
			if n, err := io.CopyN(theirs, o.stdout, size); err != nil || [32]byte(theirs.Sum(nil)) != want {
				t.Errorf("OpenSSL has received %d bytes, %v, with another sum", n, err)
			}
		})
		handed := 0
		received := sha256.New()
		buf := make([]byte, 64<<10)
		ours, next := false, size/8
		defer func() {
			if ours {
				turn.Unlock()
			}
		}()
		for total := 0; total < size; {
			if total >= next && !ours {
				ours = turn.TryLock()
			}
			o.raw.SetReadDeadline(time.Now().Add(patience))
			n, err := o.ours.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			received.Write(buf[:n])
			// crypto/tls may hold plaintext; the relay, and this test, read until it has none.
			if total += n; n < len(buf) && mu.TryLock() {
				if handed > 0 || drained(o.ours, o.raw, received, &total) {
					o.handOver(t)
					handed++
				}
				mu.Unlock()
				if ours {
					turn.Unlock()
					ours, next = false, total+size/8
				}
			}
		}
		if [32]byte(received.Sum(nil)) != want {
			t.Error("what OpenSSL sent was changed")
		}
		if handed < 3 {
			t.Errorf("%d hand-overs", handed)
		}
	})
}

// drained reads what a tls.Conn holds.
func drained(c, raw net.Conn, into io.Writer, total *int) bool {
	raw.SetReadDeadline(time.Now().Add(-time.Second))
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		into.Write(buf[:n])
		if *total += n; err != nil {
			return os.IsTimeout(err)
		}
	}
}
