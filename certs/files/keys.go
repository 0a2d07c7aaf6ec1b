package files

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// parseKey reads the first private key: PKCS #8, PKCS #1 (RSA) or SEC 1 (EC), in
// PEM or DER. Password decrypts an encrypted key; nil: there is no password.
func parseKey(b, password []byte) (crypto.Signer, error) {
	if isDER(b) {
		return parseKeyFileDER(b, password)
	}
	blocks, err := parsePEM(b)
	if err != nil {
		return nil, err
	}
	for _, block := range blocks {
		if key, err := parseKeyBlock(block, password); key != nil || err != nil {
			return key, err
		}
	}
	switch {
	case len(blocks) == 0:
		return nil, notRead(b, keyFile)
	case isCertificate(blocks[0].Type):
		return nil, errors.New("there is a certificate in it, but no private key; are certificate and key interchanged?")
	}
	return nil, otherBlock(blocks[0].Type, keyFile)
}

// parseKeyBlock returns nil for a block that is no private key.
func parseKeyBlock(block *pem.Block, password []byte) (crypto.Signer, error) {
	if block.Headers["DEK-Info"] != "" {
		return nil, errors.New("the key has the old PEM encryption, which is weak; convert it: openssl pkcs8 -topk8 -in FILE -out NEWFILE")
	}
	switch block.Type {
	case "ENCRYPTED PRIVATE KEY":
		return parseEncryptedKey(block.Bytes, password)
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
		return parseKeyDER(block.Bytes)
	case "OPENSSH PRIVATE KEY":
		return nil, errors.New("it is a key for ssh; give the key that the certificate was made for")
	}
	return nil, nil
}

// parseKeyFileDER reads a file that is one key in DER.
func parseKeyFileDER(b, password []byte) (crypto.Signer, error) {
	var encrypted encryptedKey
	if _, err := asn1.Unmarshal(b, &encrypted); err == nil {
		return parseEncryptedKey(b, password)
	}
	key, err := parseKeyDER(b)
	if err == nil {
		return key, nil
	}
	if name, _ := formatOf(b, keyFile); name != "" {
		return nil, notRead(b, keyFile)
	}
	return nil, err
}

// parseKeyDER ignores the block's type, as OpenSSL does.
func parseKeyDER(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, fmt.Errorf("a key of type %T cannot sign; use ECDSA, RSA or Ed25519", key)
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := parseExplicitKey(der); k != nil || err != nil {
		return k, err
	}
	return nil, fmt.Errorf("the private key: %w", explainKey(der, err))
}

// pkcs8Key is a PrivateKeyInfo (RFC 5208, 5).
type pkcs8Key struct {
	Version   int
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

// explainKey names an algorithm or a curve that crypto/tls cannot use.
func explainKey(der []byte, err error) error {
	var outer pkcs8Key
	var inner explicitKey
	id, curve := oidEC, asn1.RawValue{}
	if _, e := asn1.Unmarshal(der, &outer); e == nil {
		id, curve = outer.Algorithm.Algorithm, outer.Algorithm.Parameters
	} else if _, e := asn1.Unmarshal(der, &inner); e != nil {
		return err
	} else if _, e := asn1.Unmarshal(inner.Params.Bytes, &curve); e != nil {
		return err
	}
	if isUsable(id, curve.FullBytes) {
		return err
	}
	return fmt.Errorf("it is %s, which cannot be used here; get a certificate for an RSA, ECDSA (P-256, P-384, P-521) or Ed25519 key", algorithmName(id))
}

var oidEC = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}

// isUsable reports whether crypto/x509 knows the algorithm of a key, and its curve.
func isUsable(id asn1.ObjectIdentifier, params []byte) bool {
	switch id.String() {
	case "1.2.840.113549.1.1.1", "1.3.101.112", "1.3.101.110": // RSA, Ed25519, X25519
		return true
	case oidEC.String():
		var curve asn1.ObjectIdentifier
		asn1.Unmarshal(params, &curve) // else it stays empty
		return slices.Contains([]string{"1.3.132.0.33", "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"}, curve.String())
	}
	return false
}

