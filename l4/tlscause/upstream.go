package tlscause

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"

	"ambassador/l4/netconn"
)

// Explain returns why TLS with the server failed with err, which is from the handshake,
// or from the first read after it: in TLS 1.3 a server refuses our certificate only
// then. A nil err says that the server closed at that point. The result wraps err; it is
// err itself where nothing better is known.
func (s Seen) Explain(err error, fault Fault) error {
	e := &Error{Cause: err}
	alert, remote := netconn.Alert(err), netconn.IsAlert(err)
	switch {
	case remote:
		s.explainAlert(e, alert, fault)
	case s.Request != nil && s.isNone() && (err == nil || netconn.IsHangUp(err)):
		e.What, e.Cure = s.missing("the server asked for a client certificate, got none, and closed the connection")
	case err == nil:
	case s.Sent == protocolVersion && s.Version != 0:
		e.What = fmt.Sprintf("the server speaks %s, and we accept %s", tls.VersionName(s.Version), versions(s.Config))
		e.Cure = s.older()
	case netconn.IsHangUp(err) && s.Version != 0:
		e.What = "the server began TLS, and then closed the connection without an alert"
		e.Cure = "its log has the reason; the next device before the server may have closed, too"
	case isOurs(err) && s.Request != nil && s.Request.Unfit != "":
		e.What = fmt.Sprintf("the server does not accept the kind of key that our certificate has (%s)", ours(s.certificate()))
		e.Cure = "get a certificate with an ECDSA P-256 key, or an RSA key of 2048 bits or more"
	case isOurs(err) && s.Version != 0:
		e.What = "the server sent what our TLS (Go's crypto/tls) does not accept"
		e.Cure = "fix on the server what the message names; if that is its certificate, let the CA issue it anew " +
			"(look at it with openssl s_client -showcerts; `ambassador help troubleshooting` has the known messages)"
		if s.Version < tls.VersionTLS13 {
			e.Cure += "; if it signs its key exchange with SHA-1, as old servers do: " + FixSHA1
		}
	}
	if e.What == "" {
		return err
	}
	return e
}

// explainAlert decides by the alert of the server and by what went before.
func (s *Seen) explainAlert(e *Error, alert uint8, fault Fault) {
	cert := s.certificate()
	asked := s.Request != nil
	switch {
	case alert == certificateRequired, cert == nil && OfCertificate(alert), cert == nil && asked && alert == handshakeFailure:
		e.What, e.Cure = s.missing("the server requires a client certificate, and we sent none")
	case OfCertificate(alert), cert != nil && asked && (alert == decryptError || alert == handshakeFailure):
		s.explainRejected(e, alert, cert, fault)
	default:
		e.What, e.Cure = s.offers(alert)
	}
}

// missing is what and the fix where the server requires a certificate and got none.
func (s *Seen) missing(what string) (string, string) {
	whose := "a CA that the server trusts"
	if s.Request != nil && s.Request.CAs != "" {
		whose += " (it names " + s.Request.CAs + ")"
	}
	if s.isNone() {
		return what + ": no certificate is configured", "set tls.identity (--cert, --key) to a certificate of " + whose
	}
	return what + ": ours cannot be used now", "see with `ambassador status` why, and get a certificate of " + whose
}

// explainRejected decides why the server rejected our certificate. The roots with which
// we verify the server have no part in it, and people look there first.
func (s *Seen) explainRejected(e *Error, alert uint8, cert *tls.Certificate, fault Fault) {
	const see = "; the server's log has its reason"
	e.What = fmt.Sprintf("the server rejected our certificate (%s): ", ours(cert))
	what, fix := fault.judge(cert)
	issuer := issuerOf(cert)
	switch {
	case alert == unknownCA && s.Request != nil && s.Request.Among:
		e.What += "it does not trust that CA, though it knows one of that name"
		e.Cure = fmt.Sprintf("give the server the present certificate of %s, which may have a new key, or add the intermediate certificates to ours", issuer)
	case alert == unknownCA:
		e.What += "it does not trust that CA" + s.accepted()
		e.Cure = fmt.Sprintf("use a certificate of a CA that the server trusts (tls.identity; --cert, --key), or let the server verify clients with %s; tls.ca (--ca) is only for its certificate", issuer)
	case alert == decryptError:
		e.What += "a signature is not that of the key which it expected"
		e.Cure = fmt.Sprintf("give the server the present certificate of %s: it may have one of the same name with another key", issuer)
	case alert == certificateRevoked:
		e.What += "it was revoked"
		e.Cure = "get a new certificate, or let the server load a new revocation list"
	case alert == accessDenied:
		e.What += "it is valid, and not allowed there"
		e.Cure = "let the server allow the names of our certificate"
	case what != "":
		e.What += what
		e.Cure = fix
	case alert == certificateExpired:
		e.What += "it takes the certificate, one of its CAs, or a revocation list for expired"
		e.Cure = "compare the clocks of both hosts, and look at the CA certificates and the revocation list that the server has" + see
	case alert == unsupportedCert:
		e.What += "it is not for the use that the server wants, or has a kind of key that it does not know"
		e.Cure = "issue it with extendedKeyUsage=clientAuth" + see
	case alert == handshakeFailure:
		e.What += "it gave no reason, and ended the handshake after it had asked for the certificate"
		e.Cure = "check that the server trusts " + issuer + " and allows the names of our certificate" + see
	default:
		e.What += "it gave no reason" + s.accepted()
		e.Cure = "check that the server trusts " + issuer + ", and accepts the names, the key size and the signature algorithm of our certificate" + see
	}
}

