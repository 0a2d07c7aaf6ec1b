package l4

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// maxConnectHead bounds the head of a request, in bytes: a name and a password need
// 200, a browser's cookies and its User-Agent a few thousand.
const maxConnectHead = 16 << 10

// connectBuffer takes all that common clients send in one read.
const connectBuffer = 2 << 10

// contextHeader is what a client says about the connection it asks for.
const contextHeader = "Ambassador-Context"

// readConnect reads the head of a CONNECT request (RFC 9110, section 9.3.6). The
// caller bounds the connection, which stays its own: nothing is closed and no
// deadline set. A client that is refused was told so, unless it does not speak HTTP.
//
// The target says where to go. A Host that says something else is ignored, as Envoy
// does; HAProxy refuses it, but Java's clients leave out the port there.
func readConnect(ctx context.Context, conn net.Conn, auth credentials, contextAllowed bool) (request, error) {
	c := &asking{Conn: conn}
	limited := &io.LimitedReader{R: c, N: maxConnectHead}
	in := bufio.NewReaderSize(limited, connectBuffer)
	first, err := in.Peek(1)
	if err != nil {
		return request{}, c.lost("CONNECT")
	}
	if err := notHTTP(first[0]); err != nil {
		return request{}, requestError(ReasonBadGreeting, err)
	}
	head, err := readHTTPHead(in)
	answer := connectAnswer{minor: 1}
	if head.major == 1 {
		answer.minor = min(head.minor, 1)
	}
	if err != nil {
		e := c.badHead(err, limited.N)
		if c.err == nil {
			answer.refuse(conn, e)
		}
		return request{}, e
	}
	r, e := parseConnect(&head, contextAllowed)
	if e == nil && auth != nil {
		r.user, e = proxyUser(ctx, &head, auth)
	}
	if e != nil {
		answer.refuse(conn, e)
		return request{}, e
	}
	early, _ := in.Peek(in.Buffered())
	r.early, r.answer = bytes.Clone(early), answer
	return r, nil
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

// badHead is why there is no head; left is how much of it might still have come.
func (a *asking) badHead(err error, left int64) *Error {
	var malformed *headError
	switch {
	case a.err != nil && !errors.As(err, &malformed):
		return a.lost("CONNECT")
	case left <= 0 && malformed == nil:
		err = fmt.Errorf("a head of more than %d bytes", maxConnectHead)
	}
	return requestError(ReasonBadGreeting, fmt.Errorf("CONNECT request: %w", err))
}

// methodError is a request for something else than CONNECT.
type methodError struct{ method string }

func (e *methodError) Error() string {
	return fmt.Sprintf("%.32s is not served here, only CONNECT: set https_proxy to this address, and not http_proxy (curl: --proxytunnel)", e.method)
}

// parseConnect is what a head asks for, before it is known who asks.
func parseConnect(head *httpHead, contextAllowed bool) (request, *Error) {
	bad := func(err error) (request, *Error) { return request{}, requestError(ReasonBadGreeting, err) }
	said := head.values(contextHeader)
	switch {
	case head.major != 1:
		return bad(fmt.Errorf("the client speaks %s, and the listener HTTP/1.1", head.version))
	case head.method != http.MethodConnect:
		return bad(&methodError{head.method})
	case len(said) > 0 && !contextAllowed:
		return bad(errors.New("CONNECT request: it has " + contextHeader + ", and the listener no context: true"))
	case len(head.values(authHeader)) > 1:
		return bad(errors.New("CONNECT request: it has " + authHeader + " more than once"))
	}
	if err := cmp.Or(head.checkHost(), head.checkNoBody()); err != nil {
		return bad(fmt.Errorf("CONNECT request: %w", err))
	}
	r := request{context: strings.Join(said, ",")}
	host, port, err := net.SplitHostPort(head.target)
	if err != nil {
		return bad(fmt.Errorf("CONNECT request: %.100q is not HOST:PORT", head.target))
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return bad(fmt.Errorf("CONNECT request: %.100q has no number of 1 to 65535 for a port", head.target))
	}
	if err := r.goTo(host, uint16(n)); err != nil {
		return bad(fmt.Errorf("CONNECT request: %w", err))
	}
	return r, nil
}

// authHeader is where a client says who it is.
const authHeader = "Proxy-Authorization"

// proxyUser is who the client has proved to be.
func proxyUser(ctx context.Context, head *httpHead, auth credentials) (string, *Error) {
	user, password, ok := (&http.Request{Header: http.Header{"Authorization": head.values(authHeader)}}).BasicAuth()
	if !ok {
		return "", requestError(ReasonAuthFailed, errors.New("the client gives no user name and password (Proxy-Authorization: Basic), and the listener has users_file"))
	}
	return user, auth.check(ctx, user, password)
}

// connectAnswer is the response to a CONNECT request.
type connectAnswer struct{ minor int } // of the client's HTTP version

// accept has no headers: the bytes that follow the head are the upstream's.
func (a connectAnswer) accept(w io.Writer, _ netip.AddrPort) error {
	_, err := fmt.Fprintf(w, "HTTP/1.%d 200 OK\r\n\r\n", a.minor)
	return err
}

// refuse tells programs by status and Proxy-Status (RFC 9209), and people by the body.
func (a connectAnswer) refuse(w io.Writer, e *Error) error {
	status, kind := connectReply(e)
	words := printable(string(e.Reason) + ": " + e.Error())
	var out bytes.Buffer
	fmt.Fprintf(&out, "HTTP/1.%d %d %s\r\n", a.minor, status, http.StatusText(status))
	fmt.Fprintf(&out, "Proxy-Status: ambassador; error=%s; details=\"%s\"\r\n", kind, sfEscaper.Replace(words))
	switch {
	case status == http.StatusMethodNotAllowed:
		out.WriteString("Allow: CONNECT\r\n")
	case status == http.StatusProxyAuthRequired:
		out.WriteString("Proxy-Authenticate: Basic realm=\"ambassador\"\r\n")
	case e.Reason == ReasonBreakerOpen:
		fmt.Fprintf(&out, "Retry-After: %d\r\n", max(1, (e.RetryIn+time.Second-1)/time.Second))
	}
	fmt.Fprintf(&out, "Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", len(words)+1, words)
	_, err := w.Write(out.Bytes())
	return err
}

// sfEscaper escapes what a String of structured fields (RFC 8941) has no room for
// otherwise; what it cannot have at all printable has taken away.
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

// connectReplies are the status of each reason and its error type in RFC 9209,
// section 2.3. What is not here is a fault of ours.
var connectReplies = map[Reason]struct {
	status int
	kind   string
}{
	ReasonBadGreeting:         {http.StatusBadRequest, "http_request_error"},
	ReasonHandshakeTimeout:    {http.StatusRequestTimeout, "http_request_error"},
	ReasonAuthFailed:          {http.StatusProxyAuthRequired, "http_request_denied"},
	ReasonDenied:              {http.StatusForbidden, "http_request_denied"},
	ReasonNoRoute:             {http.StatusForbidden, "http_request_denied"},
	ReasonSpecialAddress:      {http.StatusForbidden, "destination_ip_prohibited"},
	ReasonLoop:                {http.StatusForbidden, "proxy_loop_detected"},
	ReasonDNS:                 {http.StatusBadGateway, "dns_error"},
	ReasonRefused:             {http.StatusBadGateway, "connection_refused"},
	ReasonUnreachable:         {http.StatusBadGateway, "destination_ip_unroutable"},
	ReasonStartTLSRefused:     {http.StatusBadGateway, "tls_protocol_error"},
	ReasonUpstreamTLS:         {http.StatusBadGateway, "tls_certificate_error"},
	ReasonUpstreamTLSRejected: {http.StatusBadGateway, "tls_alert_received"},
	ReasonUpstreamEarlyClose:  {http.StatusBadGateway, "connection_terminated"},
	ReasonUpstreamReset:       {http.StatusBadGateway, "connection_terminated"},
	ReasonTimeout:             {http.StatusGatewayTimeout, "connection_timeout"},
	ReasonBreakerOpen:         {http.StatusServiceUnavailable, "destination_unavailable"},
	ReasonNoEndpoint:          {http.StatusServiceUnavailable, "destination_unavailable"},
	ReasonLimit:               {http.StatusServiceUnavailable, "connection_limit_reached"},
	ReasonLocalExhausted:      {http.StatusServiceUnavailable, "proxy_internal_error"},
	ReasonNoIdentity:          {http.StatusServiceUnavailable, "proxy_internal_error"},
}

// connectReply is the status and the error type for a failure.
func connectReply(e *Error) (status int, kind string) {
	var (
		method      *methodError
		certificate *tls.CertificateVerificationError
	)
	reply, ok := connectReplies[e.Reason]
	switch {
	case !ok:
		return http.StatusInternalServerError, "proxy_internal_error"
	case errors.As(e, &method):
		return http.StatusMethodNotAllowed, reply.kind
	case e.Reason == ReasonUpstreamTLS && !errors.As(e, &certificate):
		return reply.status, "tls_protocol_error"
	}
	return reply.status, reply.kind
}
