package files

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/crypto/scrypt"
)

// The encryption of PKCS #8 keys: PBES2 (RFC 8018, 6.2), which OpenSSL has
// written by default since 1.1. PBES1 is too weak to protect anything.
//
// The libraries for it (youmark/pkcs8, go.step.sm/crypto/pemutil; seen in November
// 2026) set no bound on iterations and memory, and panic if the IV or the data have
// a wrong length; pemutil knows neither scrypt nor PRFs other than HMAC with SHA-1
// and SHA-256. Checking a file before them would take most of this code.

type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbes2Params struct{ KDF, Cipher pkix.AlgorithmIdentifier }

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

type scryptParams struct {
	Salt                  []byte
	Cost, Block, Parallel int
	KeyLength             int `asn1:"optional"`
}

// Object identifiers, as text.
const (
	oidPBES2  = "1.2.840.113549.1.5.13"
	oidPBKDF2 = "1.2.840.113549.1.5.12"
	oidScrypt = "1.3.6.1.4.1.11591.4.11"
)

const (
	// maxIterations bounds the time that a key file can cost: about two seconds.
	maxIterations = 10_000_000
	// maxScryptMemory bounds the memory: 128 × cost × block bytes. OpenSSL has 16
	// MiB.
	maxScryptMemory = 256 << 20
)

var (
	errNotEncrypted  = errors.New("the encrypted private key is damaged")
	errWrongPassword = errors.New("the password does not decrypt it")
)

// unsupported is the error for an encryption that is not implemented.
func unsupported(what string) error {
	return fmt.Errorf("it is encrypted with %s; convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEWFILE", what)
}

// decryptPKCS8 returns the private key, in PKCS #8, of an
// EncryptedPrivateKeyInfo.
func decryptPKCS8(der, password []byte) ([]byte, error) {
	var outer encryptedKey
	var params pbes2Params
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return nil, errNotEncrypted
	}
	if id := outer.Algorithm.Algorithm.String(); id != oidPBES2 {
		return nil, unsupported("an old scheme, " + id)
	}
	if _, err := asn1.Unmarshal(outer.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, errNotEncrypted
	}
	newBlock, size, err := blockOf(params.Cipher.Algorithm.String())
	if err != nil {
		return nil, err
	}
	key, err := deriveKey(params.KDF, password, size)
	if err != nil {
		return nil, err
	}
	block, err := newBlock(key)
	if err != nil {
		return nil, err
	}
	var iv []byte
	if _, err := asn1.Unmarshal(params.Cipher.Parameters.FullBytes, &iv); err != nil || len(iv) != block.BlockSize() ||
		len(outer.Data) == 0 || len(outer.Data)%block.BlockSize() != 0 {
		return nil, errNotEncrypted
	}
	plain := make([]byte, len(outer.Data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, outer.Data)
	return unpad(plain, block.BlockSize())
}

// unpad removes the padding (RFC 8018, 6.1.1). With a wrong password the padding
// is wrong, except in one of 256 cases: then the key does not parse.
func unpad(b []byte, size int) ([]byte, error) {
	n := int(b[len(b)-1])
	if n == 0 || n > size || n > len(b) {
		return nil, errWrongPassword
	}
	for _, p := range b[len(b)-n:] {
		if int(p) != n {
			return nil, errWrongPassword
		}
	}
	return b[:len(b)-n], nil
}

// blockOf returns the cipher with that identifier, and the length of its key.
func blockOf(id string) (newBlock func([]byte) (cipher.Block, error), size int, err error) {
	switch id {
	case "2.16.840.1.101.3.4.1.2":
		return aes.NewCipher, 16, nil
	case "2.16.840.1.101.3.4.1.22":
		return aes.NewCipher, 24, nil
	case "2.16.840.1.101.3.4.1.42":
		return aes.NewCipher, 32, nil
	case "1.2.840.113549.3.7":
		return des.NewTripleDESCipher, 24, nil
	}
	return nil, 0, unsupported("the cipher " + id)
}

func deriveKey(kdf pkix.AlgorithmIdentifier, password []byte, size int) ([]byte, error) {
	switch id := kdf.Algorithm.String(); id {
	case oidPBKDF2:
		return derivePBKDF2(kdf.Parameters.FullBytes, password, size)
	case oidScrypt:
		return deriveScrypt(kdf.Parameters.FullBytes, password, size)
	default:
		return nil, unsupported("the key derivation " + id)
	}
}

func derivePBKDF2(der, password []byte, size int) ([]byte, error) {
	var p pbkdf2Params
	if _, err := asn1.Unmarshal(der, &p); err != nil || p.Iterations < 1 {
		return nil, errNotEncrypted
	}
	if p.Iterations > maxIterations {
		return nil, unsupported(fmt.Sprintf("%d iterations, which would take too long", p.Iterations))
	}
	newHash, err := hashOf(p.PRF.Algorithm.String())
	if err != nil {
		return nil, err
	}
	return pbkdf2.Key(newHash, string(password), p.Salt, p.Iterations, size)
}

func deriveScrypt(der, password []byte, size int) ([]byte, error) {
	var p scryptParams
	if _, err := asn1.Unmarshal(der, &p); err != nil || p.Cost < 2 || p.Block < 1 || p.Parallel < 1 {
		return nil, errNotEncrypted
	}
	if p.Block > maxScryptMemory/128/p.Cost || p.Parallel > 16 {
		return nil, unsupported(fmt.Sprintf("scrypt of N=%d r=%d p=%d, which would take too much", p.Cost, p.Block, p.Parallel))
	}
	return scrypt.Key(password, p.Salt, p.Cost, p.Block, p.Parallel, size)
}

// hashOf returns the hash of an HMAC. The default is SHA-1 (RFC 8018, A.2).
func hashOf(id string) (func() hash.Hash, error) {
	switch id {
	case "", "1.2.840.113549.2.7":
		return sha1.New, nil
	case "1.2.840.113549.2.8":
		return sha256.New224, nil
	case "1.2.840.113549.2.9":
		return sha256.New, nil
	case "1.2.840.113549.2.10":
		return sha512.New384, nil
	case "1.2.840.113549.2.11":
		return sha512.New, nil
	}
	return nil, unsupported("the pseudo-random function " + id)
}

// parseEncryptedKey decrypts and parses a key. Nil password: there is none.
func parseEncryptedKey(der, password []byte) (crypto.Signer, error) {
	if password == nil {
		return nil, errors.New("the key is encrypted; give its password in password_file, or decrypt it: openssl pkey -in FILE -out NEWFILE")
	}
	plain, err := decryptPKCS8(der, password)
	if err != nil {
		return nil, err
	}
	key, err := parseKeyDER(plain)
	if err != nil {
		return nil, errWrongPassword
	}
	return key, nil
}
