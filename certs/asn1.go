package certs

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
)

// Object identifiers of extensions (RFC 5280, 4.2 and 5).
var (
	oidSAN                      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidCRLNumber                = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidReasonCode               = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidInvalidityDate           = asn1.ObjectIdentifier{2, 5, 29, 24}
	oidDeltaCRL                 = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidCertificateIssuer        = asn1.ObjectIdentifier{2, 5, 29, 29}
	oidCRLDistributionPoints    = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidAuthorityKeyID           = asn1.ObjectIdentifier{2, 5, 29, 35}
)

var errTrailing = errors.New("trailing data")

// elements returns the elements of a DER SEQUENCE, or of any other constructed
// value.
func elements(der []byte) ([]asn1.RawValue, error) {
	var all asn1.RawValue
	rest, err := asn1.Unmarshal(der, &all)
	switch {
	case err != nil:
		return nil, err
	case len(rest) > 0:
		return nil, errTrailing
	}
	return inside(all)
}

// inside returns the elements of a constructed value.
func inside(v asn1.RawValue) ([]asn1.RawValue, error) {
	if !v.IsCompound {
		return nil, errors.New("it has no elements")
	}
	var out []asn1.RawValue
	for rest := v.Bytes; len(rest) > 0; {
		var one asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &one); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// extensionElements returns the elements of an extension's SEQUENCE; nil if the
// certificate does not have the extension.
func extensionElements(c *x509.Certificate, id asn1.ObjectIdentifier) []asn1.RawValue {
	i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
	if i < 0 {
		return nil
	}
	all, err := elements(c.Extensions[i].Value)
	if err != nil { // cannot be: crypto/x509 has parsed it
		return nil
	}
	return all
}
