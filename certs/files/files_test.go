package files

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
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

func newPair(t testing.TB, serial int64, life time.Duration) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadNamesTheFileAndTheMend(t *testing.T) {
	dir := t.TempDir()
	p, other := newPair(t, 1, time.Hour), newPair(t, 2, time.Hour)
	for name, b := range map[string][]byte{
		"a.crt": p.cert, "a.key": p.key, "b.key": other.key, "empty": nil, "cut.crt": p.cert[:len(p.cert)/2],
		"cut-second.crt": append(bytes.Clone(p.cert), p.cert[:len(p.cert)/2]...),
		"cut.key":        p.key[:len(p.key)/2], "text": []byte("hello"),
		"damaged.crt":   bytes.Replace(p.cert, []byte("-----END"), []byte("-----ENX"), 1),
		"garbage.crt":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
		"encrypted.key": []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"),
	} {
		write(t, filepath.Join(dir, name), b)
	}
	for _, tt := range []struct{ cert, key, ca, file, want string }{
		{"a.crt", "a.key", "", "", ""},
		{"a.crt", "a.key", "a.crt", "", ""},
		{"absent", "a.key", "", "absent", "no such file"},
		{".", "a.key", "", "", "not a file"},
		{"a.crt", "b.key", "", "b.key", "does not match the certificate in"},
		{"a.key", "a.crt", "", "a.key", "interchanged"},
		{"a.crt", "a.crt", "", "a.crt", "interchanged"},
		{"cut.crt", "a.key", "", "cut.crt", "cut short"},
		{"cut-second.crt", "a.key", "", "cut-second.crt", "cut short"},
		{"damaged.crt", "a.key", "", "damaged.crt", "cut short"},
		{"a.crt", "cut.key", "", "cut.key", "cut short"},
		{"garbage.crt", "a.key", "", "garbage.crt", "certificate 1"},
		{"empty", "a.key", "", "empty", "no CERTIFICATE"},
		{"a.crt", "text", "", "text", "no private key"},
		{"a.crt", "encrypted.key", "", "encrypted.key", "openssl pkey"},
		{"a.crt", "a.key", "empty", "empty", "no CERTIFICATE"},
	} {
		in := func(name string) string {
			if name == "" {
				return ""
			}
			return filepath.Join(dir, name)
		}
		cert, _, err := Load(Files{in(tt.cert), in(tt.key), in(tt.ca)})
		switch {
		case tt.want == "" && (err != nil || cert.Leaf == nil):
			t.Errorf("Load(%+v) = %v", tt, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.file)):
			t.Errorf("Load(%+v) = %v", tt, err)
		}
	}
}

// watched is a Watch under way in a folder of its own.
type watched struct {
	t      *testing.T
	dir    string
	source *certs.Source
}

func watch(t *testing.T, p pair, prepare func(dir string)) *watched {
	t.Helper()
	w := &watched{t: t, dir: t.TempDir(), source: certs.NewSource("me")}
	if prepare != nil {
		prepare(w.dir)
	} else {
		w.put("tls.crt", p.cert)
		w.put("tls.key", p.key)
	}
	f := Files{Cert: filepath.Join(w.dir, "tls.crt"), Key: filepath.Join(w.dir, "tls.key")}
	watcher, _ := Open(f, w.source, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { watcher.Run(ctx); close(done) }() // awaited in the cleanup
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *watched) put(name string, b []byte) { write(w.t, filepath.Join(w.dir, name), b) }

// until waits for a status.
func (w *watched) until(what string, ok func(certs.Status) bool) {
	w.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		changed := w.source.Changed()
		if ok(w.source.Status()) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("no %s: %+v", what, w.source.Status())
		}
	}
}

func serial(s string) func(certs.Status) bool {
	return func(st certs.Status) bool { return st.Serial == s }
}

