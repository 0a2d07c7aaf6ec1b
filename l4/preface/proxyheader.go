package preface

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// ProxyHeader is what a PROXY header says of a connection. Without addresses (LOCAL,
// UNKNOWN, a unix socket) they are not valid, and the connection's own count.
type ProxyHeader struct {
	Source, Destination netip.AddrPort

	hints  string // of hintsTLV
	fields string // those of version 2 that are passed on, in wire form
}

// Hints parses the hints of the header. The error is an *Error.
func (h ProxyHeader) Hints() (Hints, error) { return parseHints(h.hints, ',') }

// Fields are the fields (TLV) of a version 2 header that concern the client, in wire
// form, for Origin.
func (h ProxyHeader) Fields() string { return h.fields }

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
	proxyV2Max   = math.MaxUint16
)

// ReadProxyHeader reads a header and not a byte more: a TLS record may follow. The error
// is an *Error, io.EOF before the first byte, or that of r.
func ReadProxyHeader(r io.Reader) (ProxyHeader, error) {
	text, begun, err := readProxySignature(r)
	switch {
	case err != nil:
		return ProxyHeader{}, inside(err, len(text) > 0)
	case !begun:
		return ProxyHeader{}, badProxyHeader("there is none, the client begins with %q; let the proxy before us send one (HAProxy: send-proxy-v2, nginx: proxy_protocol on), set optional: true, or remove proxy_protocol of the listener", text)
	}
	return readProxyRest(r, text)
}

// ReadOptionalProxyHeader is ReadProxyHeader for clients that may send no header. Early
// is what was read of a client that sent none; then the error is nil, or that of r at the
// end of early.
func ReadOptionalProxyHeader(r io.Reader) (h ProxyHeader, early []byte, err error) {
	text, begun, err := readProxySignature(r)
	if err != nil || !begun {
		return ProxyHeader{}, text, err
	}
	h, err = readProxyRest(r, text)
	return h, nil, err
}

// readProxySignature reads as many bytes as the signature of version 2 has, which is
// less than any header, and stops at the first that belongs to no signature. It returns
// what it has read, and whether a header begins so.
func readProxySignature(r io.Reader) (got []byte, begun bool, err error) {
	v1, v2 := append(bytes.Clone(proxyproto.SIGV1), ' '), proxyproto.SIGV2
	text := make([]byte, len(v2), proxyV1Max)
	for n := 0; n < len(text); {
		more, err := r.Read(text[n:])
		if n += more; err != nil && n < len(text) {
			return text[:n], false, err
		}
		got = text[:n]
		if !bytes.Equal(got[:min(n, len(v1))], v1[:min(n, len(v1))]) && !bytes.HasPrefix(v2, got) {
			return got, false, nil
		}
	}
	return text, true, nil
}

// readProxyRest reads the rest of a header after the signature.
func readProxyRest(r io.Reader, text []byte) (h ProxyHeader, err error) {
	if text[0] == proxyproto.SIGV1[0] {
		if text, err = readProxyLine(r, text); err != nil {
			return h, err
		}
		return parseProxyHeader(sameFamily(text), nil)
	}
	if text, err = readProxyBlock(r, text); err != nil {
		return h, err
	}
	return parseProxyBlock(text)
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

// sameFamily writes both addresses of a line as IPv6 if only one of them is. The
// specification has no such line, and nginx's stream module sends it: it learns the
// client's address from a balancer, and has its own of the other family.
func sameFamily(line []byte) []byte {
	words := strings.Split(string(line), " ")
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return line
	}
	source, err1 := netip.ParseAddr(words[2])
	destination, err2 := netip.ParseAddr(words[3])
	if err1 != nil || err2 != nil || source.Zone()+destination.Zone() != "" || source.Is4() == destination.Is4() {
		return line
	}
	words[1] = "TCP6"
	words[2], words[3] = netip.AddrFrom16(source.As16()).String(), netip.AddrFrom16(destination.As16()).String()
	return []byte(strings.Join(words, " "))
}

// blockChunk bounds what is allocated for bytes that have not arrived.
const blockChunk = 4 << 10

// readProxyBlock reads the rest of version 2.
func readProxyBlock(r io.Reader, text []byte) ([]byte, error) {
	text = append(text, make([]byte, proxyV2Fixed-len(text))...)
	if _, err := io.ReadFull(r, text[len(proxyproto.SIGV2):]); err != nil {
		return nil, inside(err, true)
	}
	end := proxyV2Fixed + int(binary.BigEndian.Uint16(text[proxyV2Fixed-2:]))
	for len(text) < end {
		from := len(text)
		text = append(text, make([]byte, min(end-from, blockChunk))...)
		if _, err := io.ReadFull(r, text[from:]); err != nil {
			return nil, inside(err, true)
		}
	}
	return text, nil
}

