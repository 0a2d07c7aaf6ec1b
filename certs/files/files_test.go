package files

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
)

// pair is a self-signed certificate and its key, in PEM.
type pair struct{ cert, key []byte }

// newPair is valid from two hours before until life from now.
func newPair(t testing.TB, serial int64, life time.Duration) pair {
	t.Helper()
	return newPairFrom(t, serial, time.Now().Add(-2*time.Hour), time.Now().Add(life))
}

func newPairFrom(t testing.TB, serial int64, from, until time.Time) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pair{selfSigned(t, key, serial, from, until), pkcs8(t, key)}
}

func selfSigned(t testing.TB, key crypto.Signer, serial int64, from, until time.Time) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", der)
}

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("PRIVATE KEY", der)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func concat(all ...[]byte) []byte { return bytes.Join(all, nil) }

func TestLoadNamesTheFileAndTheFix(t *testing.T) {
	dir := t.TempDir()
	a, b := newPair(t, 1, time.Hour), newPair(t, 0x2b, time.Hour)
	der, _ := pem.Decode(a.cert)
	keyDER, _ := pem.Decode(a.key)
	exchange, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"a.crt": a.cert, "a.key": a.key, "b.crt": b.cert, "b.key": b.key, "empty": nil, "text": []byte("hello"),
		"cut.crt":         a.cert[:len(a.cert)/2],
		"cut-second.crt":  concat(a.cert, a.cert[:len(a.cert)/2]),
		"cut-first.crt":   concat(a.cert[:len(a.cert)/2], []byte("\n"), a.cert),
		"damaged.crt":     bytes.Replace(a.cert, []byte("-----END"), []byte("-----ENX"), 1),
		"cut.key":         a.key[:len(a.key)/2],
		"garbage.crt":     encode("CERTIFICATE", []byte("x")),
		"garbage.key":     encode("PRIVATE KEY", []byte("x")),
		"exchange.key":    pkcs8(t, exchange),
		"der.crt":         der.Bytes,
		"der.key":         keyDER.Bytes,
		"request.crt":     encode("CERTIFICATE REQUEST", []byte("x")),
		"public.key":      encode("PUBLIC KEY", []byte("x")),
		"ssh.key":         encode("OPENSSH PRIVATE KEY", []byte("x")),
		"encrypted.key":   encode("ENCRYPTED PRIVATE KEY", []byte("x")),
		"dek.key":         pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")}),
		"wrong-order.crt": concat(b.cert, a.cert),
		"huge":            make([]byte, maxFile+1),
	} {
		write(t, filepath.Join(dir, name), content)
	}
	for _, tt := range []struct{ cert, key, ca, file, want string }{
		{"absent", "a.key", "", "absent", "relative paths start at the configuration file's folder"},
		{".", "a.key", "", "", "not a regular file"},
		{"huge", "a.key", "", "huge", "more than 16 MiB"},
		{"a.crt", "b.key", "", "b.key", "does not match the certificate in " + dir + "/a.crt"},
		{"b.crt", "a.key", "", "a.key", "(serial 2b)"},
		{"a.key", "b.key", "", "a.key", "interchanged"},
		{"a.crt", "a.crt", "", "a.crt", "interchanged"},
		{"cut.crt", "a.key", "", "cut.crt", "cut short"},
		{"cut-second.crt", "a.key", "", "cut-second.crt", "cut short"},
		{"cut-first.crt", "a.key", "", "cut-first.crt", "cut short"},
		{"damaged.crt", "a.key", "", "damaged.crt", "cut short"},
		{"a.crt", "cut.key", "", "cut.key", "cut short"},
		{"garbage.crt", "a.key", "", "garbage.crt", "certificate 1"},
		{"a.crt", "garbage.key", "", "garbage.key", "the private key"},
		{"empty", "a.key", "", "empty", "BEGIN CERTIFICATE"},
		{"request.crt", "a.key", "", "request.crt", "there is a CERTIFICATE REQUEST in it, but no certificate; give the certificate that the CA has issued"},
		{"der.key", "a.key", "", "der.key", "it is a private key, not a certificate; are certificate and key interchanged?"},
		{"a.crt", "der.crt", "", "der.crt", "it is a certificate, not a private key; are certificate and key interchanged?"},
		{"a.crt", "text", "", "text", "BEGIN PRIVATE KEY"},
		{"a.crt", "public.key", "", "public.key", "there is a PUBLIC KEY in it"},
		{"a.crt", "ssh.key", "", "ssh.key", "for ssh"},
		{"a.crt", "exchange.key", "", "exchange.key", "cannot sign"},
		{"a.crt", "encrypted.key", "", "encrypted.key", "give its password in password_file, or decrypt it: openssl pkey"},
		{"a.crt", "dek.key", "", "dek.key", "openssl pkcs8 -topk8"},
		{"wrong-order.crt", "a.key", "", "wrong-order.crt", "certificate 2 of this file, which must be its first"},
		{"a.crt", "a.key", "empty", "empty", "BEGIN CERTIFICATE"},
		{"a.crt", "a.key", "absent", "absent", "no such file"},
	} {
		in := func(name string) string {
			if name == "" {
				return ""
			}
			return filepath.Join(dir, name)
		}
		_, _, err := Load(Files{Cert: in(tt.cert), Key: in(tt.key), CA: in(tt.ca)})
		var file *FileError
		if !errors.As(err, &file) || file.Path != in(tt.file) && tt.file != "" || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("Load(%+v) = %v", tt, err)
		}
	}
}