// algorithmName names the algorithm of a key that crypto/tls cannot use.
func algorithmName(id asn1.ObjectIdentifier) string {
	switch id.String() {
	case "1.2.840.113549.1.1.10":
		return "RSA-PSS (rsassaPss)"
	case "1.2.840.10040.4.1":
		return "DSA"
	case "1.3.101.113":
		return "Ed448"
	case oidEC.String():
		return "EC on another curve"
	}
	return "of the algorithm " + id.String()
}

// explicitParams are the parameters of a curve that is spelled out instead of
// named (SEC 1, C.2).
type explicitParams struct {
	Version int
	Field   struct {
		Type  asn1.ObjectIdentifier
		Prime *big.Int `asn1:"optional"`
	}
	Curve struct {
		A, B []byte
		Seed asn1.BitString `asn1:"optional"`
	}
	Base     []byte
	Order    *big.Int
	Cofactor *big.Int `asn1:"optional"`
}

// explicitKey is an EC key (SEC 1, C.4).
type explicitKey struct {
	Version int
	Private []byte
	Params  asn1.RawValue  `asn1:"optional,explicit,tag:0"`
	Public  asn1.BitString `asn1:"optional,explicit,tag:1"`
}

// isExplicit reports whether the parameters of an EC key are explicit.
func isExplicit(params asn1.RawValue) bool {
	return params.Class == asn1.ClassUniversal && params.Tag == asn1.TagSequence && parseExplicit(params.FullBytes) != nil
}

// parseExplicit returns nil if params are not explicit.
func parseExplicit(params []byte) *explicitParams {
	var p explicitParams
	if _, err := asn1.Unmarshal(params, &p); err != nil || p.Field.Prime == nil {
		return nil
	}
	return &p
}

// parseExplicitKey reads an EC key with explicit parameters, in PKCS #8 or SEC 1,
// if they are those of a curve that has a name. It returns nil if it is no such
// key. crypto/x509 reads only keys that name their curve.
func parseExplicitKey(der []byte) (crypto.Signer, error) {
	var outer pkcs8Key
	var params []byte
	if _, err := asn1.Unmarshal(der, &outer); err == nil && outer.Algorithm.Algorithm.Equal(oidEC) {
		der, params = outer.Key, outer.Algorithm.Parameters.FullBytes
	}
	var inner explicitKey
	if _, err := asn1.Unmarshal(der, &inner); err != nil {
		return nil, nil
	}
	if params == nil {
		params = inner.Params.Bytes
	}
	p := parseExplicit(params)
	if p == nil {
		return nil, nil
	}
	curve := p.named()
	if curve == nil {
		return nil, errors.New("the EC key spells out a curve that is none of P-256, P-384 and P-521; get a certificate for a key on one of those")
	}
	key, err := ecdsa.ParseRawPrivateKey(curve, inner.Private)
	if err != nil {
		return nil, fmt.Errorf("the private key: %w", err)
	}
	return key, nil
}

// named returns the curve with these parameters; nil if none that we know has.
func (p *explicitParams) named() elliptic.Curve {
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		want := c.Params()
		a := new(big.Int).Sub(want.P, big.NewInt(3))
		size := (want.BitSize + 7) / 8
		full := bytes.Join([][]byte{{4}, want.Gx.FillBytes(make([]byte, size)), want.Gy.FillBytes(make([]byte, size))}, nil)
		compressed := append([]byte{2 + byte(want.Gy.Bit(0))}, full[1:1+size]...)
		if p.Field.Prime.Cmp(want.P) == 0 && p.Order != nil && p.Order.Cmp(want.N) == 0 &&
			new(big.Int).SetBytes(p.Curve.A).Cmp(a) == 0 && new(big.Int).SetBytes(p.Curve.B).Cmp(want.B) == 0 &&
			(bytes.Equal(p.Base, full) || bytes.Equal(p.Base, compressed)) {
			return c
		}
	}
	return nil
}