// accepted says of which CAs the server accepts certificates, if it says so and ours is
// of none of them.
func (s *Seen) accepted() string {
	if s.Request == nil || s.Request.CAs == "" || s.Request.Among {
		return ""
	}
	return ", and accepts only certificates of " + s.Request.CAs
}

// offers is what an alert says of the other things that we offer.
func (s *Seen) offers(alert uint8) (what, fix string) {
	cfg := s.Config
	switch alert {
	case protocolVersion:
		return fmt.Sprintf("the server speaks none of the versions that we offer: %s", versions(cfg)), s.older()
	case handshakeFailure, insufficientSecurity:
		if s.Version != 0 || s.Done {
			return "the server gave up after it had chosen version and cipher suite, without a reason", "its log has the reason"
		}
		return "the server has no cipher suite, curve or signature algorithm in common with us",
			"enable ECDHE with AES-GCM or ChaCha20 on the server, for the kind of its key; " + s.unoffered() + "some servers answer so where the version is too old or too new (tls.min_version, tls.max_version), or where they do not know the server name (" + s.requested() + ")"
	case unrecognizedName:
		return fmt.Sprintf("the server does not know the name that we asked for (%s)", s.requested()),
			"set tls.server_name (--server-name) to a name that the server has"
	case noApplicationProtocol:
		if len(cfg.NextProtos) == 0 {
			return "the server demands ALPN, and we offer no protocol", "set tls.alpn to the protocol that the server speaks"
		}
		return fmt.Sprintf("the server speaks none of the protocols that we offer in ALPN: %s", strings.Join(cfg.NextProtos, ", ")),
			"set tls.alpn to a protocol that the server speaks, or remove it"
	case internalError:
		return "the server reports an error of its own", "its log has the reason"
	case illegalParameter, decodeError, missingExtension, unsupportedExtension:
		return "the server does not understand our part of the handshake", "update its TLS library, or look into its log; a device between may have changed the handshake"
	}
	return "", ""
}

// Fixes for what crypto/tls does not do, or only where the environment says so.
const (
	FixSHA1 = "SHA-1 signatures need GODEBUG=tlssha1=1 in the environment of the ambassador, for all upstreams"
	fixDHE  = "Go's TLS has no DHE (Diffie-Hellman without elliptic curves)"
)

// ClassicalCurves returns the key exchanges of crypto/tls that are not post-quantum.
func ClassicalCurves() []tls.CurveID {
	return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
}

// unoffered says which keys would offer more than the hello did, and what no key offers.
func (s *Seen) unoffered() (text string) {
	if s.Config.CipherSuites == nil {
		text = "tls.unsafe_ciphers: true offers RSA key exchange and CBC, too; "
	} else {
		text = "check tls.ciphers; "
	}
	if curves := s.Config.CurvePreferences; curves != nil && !slices.Equal(curves, ClassicalCurves()) {
		text += "check tls.curves; "
	}
	return text + fixDHE + ", and " + FixSHA1 + "; "
}

// older is the fix for a server whose version we do not speak.
func (s *Seen) older() string {
	switch low := lowest(s.Config); {
	case s.Version == 0 && s.Config.MaxVersion != 0 && s.Config.MaxVersion < tls.VersionTLS13:
		return "raise tls.max_version, or let the server speak older versions"
	case s.Version != 0 && s.Version < tls.VersionTLS10:
		return "SSL is not supported: let the server speak TLS 1.2 or newer"
	case low > tls.VersionTLS12 && s.Version == tls.VersionTLS12:
		return fmt.Sprintf("let the server speak %s, or set tls.min_version to \"1.2\"", tls.VersionName(low))
	case low <= tls.VersionTLS10:
		return "let the server speak TLS 1.0 or newer"
	}
	return "let the server speak TLS 1.2 or newer; if it cannot, set tls.min_version to what it speaks, and tls.unsafe_min_version: true"
}

// requested says which server name we send.
func (s *Seen) requested() string {
	name := s.Config.ServerName
	if name == "" || net.ParseIP(strings.Trim(name, "[]")) != nil {
		return "we send none: it is an address; tls.server_name, --server-name"
	}
	return "we ask for " + short(name) + "; tls.server_name, --server-name"
}
