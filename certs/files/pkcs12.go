package files

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"software.sslmate.com/src/go-pkcs12"

	"ambassador/certs"
)

// loadPKCS12 reads chain, key and roots from one file; roots may be nil.
func loadPKCS12(f Files, password []byte) (*tls.Certificate, []*x509.Certificate, error) {
	b, err := readFile(f.PKCS12)
	if err != nil {
		return nil, nil, &FileError{f.PKCS12, err}
	}
	cert, roots, err := parsePKCS12(b, password)
	if err != nil {
		return nil, nil, &FileError{f.PKCS12, err}
	}
	return cert, roots, nil
}

// parsePKCS12 sorts the certificates: the leaf is the one that matches the key,
// self-signed ones are roots, the others the chain.
func parsePKCS12(b, password []byte) (*tls.Certificate, []*x509.Certificate, error) {
	key, first, others, err := pkcs12.DecodeChain(b, string(password))
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword) || errors.Is(err, pkcs12.ErrDecryption):
		return nil, nil, errors.New("the password does not open it; give the right one in password_file")
	case err != nil:
		return nil, nil, fmt.Errorf("%w; it must be PKCS #12 with one key: openssl pkcs12 -export -inkey KEY -in CHAIN -out FILE", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("a key of type %T cannot sign; use ECDSA, RSA or Ed25519", key)
	}
	all := append([]*x509.Certificate{first}, others...)
	leaf := slices.IndexFunc(all, func(c *x509.Certificate) bool { return certs.BelongsTo(c, signer) })
	if leaf < 0 {
		return nil, nil, errors.New("none of its certificates belongs to its key; export both again")
	}
	chain := []*x509.Certificate{all[leaf]}
	var roots []*x509.Certificate
	for i, c := range all {
		switch {
		case i == leaf:
		case c.CheckSignatureFrom(c) == nil:
			roots = append(roots, c)
		default:
			chain = append(chain, c)
		}
	}
	return certs.NewCertificate(signer, chain), roots, nil
}
