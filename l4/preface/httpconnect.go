package preface

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxConnectHead bounds the head of a request, in bytes: a name and a password need
// 200, a browser's cookies and its User-Agent a few thousand.
const maxConnectHead = 16 << 10

// connectBuffer takes all that common clients send in one read.
const connectBuffer = 2 << 10

// hintsHeader carries the hints of a request.
const hintsHeader = "Ambassador-Context"

// authHeader carries the user name and the password.
const authHeader = "Proxy-Authorization"

// ReadConnect reads the head of an HTTP CONNECT request (RFC 9110, section 9.3.6). Auth
// checks the user name and the password; nil: none is demanded. Hints allows the header
// of that purpose.
//
// The caller answers, a request that is refused here too: answer is nil only where the
// client has gone or does not speak HTTP.
//
// The target says where to go. A Host that says something else is ignored, as Envoy
// does; HAProxy refuses it, but Java's clients leave out the port there.
func ReadConnect(conn net.Conn, auth Credentials, hints bool) (r Request, answer *ConnectAnswer, err error) {
	c := &client{Conn: conn}
	limited := &io.LimitedReader{R: c, N: maxConnectHead}
	in := bufio.NewReaderSize(limited, connectBuffer)
	first, err := in.Peek(1)
	if err != nil {
		return Request{}, nil, c.ended("CONNECT")
	}
	if err := notHTTP(first[0]); err != nil {
		return Request{}, nil, &Error{err}
	}
	head, err := readHTTPHead(in)
	answer = &ConnectAnswer{minor: 1}
	if head.major == 1 {
		answer.minor = min(head.minor, 1)
	}
	if err != nil {
		if err = c.badHead(err, limited.N); c.err != nil {
			answer = nil
		}
		return Request{}, answer, err
	}
	if r, err = parseConnect(&head, hints); err != nil {
		return Request{}, answer, err
	}
	if auth != nil {
		if r.User, err = login(&head, auth); err != nil {
			return Request{}, answer, err
		}
	}
	early, _ := in.Peek(in.Buffered())
	r.Early = bytes.Clone(early)
	return r, answer, nil
}

// notHTTP says what a client speaks that cannot be answered in HTTP.
func notHTTP(first byte) error {
	switch first {
	case 4, 5:
		return fmt.Errorf("the client speaks SOCKS%d, and the listener HTTP CONNECT: let the client do so too (curl -x http://…), or give the listener socks5 instead (curl -x socks5h://…)", first)
	case 0x16:
		return errors.New("the client begins with TLS, and the listener speaks HTTP CONNECT without: let the client do so too (a proxy http://…, not https://…), or give the listener tls")
	}
	return nil
}

// badHead is why there is no head. Left is what remains of maxConnectHead.
func (c *client) badHead(err error, left int64) error {
	var bad *headError
	switch {
	case c.err != nil && !errors.As(err, &bad):
		return c.ended("CONNECT")
	case left <= 0 && bad == nil:
		err = fmt.Errorf("a head of more than %d bytes", maxConnectHead)
	}
	return malformed("CONNECT request: %w", err)
}

// MethodError is a request with another method than CONNECT.
type MethodError struct{ Method string }

// Error names the method and says how the client gets to use CONNECT.
func (e *MethodError) Error() string {
	return fmt.Sprintf("%.32s is not served here, only CONNECT: set https_proxy to this address, and not http_proxy (curl: --proxytunnel)", e.Method)
}

