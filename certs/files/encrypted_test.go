package files

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The files in testdata were made by openssl 3.0 with this password; the key is
// that of leaf.crt.
const testPassword = "correct horse"

func secret(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	write(t, path, []byte(text))
	return path
}

func TestEncryptedKeys(t *testing.T) {
	right, wrong, empty := secret(t, testPassword+"\n"), secret(t, "wrong"), secret(t, "\n")
	for _, tt := range []struct{ key, password, want string }{
		{"default.key", right, ""},
		{"aes128-sha1.key", right, ""},
		{"aes192-sha512.key", right, ""},
		{"des3-sha384.key", right, ""},
		{"scrypt.key", right, ""},
		{"default.key", wrong, "the password does not decrypt it"},
		{"scrypt.key", wrong, "the password does not decrypt it"},
		{"default.key", "", "give its password in password_file"},
		{"default.key", empty, "it is empty"},
		{"default.key", right + ".absent", "no such file"},
		{"pbes1.key", right, "openssl pkcs8 -topk8"},
		{"camellia.key", right, "openssl pkcs8 -topk8"},
	} {
		t.Run(tt.key+" "+filepath.Base(filepath.Dir(tt.password)), func(t *testing.T) {
			cert, _, err := Load(Files{Cert: "testdata/leaf.crt", Key: "testdata/" + tt.key, PasswordFile: tt.password})
			if tt.want == "" {
				if err != nil || cert.PrivateKey == nil {
					t.Fatal(err)
				}
				return
			}
			var file *FileError
			if !errors.As(err, &file) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), testPassword) {
				t.Errorf("error %v; want a FileError with %q", err, tt.want)
			}
		})
	}
}

func TestPKCS12(t *testing.T) {
	right, wrong := secret(t, testPassword), secret(t, "wrong")
	for _, tt := range []struct {
		file, password string
		roots          bool
		want           string
	}{
		{"pair.p12", right, true, ""},
		{"legacy.p12", right, true, ""},
		{"open.p12", "", false, ""},
		{"nomac.p12", right, true, ""},
		{"nomac.p12", wrong, false, "without one a wrong password looks like this, too"},
		{"pair.p12", wrong, false, "the password does not open it"},
		{"pair.p12", "", false, "the password does not open it"},
		{"nokey.p12", right, false, "with one key"},
		{"leaf.crt", right, false, "openssl pkcs12 -export"},
		{"absent.p12", right, false, "no such file"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			cert, roots, err := Load(Files{PKCS12: "testdata/" + tt.file, PasswordFile: tt.password})
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if cert.Leaf.Subject.CommonName != "files test" || len(cert.Certificate) != 1 || (roots != nil) != tt.roots {
					t.Errorf("leaf %v, chain of %d, roots %v", cert.Leaf.Subject, len(cert.Certificate), roots)
				}
				return
			}
			var file *FileError
			if !errors.As(err, &file) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want a FileError with %q", err, tt.want)
			}
		})
	}
	_, roots, err := Load(Files{PKCS12: "testdata/pair.p12", PasswordFile: right, CA: "testdata/leaf.crt"})
	if _, want, _ := Load(Files{CA: "testdata/leaf.crt"}); err != nil || !roots.Pool.Equal(want.Pool) {
		t.Errorf("ca does not overrule the roots in the file: %v", err)
	}
}

func TestRevocationLists(t *testing.T) {
	p := newPair(t, 1, 1<<40)
	write(t, filepath.Join(t.TempDir(), "x"), nil)
	pair := filepath.Join(t.TempDir(), "pair.pem")
	write(t, pair, concat(p.cert, p.key))
	for _, name := range []string{"list.crl", "list.der"} {
		_, roots, err := Load(Files{Cert: pair, Key: pair, CRL: "testdata/" + name})
		if err != nil || roots == nil || roots.Revoked == nil || roots.Pool != nil {
			t.Errorf("%s: %+v, %v", name, roots, err)
		}
	}
	for name, want := range map[string]string{"leaf.crt": "no revocation list in it", "absent": "no such file", "open.p12": ""} {
		if _, _, err := Load(Files{Cert: pair, Key: pair, CRL: "testdata/" + name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Decryption of any file ends soon, with a key or an error.
func FuzzDecryptPKCS8(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.key")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		block, _ := pem.Decode(b)
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := parseEncryptedKey(b, []byte(testPassword)); (key == nil) == (err == nil) {
			t.Errorf("%v, %v", key, err)
		}
	})
}
