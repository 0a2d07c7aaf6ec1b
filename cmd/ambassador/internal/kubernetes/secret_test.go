package kubernetes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
)

// pair makes a self-signed certificate of a serial number, and its key, in PEM.
func pair(t *testing.T, serial int64, notAfter time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "a"}, DNSNames: []string{"a.test"},
		NotBefore: notAfter.Add(-48 * time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
}

// secretOf is a Secret with these keys.
func secretOf(data ...string) string {
	var all []string
	for i := 0; i < len(data); i += 2 {
		all = append(all, fmt.Sprintf("%q:%q", data[i], base64.StdEncoding.EncodeToString([]byte(data[i+1]))))
	}
	return `{"type":"kubernetes.io/tls","data":{` + strings.Join(all, ",") + `}}`
}

// identify runs the identity of default/client until the test ends.
func identify(t *testing.T, f *fakeAPI) *certs.Source {
	t.Helper()
	source := certs.NewSource("me")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.client().Identity(Secret{"default", "client"}, source, slog.New(slog.DiscardHandler)).Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return source
}

// awaitStatus waits until the source's status is as ok wants.
func awaitStatus(t *testing.T, s *certs.Source, what string, ok func(certs.Status) bool) certs.Status {
	t.Helper()
	end := time.After(within)
	for {
		changed := s.Changed()
		if st := s.Status(); ok(st) {
			return st
		}
		select {
		case <-changed:
		case <-end:
			t.Fatalf("%s was not seen; the status is %+v", what, s.Status())
		}
	}
}

func TestSecretIdentity(t *testing.T) {
	f := newFakeAPI(t)
	source := identify(t, f)
	failsWith := func(text string) {
		t.Helper()
		awaitStatus(t, source, text, func(st certs.Status) bool { return strings.Contains(st.LastError, text) })
	}
	serves := func(serial string) {
		t.Helper()
		awaitStatus(t, source, "serial "+serial, func(st certs.Status) bool { return st.Ready && st.Serial == serial && st.LastError == "" })
	}
	failsWith("secret default/client: it does not exist; create it")
	now := time.Now()
	cert, key := pair(t, 1, now.Add(time.Hour))
	f.set("default/secrets/client", secretOf("tls.crt", cert, "tls.key", key, "ca.crt", cert))
	serves("1")
	if snap, err := source.Current(); err != nil || snap.Roots == nil {
		t.Errorf("without the roots of ca.crt: %v", err)
	}
	second, secondKey := pair(t, 2, now.Add(time.Hour))
	f.set("default/secrets/client", secretOf("tls.crt", second, "tls.key", key))
	failsWith("secret default/client: tls.key: the key does not match the certificate in secret default/client: tls.crt")
	f.set("default/secrets/client", secretOf("tls.crt", second))
	failsWith("secret default/client: tls.key: there is no such key, or it is empty; put tls.crt and tls.key there")
	f.set("default/secrets/client", secretOf("tls.crt", second, "tls.key", secondKey))
	serves("2")
	expired, expiredKey := pair(t, 3, now.Add(-time.Hour))
	f.set("default/secrets/client", secretOf("tls.crt", expired, "tls.key", expiredKey))
	failsWith("the certificate expired")
	f.remove("default/secrets/client")
	failsWith("it does not exist")
	if st := source.Status(); !st.Ready || st.Serial != "2" {
		t.Errorf("the last good pair is not kept: %+v", st)
	}
	for _, r := range f.asked() {
		if r.URL.Query().Get("fieldSelector") != "metadata.name=client" {
			t.Errorf("more than the one Secret is asked for: %s", r.URL)
		}
	}
}

// TestSecretOfRoots asserts that a Secret with roots alone is an identity that only
// verifies others.
func TestSecretOfRoots(t *testing.T) {
	f := newFakeAPI(t)
	cert, _ := pair(t, 1, time.Now().Add(time.Hour))
	f.set("default/secrets/client", secretOf("ca.crt", cert))
	awaitStatus(t, identify(t, f), "roots", func(st certs.Status) bool { return st.Ready && st.Serial == "" })
}

func TestSecretForbidden(t *testing.T) {
	f := newFakeAPI(t)
	f.answers(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, forbidden)
		return true
	})
	source := identify(t, f)
	st := awaitStatus(t, source, "the refusal", func(st certs.Status) bool { return st.LastError != "" })
	if want := "kubectl create role ambassador-secret-client --namespace=default --verb=get,list,watch --resource=secrets --resource-name=client && "; !strings.Contains(st.LastError, want) {
		t.Errorf("%s\ndoes not say: %s", st.LastError, want)
	}
	cert, key := pair(t, 1, time.Now().Add(time.Hour))
	f.set("default/secrets/client", secretOf("tls.crt", cert, "tls.key", key))
	f.answers(nil)
	awaitStatus(t, source, "the pair, once allowed", func(st certs.Status) bool { return st.Ready && st.LastError == "" })
}
