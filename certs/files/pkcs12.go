package files

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"software.sslmate.com/src/go-pkcs12"

	"ambassador/certs"
)

// isPKCS12 reports whether a file is PKCS #12.
func isPKCS12(b []byte) bool { return isDER(b) && bytes.HasPrefix(contentOf(b), bodyPKCS12) }

// loadPKCS12 reads chain, key and roots from one file; roots may be nil.
func loadPKCS12(f Files, password []byte) (*tls.Certificate, *rootList, error) {
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
func parsePKCS12(b, password []byte) (*tls.Certificate, *rootList, error) {
	if name, fix := formatOf(b, certificateFile); name != "" && !isPKCS12(b) {
		return nil, nil, fmt.Errorf("it is %s, not PKCS #12; %s", name, fix)
	}
	if blocks, _ := parsePEM(b); len(blocks) > 0 {
		return nil, nil, errors.New("it is PEM, not PKCS #12; give it as cert and key, or convert it: openssl pkcs12 -export -inkey KEY -in CHAIN -out FILE")
	}
	key, first, others, err := pkcs12.DecodeChain(repacked(b, password), string(password))
	if err != nil {
		return nil, nil, explainPKCS12(b, err, "it must be PKCS #12 with one key (RSA, ECDSA or Ed25519): openssl pkcs12 -export -inkey KEY -in CHAIN -out FILE")
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
	var roots *rootList
	for i, c := range all {
		switch {
		case i == leaf:
		case c.CheckSignatureFrom(c) == nil:
			if roots == nil {
				roots = &rootList{}
			}
			roots.add(i, c, trustSettings{})
		default:
			chain = append(chain, c)
		}
	}
	return certs.NewCertificate(signer, chain), roots, nil
}

// explainPKCS12 adds the fix to an error of go-pkcs12.
func explainPKCS12(b []byte, err error, otherwise string) error {
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword) || errors.Is(err, pkcs12.ErrDecryption):
		return errors.New("the password does not open it; give the right one in password_file")
	case isPKCS12(b) && b[1] == 0x80:
		return errors.New("it is PKCS #12 in BER, of which only DER is read; convert it: openssl pkcs12 -in FILE -nodes -out PEMFILE, and give PEMFILE as cert and key, or as ca")
	}
	var outer pfx
	if _, e := asn1.Unmarshal(b, &outer); e == nil && len(outer.MAC.FullBytes) == 0 {
		otherwise = "it has no MAC, and without one a wrong password looks like this, too: check password_file; else, " + otherwise
	}
	return fmt.Errorf("%w; %s", err, otherwise)
}

// parseTrustStore returns the roots of a PKCS #12 file: if it has a key, its
// self-signed certificates, as for an identity, else all.
func parseTrustStore(b, password []byte) ([]*x509.Certificate, error) {
	const otherwise = "convert it to PEM: openssl pkcs12 -nokeys -in FILE -out NEWFILE"
	_, first, others, err := pkcs12.DecodeChain(repacked(b, password), string(password))
	if err == nil {
		all := slices.DeleteFunc(append([]*x509.Certificate{first}, others...), func(c *x509.Certificate) bool { return c.CheckSignatureFrom(c) != nil })
		if len(all) == 0 {
			return nil, errors.New("it has a key with its chain, and no root among them; " + otherwise)
		}
		return all, nil
	}
	if password == nil && errors.Is(err, pkcs12.ErrIncorrectPassword) {
		return nil, errors.New("it has a password; give that in password_file of an identity, files: {ca, password_file}, or " + otherwise)
	}
	var unknown pkcs12.NotImplementedError
	if errors.Is(err, pkcs12.ErrIncorrectPassword) || errors.As(err, &unknown) { // the MAC is wrong, or was not checked
		return nil, explainPKCS12(b, err, otherwise)
	}
	key, keyErr := standInKey()
	if keyErr != nil {
		return nil, keyErr
	}
	_, first, others, again := pkcs12.DecodeChain(repacked(b, password, key), string(password))
	if again != nil {
		return nil, explainPKCS12(b, err, otherwise) // it was not the key that was missing
	}
	return append([]*x509.Certificate{first}, others...), nil
}

