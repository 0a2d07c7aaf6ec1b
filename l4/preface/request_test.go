package preface

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// tape is a client that says what it has to say and then is gone. It has no deadlines:
// they are the caller's.
type tape struct {
	net.Conn
	in    io.Reader
	out   bytes.Buffer
	reads int
}

func (c *tape) Read(b []byte) (int, error)  { c.reads++; return c.in.Read(b) }
func (c *tape) Write(b []byte) (int, error) { return c.out.Write(b) }

// messages gives one of them to each Read.
type messages []string

func (m *messages) Read(b []byte) (int, error) {
	if len(*m) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*m)[0])
	if (*m)[0] = (*m)[0][n:]; (*m)[0] == "" {
		*m = (*m)[1:]
	}
	return n, nil
}

// reader is ReadConnect, or readSOCKS.
type reader func(net.Conn, Credentials, bool) (Request, *ConnectAnswer, error)

func readSOCKS(conn net.Conn, auth Credentials, hints bool) (Request, *ConnectAnswer, error) {
	r, err := ReadSOCKS5(conn, auth, hints)
	return r, nil, err
}

// asker is how a test's client asks.
type asker struct {
	read  reader
	auth  Credentials
	hints bool
}

// result is what becomes of a client.
type result struct {
	request Request
	answer  string // the HTTP version of the caller's answer; empty: there is none
	hears   string
	rest    string // what the client said and nobody has read
	err     error
}

func (a asker) of(in io.Reader) (r result) {
	c := &tape{in: in}
	var answer *ConnectAnswer
	r.request, answer, r.err = a.read(c, a.auth, a.hints)
	if answer != nil {
		r.answer = fmt.Sprintf("HTTP/1.%d", answer.minor)
	}
	unread, _ := io.ReadAll(in)
	r.hears, r.rest = c.out.String(), string(r.request.Early)+string(unread)
	return r
}

// passwordError is the error of batch.
type passwordError struct{ user string }

func (e passwordError) Error() string { return fmt.Sprintf("%q is no user", e.user) }

// batch knows one user.
func batch(user, password string) error {
	if user != "batch" || password != "pw" {
		return passwordError{user}
	}
	return nil
}

// The kinds of errors.
const (
	wrong    = "the client is wrong"
	noLogin  = "no user name and password"
	password = "the error of the credentials"
)

func kindOf(err error) string {
	var (
		bad   *Error
		login *LoginError
		own   passwordError
	)
	switch {
	case errors.As(err, &bad):
		return wrong
	case errors.As(err, &login):
		return noLogin
	case errors.As(err, &own):
		return password
	}
	return ""
}

// goodRequest is a client that is understood, by what it says in either protocol.
type goodRequest struct {
	name  string
	says  string
	auth  Credentials
	hints bool
	hears string
	to    string // host:port
	user  string
	tells string // the hints
}

// testGood checks what is asked, however it is cut into reads, with bytes of the client's
// own behind it, which stay.
func testGood(t *testing.T, read reader, tests []goodRequest) {
	const own = "\x00\x05own bytes\r\n\r\n"
	for _, tt := range tests {
		for cut, in := range map[string]io.Reader{
			"at once":          strings.NewReader(tt.says + own),
			"in bytes":         iotest.OneByteReader(strings.NewReader(tt.says + own)),
			"with the end":     iotest.DataErrReader(strings.NewReader(tt.says + own)),
			"and nothing more": iotest.DataErrReader(strings.NewReader(tt.says)),
		} {
			got := asker{read, tt.auth, tt.hints}.of(in)
			r := got.request
			if got.err != nil {
				t.Errorf("%s %s: %v", tt.name, cut, got.err)
				continue
			}
			if want := own; cut != "and nothing more" && got.rest != want {
				t.Errorf("%s %s: the client's own bytes are %q", tt.name, cut, got.rest)
			}
			if to := destinationOf(r); to != tt.to || r.User != tt.user || r.hints != tt.tells {
				t.Errorf("%s %s: to %s as %q, hints %q; request %+v", tt.name, cut, to, r.User, r.hints, r)
			}
			if got.hears != tt.hears || got.answer == "" != (tt.hears != "") {
				t.Errorf("%s %s: the client hears %q and an answer in %q, want %q", tt.name, cut, got.hears, got.answer, tt.hears)
			}
		}
	}
}

func destinationOf(r Request) string {
	if r.Addr.IsValid() {
		return r.Host + netip.AddrPortFrom(r.Addr, r.Port).String()
	}
	if r.Absolute {
		r.Host += "."
	}
	return r.Host + netip.AddrPortFrom(netip.IPv4Unspecified(), r.Port).String()[len("0.0.0.0"):]
}

// badRequest is a client that is refused: by what it hears, or by the caller's answer.
type badRequest struct {
	name   string
	says   string
	auth   Credentials
	hints  bool
	hears  string
	answer string
	kind   string
	cause  string
}

