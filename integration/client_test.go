package integration

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// frontFile is a configuration with the listener "front", its timeouts, and a
// plaintext upstream, with a starttls protocol if one is named.
func frontFile(t testing.TB, upstream, timeouts, starttls string) string {
	t.Helper()
	if starttls != "" {
		starttls = "starttls: " + starttls + ", "
	}
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
drain: {timeout: 5s}
listeners:
  front: {listen: "127.0.0.1:0", upstream: up, timeouts: {%s}}
upstreams:
  up: {endpoints: ["%s"], %srequired: false}
`, timeouts, upstream, starttls))
}

// line sends a line through an echo server and waits for it.
func line(t testing.TB, c net.Conn, text string) {
	t.Helper()
	fmt.Fprintln(c, text)
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || got != text+"\n" {
		t.Fatalf("echo of %q = %q, %v", text, got, err)
	}
}

// resetByPeer checks that a connection ends in a reset, and not in an end that
// looks complete.
func resetByPeer(t testing.TB, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
}

// endsAs checks the record of a session in log, metrics and `why`.
func (a *ambassador) endsAs(c net.Conn, stage, reason string) record {
	a.t.Helper()
	rec, err := ending(a.process, peerOf(a.process, c), stage, reason)
	if err != nil {
		a.t.Error(err)
	}
	return rec
}

// TestSilentAndSlow proves that time limits end what they should, with a reset,
// and nothing else: without them a byte an hour is a good session.
func TestSilentAndSlow(t *testing.T) {
	t.Parallel()
	quiet := startServer(t, nil, silent)
	half := startServer(t, nil, func(s *server, c duplex) { c.CloseWrite(); <-s.done })
	slow := startServer(t, nil, dribble)
	for _, c := range []struct {
		name, timeouts, reason string
		upstream               *server
		act                    func(net.Conn)
	}{
		{"nothing is said", "idle: 1s", "idle", quiet, func(net.Conn) {}},
		{"a byte and no more", "idle: 1s", "idle", quiet, func(c net.Conn) { c.Write([]byte{'.'}) }},
		{"the server a byte and no more", "idle: 1s", "idle", slow, func(net.Conn) {}},
		{"the client ended", "half_close_idle: 1s", "half_close_idle", quiet, func(c net.Conn) { c.(*net.TCPConn).CloseWrite() }},
		{"the server ended", "half_close_idle: 1s", "half_close_idle", half, func(net.Conn) {}},
		{"for ever", "lifetime: 1s", "lifetime", quiet, func(net.Conn) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := start(t, "run", "-c", frontFile(t, c.upstream.addr, c.timeouts, ""))
			conn := a.connect("front")
			c.act(conn)
			if c.upstream == half {
				a.endsAs(conn, "relay", c.reason)
				return
			}
			resetByPeer(t, conn)
			a.endsAs(conn, "relay", c.reason)
		})
	}
}

// TestSlowIsFine proves that a session without limits lasts through silence of
// both sides, and that a drain in the meantime counts it as idle.
func TestSlowIsFine(t *testing.T) {
	t.Parallel()
	srv := startServer(t, nil, echoLines)
	a := start(t, "run", "-c", frontFile(t, srv.addr, "", ""))
	conn := a.connect("front")
	line(t, conn, "one")
	srv.pause(3 * time.Second) // the silence itself, not a wait for anything
	line(t, conn, "two")
	a.signal(syscall.SIGTERM)
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("drain ended an idle session with %v, want a plain end", err)
	}
	conn.Close()
	a.lastWords(conn, "drained")
	a.ended(0)
}

// lastWords is endsAs for a process that is shutting down and does not answer.
func (a *ambassador) lastWords(c net.Conn, reason string) {
	a.t.Helper()
	rec, err := logged(a.process, peerOf(a.process, c))
	if err != nil || rec.Reason != reason {
		a.t.Errorf("the log says %+v, %v; want reason %s", rec, err, reason)
	}
}

// TestGreetings proves that a PostgreSQL listener bounds its wait for the
// client's part and survives every client that does not speak PostgreSQL.
func TestGreetings(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	db := startServer(t, nil, acceptsPostgresTLS(keys.mtls(t), func(c io.ReadWriter) { io.Copy(io.Discard, c) }))
	a := start(t, "run", "-c", postgresFront(t, keys, db))
	a.addr("front")
	for _, c := range []struct {
		name, reason string
		act          func(*net.TCPConn)
	}{
		{"says nothing", "handshake_timeout", func(*net.TCPConn) {}},
		{"half a message", "handshake_timeout", func(c *net.TCPConn) { c.Write([]byte{0, 0, 0, 8, 4}) }},
		{"a byte at a time", "handshake_timeout", func(c *net.TCPConn) {
			go func() { // ends with the connection
				_, err := c.Write([]byte{0, 0, 1, 0, 0, 3, 0, 0})
				for ; err == nil; _, err = c.Write([]byte{'u'}) {
					<-time.After(50 * time.Millisecond)
				}
			}()
		}},
		{"garbage", "bad_greeting", func(c *net.TCPConn) { io.CopyN(c, noise(3), 4096) }},
		{"HTTP", "bad_greeting", func(c *net.TCPConn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }},
		{"a huge length", "bad_greeting", func(c *net.TCPConn) { c.Write([]byte("\x7f\xff\xff\xff\x00\x03\x00\x00")) }},
		{"SSLRequests for ever", "bad_greeting", func(c *net.TCPConn) { io.WriteString(c, strings.Repeat("\x00\x00\x00\x08\x04\xd2\x16\x2f", 100)) }},
		{"leaves because TLS is declined", "bad_greeting", func(c *net.TCPConn) {
			io.WriteString(c, "\x00\x00\x00\x08\x04\xd2\x16\x2f")
			io.ReadFull(c, make([]byte, 1))
			c.Close()
		}},
		{"leaves inside its first message", "bad_greeting", func(c *net.TCPConn) { c.Write([]byte{0, 0, 0, 8, 4}); c.Close() }},
		{"closes", "probe", func(c *net.TCPConn) { c.Close() }},
		{"ends its direction", "probe", func(c *net.TCPConn) { c.CloseWrite() }},
		{"resets", "probe", func(c *net.TCPConn) { c.SetLinger(0); c.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn := a.connect("front").(*net.TCPConn)
			c.act(conn)
			rec, err := logged(a.process, peerOf(a.process, conn))
			if err != nil || rec.Reason != c.reason {
				t.Errorf("the log says %+v, %v; want reason %s", rec, err, c.reason)
			}
		})
	}
}

// postgresFront is a configuration with the listener "front" before a server that
// speaks PostgreSQL's STARTTLS.
func postgresFront(t testing.TB, keys *pki, db *server) string {
	t.Helper()
	return writeFile(t, "ambassador.yaml", fmt.Sprintf(`
listeners:
  front: {listen: "127.0.0.1:0", upstream: db, timeouts: {handshake: 1s}}
upstreams:
  db: {endpoints: ["%s"], starttls: postgres, tls: {identity: me, server_name: localhost}}
identities:
  me: {files: {cert: %s, key: %s, ca: %s}}
`, db.addr, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt")))
}

// acceptsPostgresTLS answers SSLRequest with S and goes on in TLS with talk.
func acceptsPostgresTLS(cfg *tls.Config, talk func(io.ReadWriter)) func(*server, duplex) {
	return func(s *server, c duplex) {
		if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
			return
		}
		c.Write([]byte("S"))
		secure := tls.Server(c, cfg)
		talk(secure)
		secure.Close()
	}
}

// startup is a PostgreSQL startup message: version 3.0, user "u".
const startup = "\x00\x00\x00\x10\x00\x03\x00\x00user\x00u\x00\x00"

// TestPostgresServersThatMisbehave proves that the wait for a server in the client's
// part of the dialogue is bounded, too, and that a client is told in its own protocol
// that a server is not PostgreSQL.
func TestPostgresServersThatMisbehave(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	hear := func(c io.ReadWriter) { io.ReadFull(c, make([]byte, len(startup))) }
	for _, c := range []struct {
		name, reason string
		talk         func(io.ReadWriter)
		told         string // what the client reads must hold
	}{
		{"says nothing", "timeout", func(c io.ReadWriter) { io.Copy(io.Discard, c) }, "i/o timeout"},
		{"a byte and no more", "timeout", func(c io.ReadWriter) { hear(c); io.WriteString(c, "R"); io.Copy(io.Discard, c) }, "i/o timeout"},
		{"noise", "starttls_refused", func(c io.ReadWriter) { hear(c); io.CopyN(c, noise(9), 300); io.Copy(io.Discard, c) }, "that is not PostgreSQL's protocol 3"},
		{"closes", "upstream_early_close", hear, "the server closed instead of answering"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := startServer(t, nil, acceptsPostgresTLS(keys.mtls(t), c.talk))
			a := start(t, "run", "-c", postgresFront(t, keys, db))
			conn := a.connect("front")
			io.WriteString(conn, startup)
			got, _ := io.ReadAll(conn)
			if !strings.Contains(string(got), c.told) {
				t.Errorf("the client reads %q, want %q in it", got, c.told)
			}
			a.endsAs(conn, "dialogue", c.reason)
		})
	}
}

// TestClientResets proves that a client's reset reaches the server as a reset,
// and cancels an attempt that is still in flight.
func TestClientResets(t *testing.T) {
	t.Parallel()
	t.Run("while bytes flow", func(t *testing.T) {
		t.Parallel()
		srv := startServer(t, nil, func(s *server, c duplex) {
			_, err := io.Copy(io.Discard, c)
			s.report(fmt.Sprintf("reset: %t", errors.Is(err, syscall.ECONNRESET)))
		})
		a := start(t, "run", "-c", frontFile(t, srv.addr, "", ""))
		conn := a.connect("front").(*net.TCPConn)
		conn.Write([]byte("hello"))
		a.metric("ambassador_bytes_total{direction=up}", 5)
		conn.SetLinger(0)
		conn.Close()
		if err := srv.received("reset: true", patience); err != nil {
			t.Error(err)
		}
		a.endsAs(conn, "relay", "downstream_reset")
	})
	t.Run("while the server does not answer", func(t *testing.T) {
		t.Parallel()
		srv := startServer(t, nil, func(s *server, c duplex) {
			s.report("here")
			_, err := io.Copy(io.Discard, c)
			s.report(fmt.Sprintf("gone: %v", err != nil))
		})
		keys := newPKI(t)
		a := start(t, "run", "-c", place{addr: srv.addr}.configFile(t, keys))
		conn := a.connect("front").(*net.TCPConn)
		if err := srv.received("here", patience); err != nil {
			t.Fatal(err)
		}
		conn.SetLinger(0)
		conn.Close()
		rec, err := logged(a.process, peerOf(a.process, conn))
		if err != nil || rec.Reason != "downstream_reset" || rec.Attempts != 1 {
			t.Errorf("the log says %+v, %v; want downstream_reset in the first attempt", rec, err)
		}
		if err := srv.received("gone: ", patience); err != nil {
			t.Error(err)
		}
	})
}

// TestProbe proves that a client that only connects and closes is recorded as a
// probe.
func TestProbe(t *testing.T) {
	t.Parallel()
	srv := startServer(t, nil, echoLines)
	a := start(t, "run", "-c", frontFile(t, srv.addr, "", ""))
	conn := a.connect("front")
	conn.Close()
	a.endsAs(conn, "relay", "probe")
}

// TestDescriptors proves that when descriptors run out accepting pauses, live
// sessions go on, nothing crashes, and accepting resumes by itself.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	need(t, "prlimit")
	srv := startServer(t, nil, echoLines)
	a := start(t, "run", "-c", frontFile(t, srv.addr, "", ""))
	live := a.connect("front")
	line(t, live, "before")
	a.metric("ambassador_sessions_active{listener=front}", 1) // and no descriptor is still needed for a first time

	limit := func(n int) {
		t.Helper()
		flag := fmt.Sprintf("--nofile=%d:", n) // the soft limit alone
		if text, err := exec.Command("prlimit", "--pid", fmt.Sprint(a.cmd.Process.Pid), flag).CombinedOutput(); err != nil {
			t.Fatalf("prlimit: %v\n%s", err, text)
		}
	}
	from := a.stderr.len() // an accept that finds nothing fails, too
	limit(3)               // which are standard input, output and error: there is none for anything new
	var crowd []net.Conn
	for range 12 {
		crowd = append(crowd, a.connect("front"))
	}
	a.awaitAfter(from, "accepting pauses")
	line(t, live, "during")
	for _, c := range crowd {
		c.Close()
	}
	limit(4096)
	line(t, a.connect("front"), "after")
	line(t, live, "still")
	a.metric("ambassador_accept_pauses_total{listener=front}", 1)

	// The end is not kept waiting by a pause.
	from = a.stderr.len()
	limit(3)
	a.connect("front")
	a.awaitAfter(from, "accepting pauses")
	live.Close()
	a.signal(syscall.SIGTERM)
	a.ended(0)
}

// TestKilledSession proves that a session can be ended by its id, with a reset.
func TestKilledSession(t *testing.T) {
	t.Parallel()
	srv := startServer(t, nil, echoLines)
	a := start(t, "run", "-c", frontFile(t, srv.addr, "", ""))
	conn := a.connect("front")
	line(t, conn, "hello")
	id, err := sessionID(a.process, conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, status, err := request(a.process, "POST", "/v1/sessions/"+id+"/kill"); err != nil || status/100 != 2 {
		t.Fatalf("POST kill: %d, %v", status, err)
	}
	resetByPeer(t, conn)
	a.endsAs(conn, "relay", "killed")
}

// TestManyClients proves that many short sessions leak nothing: each has its record,
// none is lost, and none stays.
func TestManyClients(t *testing.T) {
	t.Parallel()
	keys := newPKI(t)
	srv := startServer(t, keys.mtls(t), echo)
	a := start(t, append([]string{"forward", "--listen", "127.0.0.1:0", "--to", srv.addr, "--server-name", "localhost"}, keys.client()...)...)
	addr := a.addr("forward")
	const workers, each = 8, 50
	errs := make(chan error, workers)
	for range workers {
		go func() { // the loop below waits for it
			var err error
			for i := 0; i < each && err == nil; i++ {
				err = exchange(addr, strings.Repeat("x", 1+i*997))
			}
			errs <- err
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	a.metric("ambassador_sessions_total{listener=forward,stage=relay,reason=closed}", workers*each)
	if n, err := sample(a.process, "ambassador_sessions_active"); n != 0 || err != nil {
		t.Errorf("%v sessions are still active, %v", n, err)
	}
}

// exchange sends text, ends, and wants it back whole.
func exchange(addr, text string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	go func() { // ends by the deadline, and by Close
		io.WriteString(c, text)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err == nil && string(got) != text {
		err = fmt.Errorf("%d bytes came back of %d, or others", len(got), len(text))
	}
	return err
}
