package preface

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// ProxyHeader is what a PROXY header says of a connection. Without addresses (LOCAL,
// UNKNOWN, a unix socket) they are not valid, and the connection's own count.
type ProxyHeader struct {
	Source, Destination netip.AddrPort

	hints string // of hintsTLV
}

// Hints parses the hints of the header. The error is an *Error.
func (h ProxyHeader) Hints() (Hints, error) { return parseHints(h.hints, ',') }

// hintsTLV is the field of version 2 that carries hints: the first of those that the
// specification leaves to applications and that no other program is known to use.
const hintsTLV proxyproto.PP2Type = 0xe4

// badProxyHeader is a client that does not begin with a good PROXY header.
func badProxyHeader(format string, args ...any) *Error {
	return malformed("PROXY header: "+format, args...)
}

const (
	proxyV1Max   = 107 // bytes, the CR LF included
	proxyV2Fixed = 16  // signature, command, family, length
	// proxyV2Max bounds the rest, as the library does: addresses and a certificate fit.
	proxyV2Max = 4096
)

// ReadProxyHeader reads a header and not a byte more: a TLS record may follow. The error
// is an *Error, io.EOF before the first byte, or that of r.
func ReadProxyHeader(r io.Reader) (ProxyHeader, error) {
	text, err := readProxySignature(r)
	switch {
	case err != nil:
		return ProxyHeader{}, err
	case text[0] == proxyproto.SIGV1[0]:
		text, err = readProxyLine(r, text)
	default:
		text, err = readProxyBlock(r, text)
	}
	if err != nil {
		return ProxyHeader{}, err
	}
	return parseProxyHeader(text)
}

// readProxySignature reads as many bytes as the signature of version 2 has, which is
// less than any header, and stops at the first that belongs to no signature.
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
			return nil, badProxyHeader("there is none, the client begins with %q; let the proxy before us send one (HAProxy: send-proxy-v2, nginx: proxy_protocol on), or remove proxy_protocol of the listener", got)
		}
	}
	return text, nil
}

// readProxyLine reads the rest of version 1, a byte at a time: it has no length.
func readProxyLine(r io.Reader, text []byte) ([]byte, error) {
	for text[len(text)-1] != '\n' {
		if len(text) == proxyV1Max {
			return nil, badProxyHeader("a line of more than %d bytes", proxyV1Max)
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
		return nil, badProxyHeader("it would have %d bytes behind its beginning; the most is %d", size, proxyV2Max)
	}
	text = append(text, make([]byte, size)...)
	if _, err := io.ReadFull(r, text[proxyV2Fixed:]); err != nil {
		return nil, inside(err, true)
	}
	return text, nil
}

// parseProxyHeader reads a whole header.
func parseProxyHeader(text []byte) (ProxyHeader, error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(text), proxyV2Fixed+proxyV2Max))
	if err != nil {
		return ProxyHeader{}, badProxyHeader("%q: %v", text[:min(len(text), proxyV1Max)], err)
	}
	if h.TransportProtocol.IsDatagram() {
		return ProxyHeader{}, badProxyHeader("it is about datagrams")
	}
	if h.Command.IsLocal() {
		return ProxyHeader{}, nil
	}
	out := ProxyHeader{hints: headerHints(h)}
	if source, destination, ok := h.TCPAddrs(); ok {
		out.Source, out.Destination = unmapped(source), unmapped(destination)
	}
	return out, nil
}

// headerHints are the hints of a header. Several fields count as one, so that a key in
// two of them is found.
func headerHints(h *proxyproto.Header) string {
	tlvs, err := h.TLVs()
	if err != nil {
		return "" // the addresses are good nevertheless
	}
	var all []string
	for _, tlv := range tlvs {
		if tlv.Type == hintsTLV {
			all = append(all, string(tlv.Value))
		}
	}
	return strings.Join(all, ",")
}

// unmapped is the address, with IPv4 where it is IPv4-mapped.
func unmapped(a *net.TCPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Origin is the client for which a connection to an upstream is made, as the PROXY header
// names it. Nil, or without addresses: the ambassador itself, or a client on a unix
// socket.
type Origin struct {
	Source, Destination netip.AddrPort
	TLS                 *tls.ConnectionState // of the client; nil: plaintext
	Principal           string               // what the client has proved; empty: nothing
}

// Format is the header of a version, 1 or 2. Without addresses it is LOCAL or UNKNOWN.
func (o *Origin) Format(version byte) ([]byte, error) {
	if o == nil || !o.Source.IsValid() || !o.Destination.IsValid() {
		return proxyproto.HeaderProxyFromAddrs(version, nil, nil).Format()
	}
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(o.Source), net.TCPAddrFromAddrPort(o.Destination))
	if version == 2 && o.TLS != nil {
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

// ssl describes the client's TLS. The principal is sent where other proxies send the
// certificate's CN, because it is what was proved.
func (o *Origin) ssl() tlvparse.PP2SSL {
	ssl := tlvparse.PP2SSL{Client: tlvparse.PP2_BITFIELD_CLIENT_SSL, Verify: 1}
	ssl.TLV = append(ssl.TLV, proxyproto.TLV{Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte(sslVersion(o.TLS.Version))})
	if len(o.TLS.PeerCertificates) == 0 {
		return ssl
	}
	ssl.Verify = 0
	ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_SESS
	if !o.TLS.DidResume {
		ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN
	}
	if o.Principal != "" {
		ssl.TLV = append(ssl.TLV, proxyproto.TLV{Type: proxyproto.PP2_SUBTYPE_SSL_CN, Value: []byte(o.Principal)})
	}
	return ssl
}

// sslVersion is a version as OpenSSL, and with it other proxies, write it.
func sslVersion(v uint16) string {
	switch v {
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return tls.VersionName(v)
}
