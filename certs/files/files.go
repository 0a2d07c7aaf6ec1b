package files

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"ambassador/certs"
)

// Files are the paths of an identity. Required are Cert and Key, or PKCS12; with
// CA and neither of them, it is an identity that has only roots.
type Files struct {
	// Cert has the chain in PEM or DER, leaf first, Key its private key. They may be
	// the same file in PEM.
	Cert, Key string
	// PKCS12 has chain and key instead. If CA is empty, its self-signed certificates
	// are the roots.
	PKCS12 string
	// CA has the identity's roots: in PEM, in DER, or as PKCS #12. A certificate that
	// cannot be a root is left out: see certs.Roots.Unused.
	CA string
	// CRL has lists of revoked certificates, in PEM or DER: see certs.Revocations.
	CRL string
	// PasswordFile has the password of an encrypted Key, of PKCS12, and of a CA that
	// is PKCS #12.
	PasswordFile string
}

// Certificate returns the path of the file with our certificate.
func (f Files) Certificate() string {
	if f.PKCS12 != "" {
		return f.PKCS12
	}
	return f.Cert
}

// Roots returns the path of the file with the roots; empty if there is none.
func (f Files) Roots() string {
	if f.CA != "" {
		return f.CA
	}
	return f.PKCS12
}

// Paths lists the files that are set.
func (f Files) Paths() []string {
	all := []string{f.Cert, f.Key, f.PKCS12, f.CA, f.CRL, f.PasswordFile}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" })
}

// Secrets lists the files that are set and contain a secret.
func (f Files) Secrets() []string {
	all := []string{f.Key, f.PKCS12, f.PasswordFile}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" })
}

// OnlyRoots reports whether the identity has roots and no certificate.
func (f Files) OnlyRoots() bool { return f.Certificate() == "" && f.Key == "" && f.CA != "" }

// FileError is a file that cannot be used.
type FileError struct {
	Path string
	Err  error // says how to fix it
}

func (e *FileError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the error of the file.
func (e *FileError) Unwrap() error { return e.Err }

// Load reads an identity. The certificate's Leaf is set; its validity is not
// checked: see certs.Validity. The roots are nil if no file has any, and the
// certificate is nil if only roots are given. The error names every file that
// cannot be used: it is a *FileError, or several behind Unwrap() []error.
func Load(f Files) (*tls.Certificate, *certs.Roots, error) { return loadFrom(f, readFile) }

// reader reads the file of a path.
type reader func(path string) ([]byte, error)

// loadFrom is Load with another reader of certificates, keys, roots and lists.
func loadFrom(f Files, read reader) (*tls.Certificate, *certs.Roots, error) {
	password, passwordErr := loadPassword(f.PasswordFile)
	var cert *tls.Certificate
	var roots *rootList
	var certErr error
	switch {
	case passwordErr != nil: // without it the key cannot be read
	case f.OnlyRoots():
	case f.PKCS12 != "":
		cert, roots, certErr = loadPKCS12(f, password)
	default:
		cert, certErr = loadPair(f, read, password)
	}
	var caErr, crlErr error
	var lists []*x509.RevocationList
	if f.CA != "" {
		roots, caErr = load(f.CA, read, func(b []byte) (*rootList, error) { return parseRoots(b, password) })
	}
	if f.CRL != "" {
		lists, crlErr = load(f.CRL, read, parseLists)
	}
	if err := joined(passwordErr, certErr, caErr, crlErr); err != nil {
		return nil, nil, err
	}
	return cert, roots.roots(lists), nil
}

// loadPair reads certificate and key.
func loadPair(f Files, read reader, password []byte) (*tls.Certificate, error) {
	chain, certErr := load(f.Cert, read, parseCertificates)
	key, keyErr := load(f.Key, read, func(b []byte) (crypto.Signer, error) { return parseKey(b, password) })
	if err := joined(certErr, keyErr); err != nil {
		return nil, err
	}
	if err := fits(chain, key, f); err != nil {
		return nil, err
	}
	return certs.NewCertificate(key, chain), nil
}

// loadPassword reads the password; nil if there is no file.
func loadPassword(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	password, err := certs.ReadSecret(path)
	if err != nil {
		return nil, Unreadable(path, err)
	}
	return password, nil
}

// load reads and parses one file.
func load[T any](path string, read reader, parse func([]byte) (T, error)) (T, error) {
	var parsed T
	b, err := read(path)
	if err == nil {
		parsed, err = parse(b)
	}
	if err != nil {
		return parsed, &FileError{path, err}
	}
	return parsed, nil
}

// several are errors whose text is one line: errors.Join puts each on its own
// line, for which logs and records have no place.
type several []error

func (e several) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap lists them.
func (e several) Unwrap() []error { return e }

// joined returns nil, the single error, or all of them, flattened.
func joined(errs ...error) error {
	var all []error
	for _, err := range errs {
		if many, ok := err.(several); ok {
			all = append(all, many...)
		} else if err != nil {
			all = append(all, err)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return several(all)
}

// fits returns an error unless the key is that of the chain's leaf.
func fits(chain []*x509.Certificate, key crypto.Signer, f Files) error {
	for i, c := range chain {
		switch {
		case !certs.BelongsTo(c, key):
		case i == 0:
			return nil
		default:
			return &FileError{f.Cert, fmt.Errorf("the key in %s belongs to certificate %d of this file, which must be its first; order them leaf first", f.Key, i+1)}
		}
	}
	return &FileError{f.Key, fmt.Errorf("the key does not match the certificate in %s (serial %x); give the key that this certificate was made for", f.Cert, chain[0].SerialNumber)}
}

// maxFile bounds a file: a chain is a few KiB, a bundle of all public roots
// 250 KiB, the revocation list of a large CA some MiB.
const maxFile = 16 << 20

func readFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("no path is given")
	}
	b, err := certs.ReadGuarded(path, maxFile) // also for roots and lists: a writable one could hold anybody's
	if err != nil {
		return nil, pathless(err)
	}
	return b, nil
}

// Unreadable returns the *FileError of a file that could not be read. Its text has the fix,
// if it is known.
func Unreadable(path string, err error) error { return &FileError{path, pathless(err)} }

// pathless removes the path from an error, because FileError has it, and adds the
// fix.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; relative paths start at the configuration file's folder", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; the file and its folders must be readable by uid %s", err, ourUser())
	}
	return err
}

// ourUser is "994 (ambassador)", or the number alone if the user has no name.
func ourUser() string {
	id := strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(id); err == nil {
		return id + " (" + u.Username + ")"
	}
	return id
}
