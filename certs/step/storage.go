package step

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"ambassador/certs"
)

// storage is a folder; the zero value keeps nothing.
type storage struct{ dir string }

// stored is what a folder holds; cert and roots may be missing.
type stored struct {
	cert        *tls.Certificate // Leaf is set
	roots       []*x509.Certificate
	fingerprint string // of the root that all began with
}

const (
	pairFile  = "identity.pem" // key and chain, one file: they cannot be of two minds
	rootsFile = "roots.pem"
	lockFile  = "lock"

	// fingerprintLine begins roots.pem. PEM passes over it.
	fingerprintLine = "# The roots of the step-ca that began with fingerprint "
)

// prepare makes the folder. The error says what is wrong with it.
func (s storage) prepare() error {
	if s.dir == "" {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// lockPoll is how often a lock that is held is tried again. flock(2) itself could
// not be given up.
const lockPoll = 20 * time.Millisecond

// lock makes us the only one that renews with this folder, until unlock. It keeps
// to ctx.
func (s storage) lock(ctx context.Context) (unlock func(), err error) {
	if s.dir == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // which unlocks
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		t := time.NewTimer(lockPoll)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			f.Close()
			return nil, fmt.Errorf("%s is held by another process: %w", f.Name(), ctx.Err())
		}
	}
}

// load reads what is there. The error names a file that is damaged; what is
// missing is no error.
func (s storage) load() (stored, error) {
	var out stored
	if s.dir == "" {
		return out, nil
	}
	pair, pairErr := readOptional(filepath.Join(s.dir, pairFile))
	roots, rootsErr := readOptional(filepath.Join(s.dir, rootsFile))
	if err := errors.Join(pairErr, rootsErr); err != nil {
		return out, err
	}
	if len(roots) > 0 {
		var err error
		if out.roots, err = parseChain(roots); err != nil {
			return stored{}, fmt.Errorf("%s: %w", filepath.Join(s.dir, rootsFile), err)
		}
		out.fingerprint = fingerprintIn(roots)
	}
	if len(pair) > 0 {
		cert, err := parsePair(pair)
		if err != nil {
			return stored{}, fmt.Errorf("%s: %w", filepath.Join(s.dir, pairFile), err)
		}
		out.cert = cert
	}
	return out, nil
}

func readOptional(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func fingerprintIn(roots []byte) string {
	line, _, _ := bytes.Cut(roots, []byte("\n"))
	rest, _ := bytes.CutPrefix(line, []byte(fingerprintLine))
	return string(rest)
}

// parseChain reads all certificates; there is at least one.
func parseChain(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return out, nil
}

// parsePair reads chain and key, which must fit.
func parsePair(b []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0])
	}
	return &cert, err
}

// save keeps the roots and then the pair, each whole or not at all. The caller
// holds the lock.
func (s storage) save(what stored) error {
	if err := s.saveRoots(what.roots, what.fingerprint); err != nil || s.dir == "" {
		return err
	}
	text, err := encodePair(what.cert)
	if err != nil {
		return err
	}
	return certs.ReplaceFile(filepath.Join(s.dir, pairFile), text, 0o600)
}

// saveRoots keeps the roots. The caller holds the lock.
func (s storage) saveRoots(roots []*x509.Certificate, fingerprint string) error {
	if s.dir == "" {
		return nil
	}
	text := []byte(fingerprintLine + fingerprint + "\n")
	for _, c := range roots {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return certs.ReplaceFile(filepath.Join(s.dir, rootsFile), text, 0o600)
}

func encodePair(cert *tls.Certificate) ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	for _, der := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text, nil
}