func testBad(t *testing.T, read reader, tests []badRequest) {
	for _, tt := range tests {
		for cut, in := range map[string]io.Reader{"at once": strings.NewReader(tt.says), "in bytes": iotest.OneByteReader(strings.NewReader(tt.says))} {
			got := asker{read, tt.auth, tt.hints}.of(in)
			if got.err == nil {
				t.Errorf("%s %s: taken for %+v", tt.name, cut, got.request)
				continue
			}
			if kindOf(got.err) != tt.kind || !strings.Contains(got.err.Error(), tt.cause) || len(got.err.Error()) > 1000 {
				t.Errorf("%s %s: %s, %v; want %s, %s", tt.name, cut, kindOf(got.err), got.err, tt.kind, tt.cause)
			}
			if got.hears != tt.hears || got.answer != tt.answer {
				t.Errorf("%s %s: the client hears %q and an answer in %q, want %q and %q", tt.name, cut, got.hears, got.answer, tt.hears, tt.answer)
			}
		}
	}
}

// speak is a client's part of a dialogue: it says the first, third, … of lines, and
// has to hear the others.
func speak(c net.Conn, lines ...string) error {
	for i, line := range lines {
		if i%2 == 0 {
			if _, err := io.WriteString(c, line); err != nil {
				return err
			}
			continue
		}
		got := make([]byte, len(line))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if string(got) != line {
			return errors.New("heard " + string(got))
		}
	}
	return nil
}

// A client that stops in the middle, however far it came, is waited for until the
// connection's deadline, and no goroutine is left (a bubble would not end with one).
func testSilence(t *testing.T, read reader, dialogues ...[]string) {
	for _, lines := range dialogues {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			client, conn := net.Pipe()
			go speak(client, lines...) // ends with the bubble's pipe
			conn.SetDeadline(start.Add(10 * time.Second))
			_, _, err := read(conn, batch, false)
			if !errors.Is(err, os.ErrDeadlineExceeded) || kindOf(err) != "" || time.Since(start) != 10*time.Second {
				t.Errorf("%q: %v after %v", lines, err, time.Since(start))
			}
			client.Close()
		})
		synctest.Test(t, func(t *testing.T) {
			client, conn := net.Pipe()
			go func() { // ends before its bubble
				speak(client, lines...)
				conn.SetDeadline(time.Unix(1, 0))
			}()
			start := time.Now()
			if _, _, err := read(conn, batch, false); err == nil || time.Since(start) != 0 {
				t.Errorf("%q: cancelled, %v after %v", lines, err, time.Since(start))
			}
			client.Close()
		})
	}
}

func sys(op string, n syscall.Errno) error {
	return &net.OpError{Op: op, Err: os.NewSyscallError(op, n)}
}

// testEndings are clients that end inside what they have to say.
func testEndings(t *testing.T, read reader, begun string) {
	for _, tt := range []struct {
		name string
		in   io.Reader
		want error
	}{
		{"nothing", strings.NewReader(""), io.EOF},
		{"a cut request", strings.NewReader(begun), io.ErrUnexpectedEOF},
		{"a reset", iotest.ErrReader(sys("read", syscall.ECONNRESET)), syscall.ECONNRESET},
		{"a reset inside", io.MultiReader(strings.NewReader(begun), iotest.ErrReader(sys("read", syscall.ECONNRESET))), syscall.ECONNRESET},
		{"a host gone", io.MultiReader(strings.NewReader(begun), iotest.ErrReader(sys("read", syscall.EHOSTUNREACH))), syscall.EHOSTUNREACH},
	} {
		got := asker{read: read}.of(tt.in)
		if !errors.Is(got.err, tt.want) || kindOf(got.err) != "" || len(got.hears) > 2 || got.answer != "" {
			t.Errorf("%s: %v, and it hears %q and an answer in %q", tt.name, got.err, got.hears, got.answer)
		}
	}
}

// testPipelined sends a request with 1 MiB behind it, all at once, over a socket.
func testPipelined(t *testing.T, read reader, says string) {
	bulk := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	by := time.Now().Add(10 * time.Second)
	ln.(*net.TCPListener).SetDeadline(by)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(by)
	sent := make(chan error, 1)
	go func() { // ends at by
		_, err := c.Write(append([]byte(says), bulk...))
		c.(*net.TCPConn).CloseWrite()
		sent <- err
	}()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(by)
	r, _, err := read(conn, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(conn)
	if sendErr := <-sent; err != nil || sendErr != nil || !bytes.Equal(append(r.Early, rest...), bulk) {
		t.Errorf("what came behind the request is not what was sent: %v, %v", err, sendErr)
	}
}

// deaf is a client that has gone when it is to be told more than so many things.
type deaf struct {
	tape
	hears int
}

func (c *deaf) Write(b []byte) (int, error) {
	if c.hears--; c.hears < 0 {
		return 0, sys("write", syscall.EPIPE)
	}
	return c.tape.Write(b)
}
