package files

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// isDER reports whether a file looks like DER: it begins with a SEQUENCE of more
// than 127 bytes, which is no text, or is a shorter one, as some keys are.
func isDER(b []byte) bool {
	return len(b) > 1 && b[0] == 0x30 && (b[1]&0x80 != 0 || int(b[1]) == len(b)-2)
}

// isCertificate reports whether blocks of this type have a certificate: the types
// that OpenSSL knows.
func isCertificate(kind string) bool {
	return kind == "CERTIFICATE" || kind == "X509 CERTIFICATE" || kind == trustedType
}

// readCertificates returns the DER of each certificate of a file, at least one; in
// trusted with the trust settings behind it. It ignores other blocks: certificate
// and key may be in one file.
func readCertificates(b []byte) (out []rawCertificate, err error) {
	if isDER(b) {
		return readCertificatesDER(b)
	}
	blocks, err := parsePEM(b)
	if err != nil {
		return nil, err
	}
	for _, block := range blocks {
		if isCertificate(block.Type) {
			out = append(out, rawCertificate{block.Bytes, block.Type == trustedType})
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(blocks) == 0:
		return nil, notRead(b, certificateFile)
	case strings.Contains(blocks[0].Type, "PRIVATE KEY"):
		return nil, errors.New("there is a private key in it, but no certificate; are certificate and key interchanged?")
	}
	return nil, otherBlock(blocks[0].Type, certificateFile)
}

// readCertificatesDER is readCertificates for certificates in DER, one behind the
// other, each with its trust settings if it has any.
func readCertificatesDER(b []byte) (out []rawCertificate, err error) {
	if _, err := x509.ParseCertificates(b); err != nil {
		if name, _ := formatOf(b, certificateFile); name != "" {
			return nil, notRead(b, certificateFile)
		}
	}
	for len(b) > 0 {
		var one asn1.RawValue
		if b, err = asn1.Unmarshal(b, &one); err != nil {
			return nil, fmt.Errorf("certificate %d of the file, in DER: %w", len(out)+1, err)
		}
		raw := rawCertificate{der: one.FullBytes}
		if rest, err := asn1.Unmarshal(b, &trustSettings{}); err == nil {
			raw = rawCertificate{slices.Concat(raw.der, b[:len(b)-len(rest)]), true}
			b = rest
		}
		out = append(out, raw)
	}
	return out, nil
}

// parseCertificates reads a chain. Every certificate of it is needed, so that one
// that cannot be read is an error.
func parseCertificates(b []byte) ([]*x509.Certificate, error) {
	all, err := readCertificates(b)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for i, raw := range all {
		c, _, err := raw.parse()
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the file%s: %w", i+1, nameOf(raw.der), explainCertificate(raw.der, err))
		}
		out = append(out, c)
	}
	return out, nil
}

// parseLists reads revocation lists: several in PEM, or one in DER, as CAs
// publish them.
func parseLists(b []byte) ([]*x509.RevocationList, error) {
	if isDER(b) {
		list, err := x509.ParseRevocationList(b)
		if name, _ := formatOf(b, listFile); err != nil && name != "" {
			return nil, notRead(b, listFile)
		}
		return []*x509.RevocationList{list}, err
	}
	blocks, err := parsePEM(b)
	if err != nil {
		return nil, err
	}
	var out []*x509.RevocationList
	for _, block := range blocks {
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("revocation list %d of the file: %w", len(out)+1, err)
		}
		out = append(out, list)
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(blocks) > 0:
		return nil, errors.New("there is no revocation list in it; it must be in DER or in PEM (-----BEGIN X509 CRL-----)")
	}
	return nil, notRead(b, listFile)
}