// parseConnect is what a head asks for, without the user.
func parseConnect(head *httpHead, hints bool) (Request, error) {
	said := head.values(hintsHeader)
	switch {
	case head.major != 1:
		return Request{}, malformed("the client speaks %s, and the listener HTTP/1.1", head.version)
	case head.method != http.MethodConnect:
		return Request{}, &Error{&MethodError{head.method}}
	case len(said) > 0 && !hints:
		return Request{}, malformed("CONNECT request: it has " + hintsHeader + ", and the listener no context: true")
	case len(head.values(authHeader)) > 1:
		return Request{}, malformed("CONNECT request: it has " + authHeader + " more than once")
	}
	r := Request{hints: strings.Join(said, ","), separator: ','}
	if parent := head.traceparent(); hints && parent != "" && !strings.Contains(r.hints, traceparent) {
		r.hints = strings.TrimPrefix(r.hints+","+traceparent+"="+parent, ",")
	}
	if err := cmp.Or(head.checkHost(), head.checkNoBody(), r.setTarget(head.target)); err != nil {
		return Request{}, malformed("CONNECT request: %w", err)
	}
	return r, nil
}

// traceparent is the part that all versions share of the header of W3C Trace Context;
// empty if there is no valid one.
func (h *httpHead) traceparent() string {
	said := h.values("Traceparent")
	if len(said) != 1 || !ParseTraceparent(said[0]).IsValid() {
		return ""
	}
	return said[0][:traceparentSize]
}

// setTarget sets the destination from the target of a request.
func (r *Request) setTarget(target string) error {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return fmt.Errorf("%.100q is not HOST:PORT", target)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("%.100q has no number of 1 to 65535 for a port", target)
	}
	if strings.HasPrefix(target, "[") { // RFC 3986, 3.2.2: brackets are for IPv6
		host = "[" + host + "]"
	}
	return r.setName(host, uint16(n))
}

// login is the user whose password the request has.
func login(head *httpHead, auth Credentials) (string, error) {
	user, password, ok := (&http.Request{Header: http.Header{"Authorization": head.values(authHeader)}}).BasicAuth()
	if !ok {
		return "", &LoginError{"the client gives no user name and password (Proxy-Authorization: Basic), and the listener has users_file"}
	}
	return user, auth(user, password)
}

// ConnectAnswer is the response to a CONNECT request, in the client's version of HTTP.
type ConnectAnswer struct{ minor int }

// Accept says that the client's own bytes follow. It has no headers: the bytes behind it
// are the upstream's.
func (a *ConnectAnswer) Accept(w io.Writer) error {
	_, err := fmt.Fprintf(w, "HTTP/1.%d 200 OK\r\n\r\n", a.minor)
	return err
}

// Refusal is a response other than success.
type Refusal struct {
	Status     int           // of HTTP
	Error      string        // a type of RFC 9209, section 2.3
	Text       string        // for people; shortened, and without what is not visible ASCII
	RetryAfter time.Duration // zero: not said
}

// Refuse tells programs by status and Proxy-Status (RFC 9209), and people by the body.
func (a *ConnectAnswer) Refuse(w io.Writer, r Refusal) error {
	text := printable(r.Text)
	var out bytes.Buffer
	fmt.Fprintf(&out, "HTTP/1.%d %d %s\r\n", a.minor, r.Status, http.StatusText(r.Status))
	fmt.Fprintf(&out, "Proxy-Status: ambassador; error=%s; details=\"%s\"\r\n", r.Error, sfEscaper.Replace(text))
	switch r.Status {
	case http.StatusMethodNotAllowed:
		out.WriteString("Allow: CONNECT\r\n")
	case http.StatusProxyAuthRequired:
		out.WriteString("Proxy-Authenticate: Basic realm=\"ambassador\"\r\n")
	}
	if r.RetryAfter > 0 {
		fmt.Fprintf(&out, "Retry-After: %d\r\n", (r.RetryAfter+time.Second-1)/time.Second)
	}
	fmt.Fprintf(&out, "Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", len(text)+1, text)
	_, err := w.Write(out.Bytes())
	return err
}

// sfEscaper escapes what a String of structured fields (RFC 8941) allows only escaped;
// printable has removed what it does not allow at all.
var sfEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// printable is text in at most 500 bytes of visible ASCII and spaces.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return text[:min(len(text), 500)]
}
