package files

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// parseCertificates reads every CERTIFICATE block, at least one. It ignores other
// blocks: certificate and key may be in one file.
func parseCertificates(b []byte) ([]*x509.Certificate, error) {
	blocks, err := parsePEM(b, "x509")
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, block := range blocks {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the file: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(blocks) == 0:
		return nil, errors.New("there is no certificate in it; it must be in PEM (-----BEGIN CERTIFICATE-----)")
	case strings.Contains(blocks[0].Type, "PRIVATE KEY"):
		return nil, errors.New("there is a private key in it, but no certificate; are certificate and key interchanged?")
	}
	return nil, fmt.Errorf("there is a %s in it, but no CERTIFICATE", blocks[0].Type)
}

// parseKey reads the first private key: PKCS #8, PKCS #1 (RSA) or SEC 1 (EC).
// Password decrypts an encrypted key; nil: there is no password.
func parseKey(b, password []byte) (crypto.Signer, error) {
	blocks, err := parsePEM(b, "pkey")
	if err != nil {
		return nil, err
	}
	for _, block := range blocks {
		if block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the key has the old PEM encryption, which is weak; convert it: openssl pkcs8 -topk8 -in FILE -out NEWFILE")
		}
		switch block.Type {
		case "ENCRYPTED PRIVATE KEY":
			if password == nil {
				return nil, errors.New("the key is encrypted; give its password in password_file, or decrypt it: openssl pkey -in FILE -out NEWFILE")
			}
			return parseEncryptedKey(block.Bytes, password)
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
			return parseKeyDER(block.Bytes)
		case "OPENSSH PRIVATE KEY":
			return nil, errors.New("it is a key for ssh; give the key that the certificate was made for")
		}
	}
	switch {
	case len(blocks) == 0:
		return nil, errors.New("there is no private key in it; it must be in PEM (-----BEGIN PRIVATE KEY-----)")
	case blocks[0].Type == "CERTIFICATE":
		return nil, errors.New("there is a certificate in it, but no private key; are certificate and key interchanged?")
	}
	return nil, fmt.Errorf("there is a %s in it, but no PRIVATE KEY", blocks[0].Type)
}

// parseLists reads revocation lists: several in PEM, or one in DER, as CAs
// publish them.
func parseLists(b []byte) ([]*x509.RevocationList, error) {
	if len(b) > 1 && b[0] == 0x30 && b[1]&0x80 != 0 {
		list, err := x509.ParseRevocationList(b)
		return []*x509.RevocationList{list}, err
	}
	blocks, err := parsePEM(b, "crl")
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
	if len(out) == 0 {
		return nil, errors.New("there is no revocation list in it; it must be in DER or in PEM (-----BEGIN X509 CRL-----)")
	}
	return out, nil
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
	return nil, fmt.Errorf("the private key: %w", err)
}

var errCut = errors.New("a block (-----BEGIN …) has no end or is damaged: the file is cut short, or still being written")

// parsePEM reads all blocks. It returns an error for a BEGIN line that starts no
// valid block, which pem.Decode skips: a truncated file must not pass for a
// shorter one. Command is the openssl command that converts from DER.
func parsePEM(b []byte, command string) ([]*pem.Block, error) {
	begin := []byte("-----BEGIN ")
	if len(b) > 1 && b[0] == 0x30 && b[1]&0x80 != 0 { // an ASN.1 SEQUENCE of more than 127 bytes
		return nil, fmt.Errorf("it is in DER (or PKCS #12: then use pkcs12 instead of cert and key); convert it to PEM: openssl %s -inform der -in FILE -out NEWFILE", command)
	}
	var out []*pem.Block
	for {
		block, rest := pem.Decode(b)
		if block == nil && bytes.Contains(b, begin) {
			return nil, errCut
		}
		if block == nil {
			return out, nil
		}
		if bytes.Count(b[:len(b)-len(rest)], begin) != 1 {
			return nil, errCut
		}
		out, b = append(out, block), rest
	}
}
