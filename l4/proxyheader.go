package l4

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"ambassador/policy"
)

// ProxyVersion is a version of the PROXY protocol. Zero: it is not spoken.
type ProxyVersion byte

// The versions: a line of text, and a binary header that can tell of TLS.
const (
	ProxyV1 ProxyVersion = 1
	ProxyV2 ProxyVersion = 2
)

// proxyHeader is what a PROXY header says of a connection. Addresses that are not
// valid are not told (LOCAL, UNKNOWN, a unix socket): the connection's own count.
type proxyHeader struct {
	source, destination netip.AddrPort
	context             string // what version 2 says in contextTLV; for parseContext
}

// contextTLV is the field of version 2 in which a client says something about its
// connection: the first of those that the specification leaves to applications
// and that nobody whom we know uses.
const contextTLV proxyproto.PP2Type = 0xe4

// proxyHeaderError is a client that does not begin with a good PROXY header.
type proxyHeaderError struct{ detail string }

func (e *proxyHeaderError) Error() string { return "PROXY header: " + e.detail }

const (
	proxyV1Max   = 107 // bytes, the CR LF included
	proxyV2Fixed = 16  // signature, command, family, length
	// proxyV2Max bounds the rest. The library takes no more either: addresses
	// and a certificate have room in it.
	proxyV2Max = 4096
)

// readProxyHeader reads a header and not a byte more: what follows may be TLS's.
// Errors: *proxyHeaderError, io.EOF before the first byte, and what r has.
func readProxyHeader(r io.Reader) (proxyHeader, error) {
	text, err := readProxySignature(r)
	switch {
	case err != nil:
		return proxyHeader{}, err
	case text[0] == proxyproto.SIGV1[0]:
		text, err = readProxyLine(r, text)
	default:
		text, err = readProxyBlock(r, text)
	}
	if err != nil {
		return proxyHeader{}, err
	}
	return parseProxyHeader(text)
}

// readProxySignature reads as many bytes as every header has, those of the
// signature of version 2, and no more than agree with a signature.
func readProxySignature(r io.Reader) ([]byte, error) {
	v1, v2 := append(bytes.Clone(proxyproto.SIGV1), ' '), proxyproto.SIGV2
	text := make([]byte, len(v2), proxyV1Max)
	for n := 0; n < len(text); {
		more, err := r.Read(text[n:])
		if n += more; err != nil && n < len(text) {
			return nil, inside(err, n > 0)
		}
		got := text[:n]
		if !bytes.Equal(got[:min(n, len(v1))], v1[:min(n, len(v1))]) && !bytes.HasPrefix(v2, got) {
			return nil, &proxyHeaderError{fmt.Sprintf("there is none, the client begins with %q; let the proxy before us send one (HAProxy: send-proxy-v2, nginx: proxy_protocol on), or remove proxy_protocol of the listener", got)}
		}
	}
	return text, nil
}

// readProxyLine reads the rest of version 1, a byte at a time: it has no length.
func readProxyLine(r io.Reader, text []byte) ([]byte, error) {
	for text[len(text)-1] != '\n' {
		if len(text) == proxyV1Max {
			return nil, &proxyHeaderError{fmt.Sprintf("a line of more than %d bytes", proxyV1Max)}
		}
		text = text[:len(text)+1]
		if _, err := io.ReadFull(r, text[len(text)-1:]); err != nil {
			return nil, inside(err, true)
		}
	}
	return text, nil
}

// readProxyBlock reads the rest of version 2.
func readProxyBlock(r io.Reader, text []byte) ([]byte, error) {
	text = append(text, make([]byte, proxyV2Fixed-len(text))...)
	if _, err := io.ReadFull(r, text[len(proxyproto.SIGV2):]); err != nil {
		return nil, inside(err, true)
	}
	size := binary.BigEndian.Uint16(text[proxyV2Fixed-2:])
	if size > proxyV2Max {
		return nil, &proxyHeaderError{fmt.Sprintf("it would have %d bytes behind its beginning; the most is %d", size, proxyV2Max)}
	}
	text = append(text, make([]byte, size)...)
	if _, err := io.ReadFull(r, text[proxyV2Fixed:]); err != nil {
		return nil, inside(err, true)
	}
	return text, nil
}

// inside makes an end within the header an unexpected one.
func inside(err error, begun bool) error {
	if begun && err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseProxyHeader reads a whole header.
func parseProxyHeader(text []byte) (proxyHeader, error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(text), proxyV2Fixed+proxyV2Max))
	if err != nil {
		return proxyHeader{}, &proxyHeaderError{fmt.Sprintf("%q: %v", text[:min(len(text), proxyV1Max)], err)}
	}
	if h.TransportProtocol.IsDatagram() {
		return proxyHeader{}, &proxyHeaderError{"it is about datagrams"}
	}
	if h.Command.IsLocal() {
		return proxyHeader{}, nil
	}
	context := headerContext(h)
	source, destination, ok := h.TCPAddrs()
	if !ok {
		return proxyHeader{context: context}, nil
	}
	return proxyHeader{unmapped(source), unmapped(destination), context}, nil
}

