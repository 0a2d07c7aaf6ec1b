package step

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"ambassador/certs"
)

// storage is a folder; the zero value stores nothing. The folder is opened, and
// so checked, for each use.
type storage struct{ dir string }

// stored is the content of a folder; every part may be missing.
type stored struct {
	cert      *tls.Certificate    // Leaf is set
	roots     []*x509.Certificate // the trusted roots
	untrusted []*x509.Certificate // the other roots
	vouchers  []voucher           // for roots
	anchors   []*x509.Certificate // roots, and former roots that vouchers need
}

const (
	pairFile  = "identity.pem" // key and chain in one file, so that they always match
	rootsFile = "roots.pem"
	lockFile  = "lock"

	// rootsLine begins roots.pem, for people. PEM decoders ignore it.
	rootsLine = "# The roots of the step-ca that began with fingerprint "
)

// prepare creates the folder if needed, and returns an error if it cannot be
// used.
func (s storage) prepare() error {
	if s.dir == "" {
		return nil
	}
	folder, err := certs.MakeFolder(s.dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	f, err := folder.Create(lockFile)
	if err != nil {
		return err
	}
	return f.Close()
}

// lockPoll is how often a held lock is tried again. A blocking flock(2) could not
// be cancelled.
const lockPoll = 20 * time.Millisecond

// lock makes us the only process that renews with this folder, until unlock. It
// returns when ctx ends.
func (s storage) lock(ctx context.Context) (unlock func(), err error) {
	if s.dir == "" {
		return func() {}, nil
	}
	folder, err := certs.OpenFolder(s.dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	f, err := folder.Create(lockFile)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing unlocks
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		if err := certs.Pause(ctx, lockPoll); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s is held by another process: %w", f.Name(), err)
		}
	}
}

// load reads the folder, and separates trusted roots from others. The error names
// the folder, or a file, that is damaged or that others could have written. A
// missing file is no error.
func (s storage) load(c Config) (out stored, err error) {
	if s.dir == "" {
		return out, nil
	}
	folder, err := certs.OpenFolder(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	defer folder.Close()
	pair, pairErr := readOptional(folder, pairFile, true)
	roots, rootsErr := readOptional(folder, rootsFile, false)
	if err := errors.Join(pairErr, rootsErr); err != nil {
		return out, err
	}
	if len(roots) > 0 {
		all, err := parseChain(roots)
		if err != nil {
			return stored{}, fmt.Errorf("%s: %w", filepath.Join(s.dir, rootsFile), err)
		}
		out.vouchers = parseVouchers(roots)
		trust := c.pinned()
		for _, v := range out.vouchers {
			if root := trust.take(c, v); root != nil {
				out.anchors = append(out.anchors, root)
			}
		}
		out.roots, out.untrusted = trust.sort(all)
		out.anchors = append(out.anchors, out.roots...)
	}
	if len(pair) > 0 {
		if out.cert, err = parsePair(pair); err != nil {
			return stored{}, fmt.Errorf("%s: %w", filepath.Join(s.dir, pairFile), err)
		}
	}
	return out, nil
}

func readOptional(folder *certs.Folder, name string, secret bool) ([]byte, error) {
	b, err := folder.Read(name, secret)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// parseChain reads all certificates, at least one.
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

// parsePair reads chain and key, which must match.
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

// save stores the roots and then the pair, each whole or not at all. The caller
// holds the lock.
func (s storage) save(c Config, what stored) error {
	if s.dir == "" {
		return nil
	}
	text, err := encodePair(what.cert)
	if err != nil {
		return err
	}
	if err := s.saveRoots(c, what); err != nil {
		return err
	}
	folder, err := certs.OpenFolder(s.dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Replace(pairFile, text, 0o600)
}

// saveRoots stores the roots, and keeps the stored pair. The caller holds the
// lock.
func (s storage) saveRoots(c Config, what stored) error {
	if s.dir == "" {
		return nil
	}
	folder, err := certs.OpenFolder(s.dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	text := []byte(rootsLine + c.Fingerprint + "\n")
	for _, r := range what.roots {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	vouchers, err := encodeVouchers(what.vouchers)
	if err != nil {
		return err
	}
	return folder.Replace(rootsFile, append(text, vouchers...), 0o600)
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