// parseProxyBlock reads a whole header of version 2. The library reads all but the
// fields, which it accepts up to 4 KiB only.
func parseProxyBlock(text []byte) (ProxyHeader, error) {
	at := min(proxyV2Fixed+addressSize(text), len(text))
	head := bytes.Clone(text[:at])
	binary.BigEndian.PutUint16(head[proxyV2Fixed-2:], uint16(at-proxyV2Fixed))
	fields, err := proxyproto.SplitTLVs(text[at:])
	if err != nil {
		fields = nil // the addresses are good nevertheless
	}
	if isLocal(text) {
		fields = nil
	}
	if err := checkCRC(text, at, fields); err != nil {
		return ProxyHeader{}, err
	}
	return parseProxyHeader(head, fields)
}

func isLocal(text []byte) bool { return proxyproto.ProtocolVersionAndCommand(text[12]).IsLocal() }

// addressSize is how many bytes the addresses of a version 2 header have. Those of a
// LOCAL header do not count.
func addressSize(text []byte) int {
	switch family := proxyproto.AddressFamilyAndProtocol(text[13]); {
	case isLocal(text):
		return 0
	case family.IsIPv4():
		return 12
	case family.IsIPv6():
		return 36
	case family.IsUnix():
		return 216
	}
	return 0
}

// checkCRC verifies the checksum of a header, if it has one. The fields begin at at.
func checkCRC(text []byte, at int, fields []proxyproto.TLV) error {
	for _, f := range fields {
		value := at + 3
		at = value + len(f.Value)
		if f.Type != proxyproto.PP2_TYPE_CRC32C {
			continue
		}
		whole := bytes.Clone(text)
		clear(whole[value:at])
		if len(f.Value) != 4 || crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(f.Value) {
			return badProxyHeader("its checksum (CRC32C) does not match; it was changed on its way, or the proxy computes it wrongly")
		}
	}
	return nil
}

// parseProxyHeader reads a header without its fields.
func parseProxyHeader(text []byte, fields []proxyproto.TLV) (ProxyHeader, error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(text), len(text)))
	if err != nil {
		return ProxyHeader{}, badProxyHeader("%q: %v", text[:min(len(text), proxyV1Max)], err)
	}
	if h.TransportProtocol.IsDatagram() {
		return ProxyHeader{}, badProxyHeader("it is about datagrams")
	}
	if h.Command.IsLocal() {
		return ProxyHeader{}, nil
	}
	out := ProxyHeader{hints: hintsIn(fields), fields: passedOn(fields)}
	if source, destination, ok := h.TCPAddrs(); ok {
		out.Source, out.Destination = unmapped(source), unmapped(destination)
	}
	return out, nil
}

// hintsIn are the hints of a header. Several fields count as one, so that a key in two of
// them is found.
func hintsIn(fields []proxyproto.TLV) string {
	var all []string
	for _, f := range fields {
		if f.Type == hintsTLV {
			all = append(all, string(f.Value))
		}
	}
	return strings.Join(all, ",")
}

// passedOn are the fields that concern the client, in wire form: not those of this one
// header, and not the hints, which are for us.
func passedOn(fields []proxyproto.TLV) string {
	kept := slices.DeleteFunc(slices.Clone(fields), func(f proxyproto.TLV) bool {
		return f.Type == proxyproto.PP2_TYPE_CRC32C || f.Type == proxyproto.PP2_TYPE_NOOP || f.Type == hintsTLV
	})
	text, err := proxyproto.JoinTLVs(kept)
	if err != nil {
		return "" // none is longer than its length says
	}
	return string(text)
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
	Fields              string               // of the proxy before us: ProxyHeader.Fields
}

// Format is the header of a version, 1 or 2. Without addresses it is LOCAL or UNKNOWN.
func (o *Origin) Format(version byte) ([]byte, error) {
	if o == nil || !o.Source.IsValid() || !o.Destination.IsValid() {
		return proxyproto.HeaderProxyFromAddrs(version, nil, nil).Format()
	}
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(o.Source), net.TCPAddrFromAddrPort(o.Destination))
	if version == 2 {
		fields, err := o.fields()
		if err == nil {
			err = h.SetTLVs(fields)
		}
		if err != nil {
			return nil, err
		}
	}
	return h.Format()
}

// fields are those of a version 2 header. What the proxy before us says of the client's
// TLS counts only if the client has none with us.
func (o *Origin) fields() ([]proxyproto.TLV, error) {
	fields, err := proxyproto.SplitTLVs([]byte(o.Fields))
	if err != nil || o.TLS == nil {
		return fields, err
	}
	fields = slices.DeleteFunc(fields, func(f proxyproto.TLV) bool { return f.Type == proxyproto.PP2_TYPE_SSL })
	ssl, err := o.ssl().Marshal()
	return append(fields, ssl), err
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