// All errors are reported at once, on one line, and can be separated.
func TestLoadReportsAllErrors(t *testing.T) {
	_, _, err := Load(Files{Cert: "absent.crt", Key: "absent.key", CA: "absent.ca"})
	many, ok := err.(interface{ Unwrap() []error })
	if !ok || len(many.Unwrap()) != 3 || strings.Contains(err.Error(), "\n") || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for _, err := range many.Unwrap() {
		if file := (*FileError)(nil); !errors.As(err, &file) || !strings.HasPrefix(file.Path, "absent.") {
			t.Errorf("%v is no FileError", err)
		}
	}
	if _, _, err := Load(Files{}); err == nil {
		t.Error("an identity without files")
	}
	// The one that runs the tests may read everything.
	if err := pathless(&fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}); !strings.Contains(err.Error(), "readable by uid "+ourUser()) || strings.Contains(err.Error(), "x:") {
		t.Error(err)
	}
}

func TestLoadKinds(t *testing.T) {
	dir := t.TempDir()
	from, until := time.Now(), time.Now().Add(time.Hour)
	ec, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	ecDER, _ := x509.MarshalECPrivateKey(ec)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ecParams := encode("EC PARAMETERS", []byte{6, 5, 43, 129, 4, 0, 34}) // openssl ecparam writes them first
	for name, tt := range map[string]struct {
		signer crypto.Signer
		key    []byte
	}{
		"SEC 1":       {ec, concat(ecParams, encode("EC PRIVATE KEY", ecDER))},
		"PKCS #8 EC":  {ec, pkcs8(t, ec)},
		"PKCS #1":     {rsaKey, encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		"PKCS #8 RSA": {rsaKey, pkcs8(t, rsaKey)},
		"Ed25519":     {ed, pkcs8(t, ed)},
		"CRLF":        {ed, bytes.ReplaceAll(pkcs8(t, ed), []byte("\n"), []byte("\r\n"))},
	} {
		t.Run(name, func(t *testing.T) {
			// One file for all, with text around, as some tools write it.
			path := filepath.Join(dir, "all.pem")
			other := newPair(t, 7, time.Hour)
			write(t, path, concat([]byte("Bag Attributes\n"), tt.key, []byte("subject=/CN=x\n"), selfSigned(t, tt.signer, 5, from, until), other.cert))
			cert, roots, err := Load(Files{Cert: path, Key: path, CA: path})
			if err != nil {
				t.Fatal(err)
			}
			if cert.Leaf == nil || cert.Leaf.SerialNumber.Int64() != 5 || len(cert.Certificate) != 2 || cert.PrivateKey == nil || roots == nil {
				t.Errorf("%+v, %v", cert, roots)
			}
		})
	}
	p := newPair(t, 9, -time.Hour)
	write(t, filepath.Join(dir, "old.pem"), concat(p.cert, p.key))
	if cert, roots, err := Load(Files{Cert: filepath.Join(dir, "old.pem"), Key: filepath.Join(dir, "old.pem")}); err != nil || cert == nil || roots != nil {
		t.Errorf("an expired pair without roots: %v, %v", roots, err)
	}
}

func TestLoadOnlyRoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.crt")
	one, two := newPair(t, 1, time.Hour), newPair(t, 2, time.Hour)
	write(t, path, concat(one.cert, two.cert))
	_, roots, err := Load(Files{CA: path})
	if err != nil {
		t.Fatal(err)
	}
	want := x509.NewCertPool()
	want.AppendCertsFromPEM(one.cert)
	want.AppendCertsFromPEM(two.cert)
	if !roots.Pool.Equal(want) {
		t.Error("not both roots are there")
	}
	write(t, path, one.key)
	if _, _, err := Load(Files{CA: path}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a key as roots: %v", err)
	}
}

// A file is accepted only if all of its blocks are complete.
func FuzzLoadPEM(f *testing.F) {
	p := newPair(f, 1, time.Hour)
	f.Add(p.cert)
	f.Add(p.key)
	f.Add(concat(p.cert, p.key, p.cert[:90]))
	f.Add([]byte("-----BEGIN CERTIFICATE-----"))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nDEK-Info: x\n\nAAAA\n-----END EC PRIVATE KEY-----\n"))
	f.Add([]byte{0x30, 0x82, 0, 0})
	f.Add(first(f, p.cert).Bytes)
	f.Add(first(f, p.key).Bytes)
	for _, name := range []string{"list.crl", "list.der"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, err := parseCertificates(b)
		if err == nil && (len(chain) == 0 || !isDER(b) && bytes.Count(plainText(b), armorBegin) < len(chain)) {
			t.Errorf("%d certificates", len(chain))
		}
		if lists, err := parseLists(b); err == nil && len(lists) == 0 {
			t.Error("no list and no error")
		}
		key, keyErr := parseKey(b, []byte("x"))
		if (key == nil) != (keyErr != nil) {
			t.Errorf("key %v, error %v", key, keyErr)
		}
		if err == nil && keyErr == nil && fits(chain, key, Files{}) == nil && certs.NewCertificate(key, chain).Leaf == nil {
			t.Error("a pair without a leaf")
		}
	})
}
