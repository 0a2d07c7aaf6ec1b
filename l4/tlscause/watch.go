package tlscause

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
)

// Request is a server's request for our certificate. It is immutable.
type Request struct {
	// CAs are the names of the first CAs whose certificates the server accepts; empty if
	// it names none.
	CAs string
	// Among says that one of those names is that of a CA of our certificate.
	Among bool
	// Unfit says why the server does not accept the kind of our key; empty if it does.
	Unfit string
}

// Seen is what was seen of a handshake in which we are the client.
type Seen struct {
	// Config is ours.
	Config *tls.Config
	// Request is nil if the server has requested no certificate, as when it resumes a
	// session.
	Request *Request
	// Version is the version that the server has chosen in the version field of its
	// ServerHello, which is TLS 1.2 at most; 0 if it has not answered.
	Version uint16
	// Done says that the handshake was complete: the server refuses us only now.
	Done bool
	// Sent is the alert that we have sent without encryption; 0 if there was none.
	Sent uint8
}

// Watch observes one handshake. It is the connection for tls.Client; remove it from
// below the tls.Conn after the handshake.
type Watch struct {
	net.Conn
	seen Seen
	head []byte // the first bytes from the server
}

// headSize is how much of the ServerHello has its version: the header of the record and
// that of the message, and the version.
const headSize = 5 + 4 + 2

// NewWatch makes a watch of a connection on which TLS begins with cfg.
func NewWatch(raw net.Conn, cfg *tls.Config) *Watch {
	return &Watch{Conn: raw, seen: Seen{Config: cfg}}
}

// watchKey is the key of the Watch in the context of its handshake.
type watchKey struct{}

// Context is the context for the handshake.
func (w *Watch) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, watchKey{}, w)
}

// Watched returns a copy of cfg for handshakes that are watched: it tells the Watch of
// the server's request. A tls.Conn keeps its configuration as long as it lives, so use
// one copy for all.
func Watched(cfg *tls.Config) *tls.Config {
	watched := cfg.Clone()
	watched.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := chosen(cfg, asked)
		if err != nil {
			return nil, err
		}
		if w, ok := asked.Context().Value(watchKey{}).(*Watch); ok {
			w.seen.Request = newRequest(asked, cert)
		}
		return cert, nil
	}
	return watched
}

// chosen is the certificate that crypto/tls would send with cfg.
func chosen(cfg *tls.Config, asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if cfg.GetClientCertificate != nil {
		return cfg.GetClientCertificate(asked)
	}
	for i := range cfg.Certificates {
		if asked.SupportsCertificate(&cfg.Certificates[i]) == nil {
			return &cfg.Certificates[i], nil
		}
	}
	return new(tls.Certificate), nil // none
}

// Seen returns what was seen so far. Call it when the handshake has ended.
func (w *Watch) Seen() Seen { return w.seen }

// Read keeps the beginning of the ServerHello.
func (w *Watch) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if len(w.head) < headSize {
		w.head = append(w.head, b[:min(n, headSize-len(w.head))]...)
		w.seen.Version = helloVersion(w.head)
	}
	return n, err
}

// helloVersion returns the version in the beginning of a ServerHello (RFC 5246, 6.2.1
// and 7.4.1.3); 0 if it is something else, or incomplete.
func helloVersion(head []byte) uint16 {
	const handshake, serverHello = 22, 2
	if len(head) < headSize || head[0] != handshake || head[1] != 3 || head[5] != serverHello {
		return 0
	}
	return uint16(head[9])<<8 | uint16(head[10])
}

// Write keeps the alert that ends the handshake, if it is not encrypted.
func (w *Watch) Write(b []byte) (int, error) {
	const alert = 21
	if len(b) == 7 && b[0] == alert && b[3] == 0 && b[4] == 2 {
		w.seen.Sent = b[6]
	}
	return w.Conn.Write(b)
}

func newRequest(asked *tls.CertificateRequestInfo, cert *tls.Certificate) *Request {
	r := &Request{}
	var names []string
	for i, raw := range asked.AcceptableCAs {
		if i < maxNames {
			names = append(names, distinguished(raw))
		} else {
			names = append(names, "") // only counted
		}
	}
	r.CAs = listed(names)
	if len(cert.Certificate) == 0 {
		return r
	}
	kind := *asked
	kind.AcceptableCAs = nil
	if err := kind.SupportsCertificate(cert); err != nil {
		r.Unfit = short(err.Error())
		return r
	}
	r.Among = len(names) > 0 && asked.SupportsCertificate(cert) == nil
	return r
}

// distinguished is the text of a distinguished name in DER.
func distinguished(raw []byte) string {
	var rdn pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &rdn); err != nil || len(rest) > 0 {
		return "a name that cannot be read"
	}
	return rdn.String()
}

// isNone reports whether a configuration has no certificate of ours.
func (s *Seen) isNone() bool {
	return s.Config.GetClientCertificate == nil && len(s.Config.Certificates) == 0
}

// certificate is ours; nil if there is none, or none that can be used now.
func (s *Seen) certificate() *tls.Certificate {
	switch {
	case s.isNone():
		return nil
	case s.Config.GetClientCertificate == nil:
		return &s.Config.Certificates[0]
	}
	cert, err := s.Config.GetClientCertificate(new(tls.CertificateRequestInfo))
	if err != nil || len(cert.Certificate) == 0 {
		return nil
	}
	return cert
}
