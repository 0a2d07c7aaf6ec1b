package request

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"ambassador/l4/ending"
	"ambassador/l4/htpasswd"
	"ambassador/l4/l4test"
	"ambassador/l4/outcome"
	"ambassador/l4/preface"
)

// tape is a client that sends everything at once and then closes.
type tape struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *tape) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *tape) Write(b []byte) (int, error) { return c.out.Write(b) }

// checks returns credentials whose check has this result.
func checks(ok bool, err error) preface.Credentials {
	return func(user, _ string) error { return LoginError(user, ok, err) }
}

const (
	socksLogin   = "\x05\x02\x00\x02" + "\x01\x05batch\x02pw"
	connectHead  = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
	connectNC    = "CONNECT 10.0.0.7:22 HTTP/1.0\r\n\r\n"
	connectLogin = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Authorization: Basic YmF0Y2g6cHc=\r\n\r\n"
)

// The specification of how a client with an unserved request ends, and of what it
// receives: all of a SOCKS5 reply, the beginning of an HTTP response. Package
// l4/preface tests the parsing of requests.
func TestRefusedRequests(t *testing.T) {
	for _, tt := range []struct {
		name, says string
		auth       preface.Credentials
		hears      string
		reason     outcome.Reason
		cause      string
	}{
		{"SOCKS5, bad", "\x05\x01\x00" + "\x05\x01\x00\x03\x00\x00\x50", nil, "\x05\x00" + "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", outcome.BadGreeting, "empty"},
		{"SOCKS5, cut", "\x05\x01", nil, "", outcome.BadGreeting, "unexpected EOF"},
		{"SOCKS5, nothing", "", nil, "", outcome.Probe, "EOF"},
		{"SOCKS5, no user", "\x05\x01\x00", checks(true, nil), "\x05\xff", outcome.AuthFailed, "offers no user name"},
		{"SOCKS5, a wrong password", socksLogin, checks(false, nil), "\x05\x02\x01\x01", outcome.AuthFailed, `"batch" is no user`},
		{"SOCKS5, users that cannot be asked", socksLogin, checks(false, errors.New("no users")), "\x05\x02\x01\x01", outcome.Internal, "no users"},
		{"SOCKS5, too many logins", socksLogin, checks(false, htpasswd.ErrBusy), "\x05\x02\x01\x01", outcome.Limit, "no turn within 5s"},
		{"SOCKS5, users that are asked for too long", socksLogin, checks(false, context.DeadlineExceeded), "\x05\x02\x01\x01", outcome.HandshakeTimeout, "in time"},
		{"SOCKS5, a fault", socksLogin, func(string, string) error { panic("a fault") }, "\x05\x02", outcome.Internal, "panic: a fault; this is a bug"},
		{"CONNECT, bad", "hello\r\n\r\n", nil, "HTTP/1.1 400 Bad Request\r\nProxy-Status: ambassador; error=http_request_error; details=\"bad_greeting: greet: CONNECT request: ", outcome.BadGreeting, "malformed"},
		{"CONNECT, bad in HTTP/1.0", "CONNECT a HTTP/1.0\r\n\r\n", nil, "HTTP/1.0 400 Bad Request\r\n", outcome.BadGreeting, "HOST:PORT"},
		{"CONNECT, GET", "GET / HTTP/1.1\r\n\r\n", nil, "HTTP/1.1 405 Method Not Allowed\r\n", outcome.BadGreeting, "set https_proxy"},
		{"CONNECT, SOCKS5", "\x05\x01\x00", nil, "", outcome.BadGreeting, "speaks SOCKS5"},
		{"CONNECT, cut", connectHead[:20], nil, "", outcome.BadGreeting, "unexpected EOF"},
		{"CONNECT, nothing", "", nil, "", outcome.Probe, "EOF"},
		{"CONNECT, no user", connectHead, checks(true, nil), "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Status: ambassador; error=http_request_denied; details=\"auth_failed: ", outcome.AuthFailed, "Proxy-Authorization: Basic"},
		{"CONNECT, a wrong password", connectLogin, checks(false, nil), "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Status: ambassador; error=http_request_denied; details=\"auth_failed: ", outcome.AuthFailed, `"batch" is no user`},
		{"CONNECT, users that cannot be asked", connectLogin, checks(false, errors.New("no users")), "HTTP/1.1 500 Internal Server Error\r\nProxy-Status: ambassador; error=proxy_internal_error;", outcome.Internal, "no users"},
		{"CONNECT, too many logins", connectLogin, checks(false, htpasswd.ErrBusy), "HTTP/1.1 503 Service Unavailable\r\nProxy-Status: ambassador; error=connection_limit_reached;", outcome.Limit, "no turn within 5s"},
		{"CONNECT, users that are asked for too long", connectLogin, checks(false, context.DeadlineExceeded), "HTTP/1.1 408 Request Timeout\r\n", outcome.HandshakeTimeout, "in time"},
	} {
		read := ReadConnect
		if strings.HasPrefix(tt.name, "SOCKS5") {
			read = ReadSOCKS5
		}
		c := &tape{in: strings.NewReader(tt.says)}
		r, err := read(c, tt.auth, false)
		var e *outcome.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %+v, %v; want an *Error", tt.name, r, err)
			continue
		}
		if e.Stage != outcome.StageGreet || e.Reason != tt.reason || !strings.Contains(e.Error(), tt.cause) {
			t.Errorf("%s: %s at %s, %v; want %s, %s", tt.name, e.Reason, e.Stage, e, tt.reason, tt.cause)
		}
		if (e.Limit == LimitLogins) != (e.Reason == outcome.Limit) {
			t.Errorf("%s: %s, limit %q", tt.name, e.Reason, e.Limit)
		}
		if hears := c.out.String(); hears != tt.hears && (!strings.HasPrefix(tt.hears, "HTTP/") || !strings.HasPrefix(hears, tt.hears)) {
			t.Errorf("%s: the client hears %q, want %q", tt.name, hears, tt.hears)
		}
	}
}