func TestWatchTakesARewrittenPairWhole(t *testing.T) {
	two := newPair(t, 2, time.Hour)
	w := watch(t, newPair(t, 1, time.Hour), nil)
	w.until("first", serial("1"))
	w.put("tls.crt", two.cert) // does not fit the key yet
	w.until("complaint", func(st certs.Status) bool { return strings.Contains(st.LastError, "does not match") })
	if st := w.source.Status(); st.Serial != "1" || !st.Ready || st.Failures == 0 {
		t.Errorf("with half a pair: %+v", st)
	}
	w.put("tls.key", two.key)
	w.until("second", serial("2"))
	if st := w.source.Status(); st.Generation != 2 || st.LastError != "" {
		t.Errorf("after the whole pair: %+v", st)
	}
}

func TestWatchSeesRenames(t *testing.T) {
	two := newPair(t, 2, time.Hour)
	w := watch(t, newPair(t, 1, time.Hour), nil)
	w.put("new.key", two.key)
	w.put("new.crt", two.cert)
	for _, ext := range []string{".key", ".crt"} {
		if err := os.Rename(filepath.Join(w.dir, "new"+ext), filepath.Join(w.dir, "tls"+ext)); err != nil {
			t.Fatal(err)
		}
	}
	w.until("second", serial("2"))
}

// Kubernetes swaps a symbolic link to the folder of all files.
func TestWatchSeesASwappedLink(t *testing.T) {
	fill := func(dir string, p pair) {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "tls.crt"), p.cert)
		write(t, filepath.Join(dir, "tls.key"), p.key)
	}
	w := watch(t, pair{}, func(dir string) {
		fill(filepath.Join(dir, "..1"), newPair(t, 1, time.Hour))
		os.Symlink("..1", filepath.Join(dir, "..data"))
		os.Symlink("..data/tls.crt", filepath.Join(dir, "tls.crt"))
		os.Symlink("..data/tls.key", filepath.Join(dir, "tls.key"))
	})
	w.until("first", serial("1"))
	for i, number := range []string{"2", "3"} {
		fill(filepath.Join(w.dir, ".."+number), newPair(t, int64(i+2), time.Hour))
		os.Symlink(".."+number, filepath.Join(w.dir, "..tmp"))
		if err := os.Rename(filepath.Join(w.dir, "..tmp"), filepath.Join(w.dir, "..data")); err != nil {
			t.Fatal(err)
		}
		w.until(number, serial(number))
	}
}

func TestWatchKeepsAValidPairFromAnExpiredOne(t *testing.T) {
	expired, third := newPair(t, 2, -time.Hour), newPair(t, 3, time.Hour)
	w := watch(t, newPair(t, 1, time.Hour), nil)
	w.put("tls.key", expired.key)
	w.put("tls.crt", expired.cert)
	w.until("complaint", func(st certs.Status) bool { return strings.Contains(st.LastError, "expired") })
	if st := w.source.Status(); st.Serial != "1" || !st.Ready {
		t.Errorf("after an expired pair: %+v", st)
	}
	w.put("tls.key", third.key)
	w.put("tls.crt", third.cert)
	w.until("third", serial("3"))
}

func TestWatchTakesUpWhatWasMissing(t *testing.T) {
	p := newPair(t, 1, time.Hour)
	w := watch(t, pair{}, func(string) {})
	if st := w.source.Status(); st.Ready || !strings.Contains(st.LastError, "no such file") {
		t.Errorf("without files: %+v", st)
	}
	w.put("tls.key", p.key)
	w.put("tls.crt", p.cert)
	w.until("pair", serial("1"))
}

func FuzzParse(f *testing.F) {
	p := newPair(f, 1, time.Hour)
	f.Add(p.cert, p.key)
	f.Add(p.key, p.cert)
	f.Add([]byte("-----BEGIN CERTIFICATE-----"), []byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		c := &contents{cert: cert, key: key, ca: cert}
		got, roots, err := c.parse(Files{"c", "k", "c"})
		if err == nil && (got.Leaf == nil || len(got.Certificate) == 0 || roots == nil) {
			t.Error("a pair without a leaf or roots")
		}
	})
}
