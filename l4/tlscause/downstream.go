package tlscause

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"ambassador/l4/netconn"
)

// Downstream is what was seen of a handshake in which we are the server.
type Downstream struct {
	// Hello is the ClientHello; nil if none has arrived.
	Hello *tls.ClientHelloInfo
	// Config is what the client was answered with; nil without Hello.
	Config *tls.Config
	// Certified says that the client has shown a certificate that we could read.
	Certified bool
	// Answered says that the client has received our part of the handshake.
	Answered bool
}

// Explain returns why TLS with the client failed with err. The result wraps err; it is
// err itself where nothing better is known.
func (d Downstream) Explain(err error, fault Fault) error {
	e := &Error{Cause: err}
	alert, remote := netconn.Alert(err), netconn.IsAlert(err)
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &header):
		e.What = fmt.Sprintf("the client does not begin with TLS, but with %q", header.RecordHeader[:])
		e.Cure = noTLS(header.RecordHeader)
	case d.Hello == nil || d.Config == nil:
	case remote:
		d.explainAlert(e, alert, fault)
	case netconn.IsHangUp(err) && d.Answered:
		e.What = fmt.Sprintf("the client closed the connection without an alert after it had seen our certificate (%s)", ours(d.certificate()))
		e.Cure = "check that the client trusts " + issuerOf(d.certificate()) + d.otherName()
	case isOurs(err) && d.Answered && !d.Certified && d.Config.ClientAuth >= tls.RequireAnyClientCert:
		e.What = "the client sent no certificate that we can read, and the listener requires one"
		e.Cure = "let the client send one that a CA in tls.ca of the listener has issued (curl: --cert and --key)"
	case isOurs(err) && !d.Answered:
		e.What, e.Cure = d.disagreement()
	}
	if e.What == "" {
		return err
	}
	return e
}

// noTLS is the fix for a client whose first bytes are not a TLS record.
func noTLS(first [5]byte) string {
	for _, known := range []struct{ prefix, fix string }{
		{"\x00\x00\x00\x08\x04", "that is how PostgreSQL asks for TLS: set starttls: postgres of the listener"},
		{"PROXY", "that is a PROXY header: set proxy_protocol of the listener, with the addresses of the proxies"},
		{"\r\n\r\n\x00", "that is a PROXY header: set proxy_protocol of the listener, with the addresses of the proxies"},
		{"\x05", "that looks like SOCKS5, and the listener has tls: let the client speak SOCKS5 within TLS, or use a listener without tls"},
		{"\x04", "that looks like SOCKS4, and the listener has tls: let the client speak SOCKS5 within TLS, or use a listener without tls"},
		{"SSH-", "that is an SSH client: give it the address of an SSH server"},
		{"\x80", "that looks like SSL 2.0: let the client speak TLS 1.2 or newer"},
		{"GET ", "that is plain HTTP, and the listener has tls: let the client use https"},
		{"POST ", "that is plain HTTP, and the listener has tls: let the client use https"},
		{"HEAD ", "that is plain HTTP, and the listener has tls: let the client use https"},
		{"CONNE", "that is plain HTTP, and the listener has tls: let the client use an https proxy"},
	} {
		if strings.HasPrefix(string(first[:]), known.prefix) {
			return known.fix
		}
	}
	return "the listener has tls: let the client begin with TLS, or use a listener without tls"
}

// certificate is that which the client has received.
func (d *Downstream) certificate() *tls.Certificate {
	if d.Config == nil || len(d.Config.Certificates) == 0 {
		return nil
	}
	return &d.Config.Certificates[0]
}

// otherName says that the client asked for a name that our certificate has not. It is
// the end of a fix; empty if the name fits, or is not known.
func (d *Downstream) otherName() string {
	cert := d.certificate()
	if d.Hello.ServerName == "" || cert == nil || cert.Leaf == nil || cert.Leaf.VerifyHostname(d.Hello.ServerName) == nil {
		return ""
	}
	return fmt.Sprintf("; it asked for %s, and the certificate is for %s", short(d.Hello.ServerName), sans(cert))
}

