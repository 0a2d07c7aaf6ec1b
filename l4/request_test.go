package l4

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"ambassador/l4/htpasswd"
)

// tape is a client that says what it has to say and then is gone. It has no
// deadlines: they are the caller's.
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

type reader func(context.Context, net.Conn, credentials, bool) (request, error)

// asker is how a test's client asks.
type asker struct {
	read    reader
	auth    credentials
	context bool
}

// of gives what is made of the client, what it hears, and what it said that
// nobody has read.
func (a asker) of(t *testing.T, in io.Reader) (r request, hears, rest string, e *Error) {
	t.Helper()
	c := &tape{in: in}
	r, err := a.read(t.Context(), c, a.auth, a.context)
	if err != nil && (!errors.As(err, &e) || e.Stage != StageGreet) {
		t.Fatalf("error %v, want an *Error of greet", err)
	}
	unread, _ := io.ReadAll(in)
	return r, c.out.String(), string(r.early) + string(unread), e
}

// batch knows one user.
func batch(_ context.Context, user, password string) (bool, error) {
	return user == "batch" && password == "pw", nil
}

func broken(context.Context, string, string) (bool, error) { return false, errors.New("no users") }

func late(context.Context, string, string) (bool, error) { return false, context.DeadlineExceeded }

func crowded(context.Context, string, string) (bool, error) { return false, htpasswd.ErrBusy }

// goodRequest is a client that is understood, by what it says in either protocol.
type goodRequest struct {
	name    string
	says    string
	auth    credentials
	context bool
	hears   string
	to      string // host:port
	user    string
	tells   string // the context
}

// testGood holds the answers to what is asked, however it is cut into reads, with
// bytes of the client's own behind it that are nobody else's.
func testGood(t *testing.T, read reader, tests []goodRequest) {
	const own = "\x00\x05own bytes\r\n\r\n"
	for _, tt := range tests {
		for cut, in := range map[string]io.Reader{
			"at once":          strings.NewReader(tt.says + own),
			"in bytes":         iotest.OneByteReader(strings.NewReader(tt.says + own)),
			"with the end":     iotest.DataErrReader(strings.NewReader(tt.says + own)),
			"and nothing more": iotest.DataErrReader(strings.NewReader(tt.says)),
		} {
			r, hears, rest, err := asker{read, tt.auth, tt.context}.of(t, in)
			if err != nil {
				t.Errorf("%s %s: %v", tt.name, cut, err)
				continue
			}
			if want := own; cut != "and nothing more" && rest != want {
				t.Errorf("%s %s: the client's own bytes are %q", tt.name, cut, rest)
			}
			if got := destinationOf(r); got != tt.to || r.user != tt.user || r.context != tt.tells || r.answer == nil {
				t.Errorf("%s %s: to %s as %q, context %q; request %+v", tt.name, cut, got, r.user, r.context, r)
			}
			if hears != tt.hears {
				t.Errorf("%s %s: the client hears %q, want %q", tt.name, cut, hears, tt.hears)
			}
		}
	}
}

func destinationOf(r request) string {
	if r.addr.IsValid() {
		return r.host + netip.AddrPortFrom(r.addr, r.port).String()
	}
	return r.host + netip.AddrPortFrom(netip.IPv4Unspecified(), r.port).String()[len("0.0.0.0"):]
}

// badRequest is a client that is refused. Of an HTTP response hears is the beginning.
type badRequest struct {
	name    string
	says    string
	auth    credentials
	context bool
	hears   string
	reason  Reason
	cause   string
}

func testBad(t *testing.T, read reader, tests []badRequest) {
	for _, tt := range tests {
		for cut, in := range map[string]io.Reader{"at once": strings.NewReader(tt.says), "in bytes": iotest.OneByteReader(strings.NewReader(tt.says))} {
			r, hears, _, err := asker{read, tt.auth, tt.context}.of(t, in)
			if err == nil {
				t.Errorf("%s %s: taken for %+v", tt.name, cut, r)
				continue
			}
			if err.Reason != tt.reason || !strings.Contains(err.Error(), tt.cause) || len(err.Error()) > 1000 && tt.reason != ReasonInternal {
				t.Errorf("%s %s: %s, %v; want %s, %s", tt.name, cut, err.Reason, err, tt.reason, tt.cause)
			}
			if (err.Limit == limitLogins) != (err.Reason == ReasonLimit) {
				t.Errorf("%s %s: %s, limit %q", tt.name, cut, err.Reason, err.Limit)
			}
			if hears != tt.hears && (!strings.HasPrefix(tt.hears, "HTTP/") || !strings.HasPrefix(hears, tt.hears)) {
				t.Errorf("%s %s: the client hears %q, want %q", tt.name, cut, hears, tt.hears)
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

// within is a context that ends after d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// A client that stops saying anything, however far it came, is waited for as long
// as the caller's bound, and no goroutine is left (a bubble would not end with one).
func testSilence(t *testing.T, read reader, dialogues ...[]string) {
	for _, lines := range dialogues {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			client, conn := net.Pipe()
			go speak(client, lines...) // ends with the bubble's pipe
			defer boundIO(within(t, 10*time.Second), conn)()
			_, err := read(t.Context(), conn, batch, false)
			var e *Error
			if !errors.As(err, &e) || e.Reason != ReasonHandshakeTimeout || time.Since(start) != 10*time.Second {
				t.Errorf("%q: %v after %v", lines, err, time.Since(start))
			}
			client.Close()
		})
		synctest.Test(t, func(t *testing.T) {
			client, conn := net.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			go func() { // ends before its bubble
				speak(client, lines...)
				cancel()
			}()
			defer boundIO(ctx, conn)()
			start := time.Now()
			if _, err := read(ctx, conn, batch, false); err == nil || time.Since(start) != 0 {
				t.Errorf("%q: cancelled, %v after %v", lines, err, time.Since(start))
			}
			client.Close()
		})
	}
}

// testEndings are clients that end within what they have to say.
func testEndings(t *testing.T, read reader, begun string) {
	for _, tt := range []struct {
		name   string
		in     io.Reader
		reason Reason
	}{
		{"a knock", strings.NewReader(""), ReasonProbe},
		{"a cut request", strings.NewReader(begun), ReasonBadGreeting},
		{"a reset", iotest.ErrReader(sys("read", syscall.ECONNRESET)), ReasonDownstreamReset},
		{"a reset within", io.MultiReader(strings.NewReader(begun), iotest.ErrReader(sys("read", syscall.ECONNRESET))), ReasonDownstreamReset},
		{"a host gone", io.MultiReader(strings.NewReader(begun), iotest.ErrReader(sys("read", syscall.EHOSTUNREACH))), ReasonDownstreamLost},
	} {
		if _, hears, _, err := (asker{read: read}).of(t, tt.in); err == nil || err.Reason != tt.reason || len(hears) > 2 {
			t.Errorf("%s: %v, and it hears %q", tt.name, err, hears)
		}
	}
}

// testPipelined sends a request with 1 MiB behind it, all at once, over a socket.
func testPipelined(t *testing.T, read reader, says string) {
	bulk := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	got := make(chan []byte, 1)
	addr := backend(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(bound))
		r, err := read(t.Context(), c, nil, false)
		if err != nil {
			t.Error(err)
		}
		rest, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		got <- append(r.early, rest...)
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	if _, err := c.Write(append([]byte(says), bulk...)); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	if !bytes.Equal(<-got, bulk) {
		t.Error("what came behind the request is not what was sent")
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