// pfx is the outer layer of PKCS #12 (RFC 7292, 4).
type pfx struct {
	Version int
	Safe    contentInfo
	MAC     asn1.RawValue `asn1:"optional"`
}

// contentInfo is that of PKCS #7.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"tag:0,explicit,optional"`
}

// repacked returns a file that go-pkcs12 reads. There are two kinds that OpenSSL
// reads and go-pkcs12 does not: a file with a password and without a MAC (openssl
// pkcs12 -nomac), and one without a key, unless Java has marked its certificates
// as trusted. Such a file gets a new outer layer, with a MAC and with more content;
// what was in it stays as it is. The caller has checked the MAC that the file had
// before it adds more. A file that needs no new layer, or that is damaged, is
// returned as it is.
func repacked(b, password []byte, more ...contentInfo) []byte {
	var outer pfx
	var content []byte
	if rest, err := asn1.Unmarshal(b, &outer); err != nil || len(rest) > 0 {
		return b
	}
	if complete := len(outer.MAC.FullBytes) > 0 || len(password) == 0; complete && len(more) == 0 {
		return b
	}
	if _, err := asn1.Unmarshal(outer.Safe.Content.Bytes, &content); err != nil {
		return b
	}
	content, err := appended(content, more)
	if err != nil {
		return b
	}
	if outer.Safe.Content, err = explicit(content); err != nil {
		return b
	}
	outer.MAC = asn1.RawValue{}
	if len(password) > 0 {
		if outer.MAC.FullBytes, err = macOf(content, password); err != nil {
			return b
		}
	}
	whole, err := asn1.Marshal(outer)
	if err != nil {
		return b
	}
	return whole
}

// appended adds to an AuthenticatedSafe.
func appended(content []byte, more []contentInfo) ([]byte, error) {
	if len(more) == 0 {
		return content, nil
	}
	var all []asn1.RawValue
	if _, err := asn1.Unmarshal(content, &all); err != nil {
		return nil, err
	}
	for _, info := range more {
		der, err := asn1.Marshal(info)
		if err != nil {
			return nil, err
		}
		all = append(all, asn1.RawValue{FullBytes: der})
	}
	return asn1.Marshal(all)
}

// explicit returns octets as the content of a ContentInfo.
func explicit(octets []byte) (asn1.RawValue, error) {
	der, err := asn1.Marshal(octets)
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: der}, err
}

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidKeyBag     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 1}
	oidPBMAC1     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
	oidKDF        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12} // PBKDF2
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
)

// standInKey is content with a key that nobody uses.
func standInKey() (info contentInfo, err error) {
	key, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		return info, err
	}
	bag := struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}{oidKeyBag, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: key}}
	der, err := asn1.Marshal([]any{bag})
	if err != nil {
		return info, err
	}
	info.Type = oidData
	info.Content, err = explicit(der)
	return info, err
}

// macOf returns the MacData of a content: PBMAC1 (RFC 9579) with one iteration,
// because it protects nothing: we read it at once.
func macOf(content, password []byte) ([]byte, error) {
	salt := make([]byte, 8)
	key, err := pbkdf2.Key(sha256.New, string(password), salt, 1, sha256.Size)
	if err != nil {
		return nil, err
	}
	hmacSHA256 := pkix.AlgorithmIdentifier{Algorithm: oidHMACSHA256}
	kdf, err := asn1.Marshal(pbkdf2Params{Salt: salt, Iterations: 1, KeyLength: sha256.Size, PRF: hmacSHA256})
	if err != nil {
		return nil, err
	}
	params, err := asn1.Marshal(pbes2Params{pkix.AlgorithmIdentifier{Algorithm: oidKDF, Parameters: asn1.RawValue{FullBytes: kdf}}, hmacSHA256})
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(content)
	type digest struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}
	return asn1.Marshal(struct {
		MAC        digest
		Salt       []byte
		Iterations int
	}{digest{pkix.AlgorithmIdentifier{Algorithm: oidPBMAC1, Parameters: asn1.RawValue{FullBytes: params}}, mac.Sum(nil)}, salt, 1})
}