// sans lists the names of our certificate.
func sans(cert *tls.Certificate) string {
	if cert == nil || cert.Leaf == nil {
		return "not known"
	}
	names := slices.Clone(cert.Leaf.DNSNames)
	for _, ip := range cert.Leaf.IPAddresses {
		names = append(names, net.IP(ip).String())
	}
	for _, u := range cert.Leaf.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		return "no name"
	}
	return listed(names)
}

// explainAlert decides by the alert of the client.
func (d *Downstream) explainAlert(e *Error, alert uint8, fault Fault) {
	cert := d.certificate()
	issuer := issuerOf(cert)
	switch {
	case OfCertificate(alert) || alert == decryptError:
		e.What = fmt.Sprintf("the client rejected our certificate (%s): ", ours(cert))
	case alert == protocolVersion:
		e.What, e.Cure = fmt.Sprintf("the client does not accept the versions of the listener: %s", versions(d.Config)), "let the client accept one of them, or change tls.min_version of the listener"
		return
	case alert == handshakeFailure || alert == insufficientSecurity || alert == illegalParameter:
		e.What, e.Cure = "the client does not accept the cipher suite, the curve or the kind of key that we use", "update the client's TLS library, or use an identity with another kind of key (RSA of 2048 bits, or ECDSA P-256)"
		return
	default:
		return
	}
	what, fix := fault.judge(cert)
	switch {
	case alert == unknownCA:
		e.What += "it does not trust that CA"
		e.Cure = fmt.Sprintf("let the client trust %s; tls.ca of the listener is only for the client's certificate", issuer)
	case d.otherName() != "":
		e.What += "it is not for the name that the client asked for"
		e.Cure = fmt.Sprintf("let the client use one of its names, or issue it for that one: the client asked for %s, and the certificate is for %s", short(d.Hello.ServerName), sans(cert))
	case alert == decryptError:
		e.What += "a signature is not that of the key which it expected"
		e.Cure = fmt.Sprintf("give the client the present certificate of %s: it may have one of the same name with another key", issuer)
	case what != "":
		e.What += what
		e.Cure = fix
	case alert == certificateExpired:
		e.What += "it takes the certificate, or one of its CAs, for expired"
		e.Cure = "compare the clocks of both hosts, and look at the CA certificates that the client has"
	case alert == certificateRevoked:
		e.What += "it was revoked"
		e.Cure = "get a new certificate, or let the client load a new revocation list"
	default:
		e.What += "it gave no reason"
		e.Cure = fmt.Sprintf("check that the client trusts %s, and connects by one of the names of the certificate (%s)", issuer, sans(cert))
	}
}

// disagreement says what the ClientHello lacks; empty if that is not known.
func (d *Downstream) disagreement() (what, fix string) {
	hello, cfg := d.Hello, d.Config
	offered := slices.Max(append([]uint16{0}, hello.SupportedVersions...))
	low := lowest(cfg)
	switch {
	case offered < low && offered != 0:
		return fmt.Sprintf("the client offers %s at most, and the listener requires %s", tls.VersionName(offered), tls.VersionName(low)), olderClient(low)
	case len(cfg.NextProtos) > 0 && len(hello.SupportedProtos) > 0 && !slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(cfg.NextProtos, p) }):
		return fmt.Sprintf("the client offers only protocols in ALPN that the listener does not have: %s", listed(hello.SupportedProtos)),
			"add the client's protocol to tls.alpn of the listener, or remove tls.alpn"
	}
	cert := d.certificate()
	if cert == nil {
		return "", ""
	}
	if err := hello.SupportsCertificate(cert); err != nil {
		return fmt.Sprintf("the client has no cipher suite, curve or signature algorithm for our certificate (%s): %v", ours(cert), err),
			"let the client offer ECDHE suites for " + cert.Leaf.PublicKeyAlgorithm.String() + " keys, or use an identity with another kind of key (RSA, ECDSA P-256)"
	}
	return "", ""
}

// olderClient is the fix for a client that is too old for the listener.
func olderClient(low uint16) string {
	if low > tls.VersionTLS12 {
		return "let the client speak " + tls.VersionName(low) + ", or set tls.min_version of the listener to \"1.2\""
	}
	return "let the client speak " + tls.VersionName(low) + " or newer"
}