// The specification of the SOCKS5 replies. Every reason is listed.
func TestSOCKS5Replies(t *testing.T) {
	replies := map[outcome.Reason]byte{outcome.Denied: 2, outcome.NoRoute: 2, outcome.SpecialAddress: 2, outcome.Loop: 2, outcome.Unreachable: 4, outcome.DNS: 4,
		outcome.Refused: 5, outcome.BreakerOpen: 5, outcome.NoEndpoint: 5, outcome.Timeout: 6}
	for _, reason := range outcome.Reasons() {
		want := replies[reason]
		if want == 0 {
			want = 1
		}
		c := &tape{}
		if err := (socksAnswer{}).Refuse(c, &outcome.Error{Reason: reason}); err != nil || c.out.String() != "\x05"+string(rune(want))+"\x00\x01\x00\x00\x00\x00\x00\x00" {
			t.Errorf("%s: %q, %v", reason, c.out.String(), err)
		}
	}
	for n, want := range map[syscall.Errno]preface.SOCKSReply{syscall.ENETUNREACH: 3, syscall.EHOSTUNREACH: 4} {
		if got := ending.SOCKSReply(&outcome.Error{Reason: outcome.Unreachable, Err: fmt.Errorf("dial: %w", l4test.Sys("connect", n))}); got != want {
			t.Errorf("%v: reply %d, want %d", n, got, want)
		}
	}
}