// headerContext is the context of a header. Several are as one, so that what they
// say twice is found.
func headerContext(h *proxyproto.Header) string {
	tlvs, err := h.TLVs()
	if err != nil {
		return "" // of no use to us; the addresses are good nevertheless
	}
	var all []string
	for _, tlv := range tlvs {
		if tlv.Type == contextTLV {
			all = append(all, string(tlv.Value))
		}
	}
	return strings.Join(all, ",")
}

// unmapped is a TCP address; the zero value for others.
func unmapped(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// fromProxy says whether the client is one of the proxies before us.
func (s *session) fromProxy() bool {
	peer := clientIP(s.downstream)
	return slices.ContainsFunc(s.route.cfg.ProxyFrom, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// proxied learns from the proxy before us who the client is.
func (s *session) proxied(ctx context.Context) error {
	fail := func(reason Reason, err error) error { return &Error{Stage: StageGreet, Reason: reason, Err: err} }
	if !s.fromProxy() {
		return fail(ReasonDenied, fmt.Errorf("only the proxies in proxy_protocol.from of the listener may connect, and %s is none of them", s.snapshot().Client))
	}
	unbound := boundIO(ctx, s.downstream)
	h, err := readProxyHeader(s.downstream)
	if err != nil {
		return fail(proxyReason(err), err)
	}
	unbound()
	s.greeted.header = h
	if !h.source.IsValid() {
		return nil
	}
	s.note(func(r *Record) { r.Client = h.source.String() })
	return s.become(policy.SourceOf(h.source.Addr()))
}

// origin is whom a connection to an upstream is made for, for its PROXY header.
// Nil: for ourselves.
type origin struct {
	proxyHeader
	tls       *tls.ConnectionState // of the client; nil: plaintext
	principal string
}

// origin is that of the session, where its upstream wants to know.
func (s *session) origin() *origin {
	if s.upstream.cfg.ProxyProtocol == 0 {
		return nil
	}
	o := &origin{proxyHeader: proxyHeader{source: unmapped(s.downstream.RemoteAddr()), destination: unmapped(s.downstream.LocalAddr())}}
	g := s.greeted
	if g == nil {
		return o
	}
	switch {
	case g.header.source.IsValid():
		o.proxyHeader = g.header
	case s.route.cfg.Request == RequestOriginal: // our own address is only where it was redirected to
		o.destination = netip.AddrPortFrom(g.request.addr, g.request.port)
	}
	if g.tls != nil {
		state := g.tls.ConnectionState()
		o.tls, o.principal = &state, g.principal
	}
	return o
}

// format is the header to send. Who has no TCP address, as on a unix socket, is
// told of as LOCAL: so is what we do for ourselves.
func (o *origin) format(v ProxyVersion) ([]byte, error) {
	if o == nil || !o.source.IsValid() || !o.destination.IsValid() {
		return proxyproto.HeaderProxyFromAddrs(byte(v), nil, nil).Format()
	}
	h := proxyproto.HeaderProxyFromAddrs(byte(v), net.TCPAddrFromAddrPort(o.source), net.TCPAddrFromAddrPort(o.destination))
	if v == ProxyV2 && o.tls != nil {
		ssl, err := o.ssl().Marshal()
		if err == nil {
			err = h.SetTLVs([]proxyproto.TLV{ssl})
		}
		if err != nil {
			return nil, err
		}
	}
	return h.Format()
}

// ssl tells of the client's TLS. The principal stands where others have the
// certificate's CN: it is what was proved.
func (o *origin) ssl() tlvparse.PP2SSL {
	ssl := tlvparse.PP2SSL{Client: tlvparse.PP2_BITFIELD_CLIENT_SSL, Verify: 1}
	ssl.TLV = append(ssl.TLV, proxyproto.TLV{Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte(sslVersion(o.tls.Version))})
	if len(o.tls.PeerCertificates) == 0 {
		return ssl
	}
	ssl.Verify = 0
	ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_SESS
	if !o.tls.DidResume {
		ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN
	}
	if o.principal != "" {
		ssl.TLV = append(ssl.TLV, proxyproto.TLV{Type: proxyproto.PP2_SUBTYPE_SSL_CN, Value: []byte(o.principal)})
	}
	return ssl
}

// sslVersion is a version as OpenSSL writes it, whom all proxies follow.
func sslVersion(v uint16) string {
	switch v {
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return tls.VersionName(v)
}

// announce sends the PROXY header, before anything else.
func (c *upstreamConn) announce(ctx context.Context) error {
	start := time.Now()
	header, err := c.from.format(c.upstream.cfg.ProxyProtocol)
	if err != nil {
		return err
	}
	defer boundIO(ctx, c.raw)()
	if _, err := c.raw.Write(header); err != nil {
		return err
	}
	c.timed(PhaseProxy, start)
	return nil
}
