package embedded

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/smallstep/certificates/db"
	"go.step.sm/crypto/pemutil"

	"ambassador/certs"
)

// The files of a stored authority. root.crt is written last: if it exists, the
// others do.
const (
	rootFile         = "root.crt"
	intermediateFile = "intermediate.crt"
	keyFile          = "intermediate.key"
	provisionerFile  = "provisioner.json"
	databaseFile     = "ca.db" // used tokens, issued certificates
)

// openOrMake opens the authority in storage, or makes one if there is none. It
// returns an error for a folder, or a file in it, that others could have written
// to.
func openOrMake(o ServerOptions) (*pki, provisionerKey, error) {
	if o.Storage == "" {
		return makeNew(o)
	}
	folder, err := certs.MakeFolder(o.Storage)
	if err != nil {
		return nil, provisionerKey{}, err
	}
	defer folder.Close()
	if err := folder.Check(databaseFile, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, provisionerKey{}, err
	}
	switch err := folder.Check(rootFile, false); {
	case err == nil:
		return open(folder, o)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, provisionerKey{}, err
	}
	made, key, err := makeNew(o)
	if err == nil {
		err = store(folder, o, made, key)
	}
	return made, key, err
}

func makeNew(o ServerOptions) (*pki, provisionerKey, error) {
	made, err := newPKI(storedLife)
	if err != nil {
		return nil, provisionerKey{}, err
	}
	key, err := newProvisionerKey(o.Password)
	return made, key, err
}

func store(folder *certs.Folder, o ServerOptions, p *pki, key provisionerKey) error {
	var options []pemutil.Options
	if !o.PlainKeys {
		options = append(options, pemutil.WithPassword(o.Password))
	}
	block, err := pemutil.Serialize(p.signer, append(options, pemutil.WithPKCS8(true))...)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(key, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
		mode fs.FileMode
	}{
		{keyFile, pem.EncodeToMemory(block), 0o600},
		{provisionerFile, text, 0o600},
		{intermediateFile, encode("CERTIFICATE", p.intermediate.Raw), 0o644},
		{rootFile, encode("CERTIFICATE", p.root.Raw), 0o644},
	} {
		if err := folder.Replace(f.name, f.text, f.mode); err != nil {
			return err
		}
	}
	return nil
}

func open(folder *certs.Folder, o ServerOptions) (*pki, provisionerKey, error) {
	var key provisionerKey
	in := func(name string) string { return filepath.Join(o.Storage, name) }
	root, err := readCertificate(folder, in(rootFile))
	if err != nil {
		return nil, key, err
	}
	intermediate, err := readCertificate(folder, in(intermediateFile))
	if err != nil {
		return nil, key, err
	}
	signer, err := readKey(folder, in(keyFile), o)
	if err != nil {
		return nil, key, err
	}
	text, err := folder.Read(provisionerFile, true)
	if err != nil {
		return nil, key, err
	}
	if err := json.Unmarshal(text, &key); err != nil {
		return nil, key, fmt.Errorf("%s: %w", in(provisionerFile), err)
	}
	return &pki{root, intermediate, signer}, key, nil
}

func readCertificate(folder *certs.Folder, path string) (*x509.Certificate, error) {
	text, err := folder.Read(filepath.Base(path), false)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: it is not in PEM", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// readKey reports a password that is wrong, missing, or given for a plain key.
func readKey(folder *certs.Folder, path string, o ServerOptions) (crypto.Signer, error) {
	text, err := folder.Read(filepath.Base(path), true)
	if err != nil {
		return nil, err
	}
	encrypted := bytes.Contains(text, []byte("ENCRYPTED PRIVATE KEY"))
	var options []pemutil.Options
	switch {
	case encrypted && o.PlainKeys:
		return nil, fmt.Errorf("%s: the key is encrypted; give the password that it was made with", path)
	case encrypted:
		options = append(options, pemutil.WithPassword(o.Password))
	case !o.PlainKeys:
		return nil, fmt.Errorf("%s: the key was stored without a password; leave the password out, or begin with an empty folder", path)
	}
	key, err := pemutil.ParseKey(text, options...)
	if err != nil && encrypted {
		return nil, fmt.Errorf("%s: the password does not open the key", path)
	}
	signer, ok := key.(crypto.Signer)
	if err == nil && !ok {
		err = fmt.Errorf("%s: a key of type %T cannot sign", path, key)
	}
	return signer, err
}

// openDatabase also locks the folder against a second process.
func openDatabase(dir string) (db.AuthDB, error) {
	return db.New(&db.Config{Type: "bbolt", DataSource: filepath.Join(dir, databaseFile)})
}
