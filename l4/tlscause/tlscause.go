package tlscause

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"ambassador/l4/netconn"
)

// Error is a TLS failure with its cause in words, and the fix.
type Error struct {
	What  string
	Cure  string // empty if no fix is known
	Cause error  // what was seen; nil if the peer has only closed
}

// Error is "WHAT (CAUSE); FIX".
func (e *Error) Error() string {
	s := e.What
	if e.Cause != nil {
		s += fmt.Sprintf(" (%v)", e.Cause)
	}
	if e.Cure != "" {
		s += "; " + e.Cure
	}
	return s
}

// Unwrap returns Cause.
func (e *Error) Unwrap() error { return e.Cause }

// Fix returns Cure.
func (e *Error) Fix() string { return e.Cure }

// Fault says what is wrong with a certificate of ours as far as we can judge, and how to
// fix it. What is empty if nothing is.
type Fault func(*tls.Certificate) (what, fix string)

// judge calls f, which may be nil.
func (f Fault) judge(cert *tls.Certificate) (what, fix string) {
	if f == nil || cert == nil {
		return "", ""
	}
	return f(cert)
}

// The alerts of TLS that have causes of their own (RFC 8446, 6; RFC 5246, 7.2).
const (
	handshakeFailure      = 40
	badCertificate        = 42
	unsupportedCert       = 43
	certificateRevoked    = 44
	certificateExpired    = 45
	certificateUnknown    = 46
	illegalParameter      = 47
	unknownCA             = 48
	accessDenied          = 49
	decodeError           = 50
	decryptError          = 51
	protocolVersion       = 70
	insufficientSecurity  = 71
	internalError         = 80
	missingExtension      = 109
	unsupportedExtension  = 110
	unrecognizedName      = 112
	certificateRequired   = 116
	noApplicationProtocol = 120
)

// OfCertificate reports whether an alert is about the certificate of the side that
// receives it.
func OfCertificate(alert uint8) bool {
	switch alert {
	case badCertificate, unsupportedCert, certificateRevoked, certificateExpired, certificateUnknown,
		unknownCA, accessDenied, certificateRequired:
		return true
	}
	return false
}

// isOurs reports whether err is one of crypto/tls itself: it refused what the peer sent.
// Those errors have no type, or are a net.OpError of that Op. Timeouts, the errors of a
// socket and of our own functions are others.
func isOurs(err error) bool {
	var (
		op     *net.OpError
		header tls.RecordHeaderError
	)
	switch {
	case netconn.IsHangUp(err), netconn.IsTimeout(err), errors.Is(err, context.Canceled), errors.As(err, &header):
		return false
	case errors.As(err, &op):
		return op.Op == "local error"
	}
	return errors.Unwrap(err) == nil
}

// maxName and maxNames bound what is shown of certificates and names: the peer chooses
// their length and their number.
const (
	maxName  = 120 // bytes
	maxNames = 4
)

// short truncates a text of the peer's, and replaces its control characters.
func short(s string) string {
	if len(s) > maxName {
		s = s[:maxName] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// listed joins the first names.
func listed(names []string) string {
	more := len(names) - maxNames
	var out []string
	for _, n := range names[:min(len(names), maxNames)] {
		out = append(out, short(n))
	}
	s := strings.Join(out, ", ")
	if more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// ours names a certificate of ours: "CN=app, issued by CN=the CA".
func ours(cert *tls.Certificate) string {
	if cert == nil || cert.Leaf == nil {
		return "which is not known here"
	}
	return nameOf(cert.Leaf) + ", issued by " + issuerOf(cert)
}

func issuerOf(cert *tls.Certificate) string {
	if cert == nil || cert.Leaf == nil {
		return "its CA"
	}
	return short(cert.Leaf.Issuer.String())
}

// nameOf is the subject, or where there is none, as in SPIFFE, the first name.
func nameOf(c *x509.Certificate) string {
	switch {
	case c.Subject.String() != "":
		return short(c.Subject.String())
	case len(c.URIs) > 0:
		return short(c.URIs[0].String())
	case len(c.DNSNames) > 0:
		return short(c.DNSNames[0])
	}
	return fmt.Sprintf("serial %x", c.SerialNumber)
}

// versions names the range of a configuration: "TLS 1.2 to TLS 1.3".
func versions(cfg *tls.Config) string {
	low, high := lowest(cfg), cfg.MaxVersion
	if high == 0 {
		high = tls.VersionTLS13
	}
	if low == high {
		return tls.VersionName(low)
	}
	return tls.VersionName(low) + " to " + tls.VersionName(high)
}

func lowest(cfg *tls.Config) uint16 {
	if cfg.MinVersion == 0 {
		return tls.VersionTLS12
	}
	return cfg.MinVersion
}