// A client receives its answer in HTTP, and nothing else.
func TestConnectAnswers(t *testing.T) {
	lost := &outcome.Error{Stage: outcome.StageDial, Reason: outcome.Refused, Upstream: "internet", Address: "10.0.0.7:443", Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		says    string
		failure *outcome.Error
		hears   string
	}{
		{connectHead, nil, "HTTP/1.1 200 OK\r\n\r\n"},
		{connectNC, nil, "HTTP/1.0 200 OK\r\n\r\n"},
		{"CONNECT a:1 HTTP/1.2\r\nHost: a\r\n\r\n", nil, "HTTP/1.1 200 OK\r\n\r\n"},
		{connectHead, lost, "HTTP/1.1 502 Bad Gateway\r\n" +
			"Proxy-Status: ambassador; error=connection_refused; details=\"refused: dial internet 10.0.0.7:443: connection refused\"\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 56\r\nConnection: close\r\n\r\n" +
			"refused: dial internet 10.0.0.7:443: connection refused\n"},
		{connectNC, &outcome.Error{Stage: outcome.StagePermit, Reason: outcome.BreakerOpen, RetryIn: 1001 * time.Millisecond}, "HTTP/1.0 503 Service Unavailable\r\n" +
			"Proxy-Status: ambassador; error=destination_unavailable; details=\"breaker_open: permit: breaker_open\"\r\nRetry-After: 2\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 35\r\nConnection: close\r\n\r\nbreaker_open: permit: breaker_open\n"},
		{connectHead, &outcome.Error{Stage: outcome.StagePermit, Reason: outcome.BreakerOpen}, "HTTP/1.1 503 Service Unavailable\r\n" +
			"Proxy-Status: ambassador; error=destination_unavailable; details=\"breaker_open: permit: breaker_open\"\r\nRetry-After: 1\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 35\r\nConnection: close\r\n\r\nbreaker_open: permit: breaker_open\n"},
		{connectHead, &outcome.Error{Stage: outcome.StageRoute, Reason: outcome.Denied, Err: errors.New("a \"\\\"\r\nX: ü")}, "HTTP/1.1 403 Forbidden\r\n" +
			`Proxy-Status: ambassador; error=http_request_denied; details="denied: route: a \"\\\"??X: ?"` + "\r\n" +
			"Content-Type: text/plain\r\nContent-Length: 27\r\nConnection: close\r\n\r\n" + `denied: route: a "\"??X: ?` + "\n"},
	} {
		r, err := ReadConnect(&tape{in: strings.NewReader(tt.says)}, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		c := &tape{}
		if tt.failure == nil {
			err = r.Answer.Accept(c, netip.MustParseAddrPort("10.0.0.7:51200"))
		} else {
			err = r.Answer.Refuse(c, tt.failure)
		}
		if err != nil || c.out.String() != tt.hears {
			t.Errorf("%q, %v: hears %q, %v; want %q", tt.says, tt.failure, c.out.String(), err, tt.hears)
		}
	}
}

// The specification of the statuses. Every reason that a client can receive is listed.
func TestConnectReplies(t *testing.T) {
	verification := &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	for want, errs := range map[string][]*outcome.Error{
		"400 http_request_error":        {{Reason: outcome.BadGreeting}},
		"403 http_request_denied":       {{Reason: outcome.Denied}, {Reason: outcome.NoRoute}},
		"403 destination_ip_prohibited": {{Reason: outcome.SpecialAddress}},
		"403 proxy_loop_detected":       {{Reason: outcome.Loop}},
		"405 http_request_error":        {{Reason: outcome.BadGreeting, Err: &preface.MethodError{Method: "GET"}}},
		"407 http_request_denied":       {{Reason: outcome.AuthFailed}},
		"408 http_request_error":        {{Reason: outcome.HandshakeTimeout}},
		"500 proxy_internal_error":      {{Reason: outcome.Internal}},
		"502 dns_error":                 {{Reason: outcome.DNS}},
		"502 connection_refused":        {{Reason: outcome.Refused}},
		"502 connection_terminated":     {{Reason: outcome.UpstreamEarlyClose}, {Reason: outcome.UpstreamReset}},
		"502 destination_ip_unroutable": {{Reason: outcome.Unreachable}},
		"502 tls_protocol_error":        {{Reason: outcome.StartTLSRefused}, {Reason: outcome.UpstreamTLS, Err: io.EOF}},
		"502 tls_certificate_error":     {{Reason: outcome.UpstreamTLS, Err: verification}},
		"502 tls_alert_received":        {{Reason: outcome.UpstreamTLSRejected}},
		"503 connection_limit_reached":  {{Reason: outcome.Limit}},
		"503 destination_unavailable":   {{Reason: outcome.BreakerOpen}, {Reason: outcome.NoEndpoint}},
		"503 proxy_internal_error":      {{Reason: outcome.NoIdentity}, {Reason: outcome.LocalExhausted}},
		"504 connection_timeout":        {{Reason: outcome.Timeout}},
	} {
		for _, err := range errs {
			c := &tape{}
			connectAnswer{&preface.ConnectAnswer{}}.Refuse(c, err)
			status, _, _ := strings.Cut(strings.TrimPrefix(c.out.String(), "HTTP/1.0 "), " ")
			_, kind, _ := strings.Cut(c.out.String(), "error=")
			kind, _, _ = strings.Cut(kind, ";")
			if got := status + " " + kind; got != want {
				t.Errorf("%v: %s, want %s", err, got, want)
			}
		}
	}
}
