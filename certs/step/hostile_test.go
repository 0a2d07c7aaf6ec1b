package step

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/jose"

	"ambassador/certs"
	"ambassador/certs/embedded"
)

// hostileCA proves that it is the configured CA, and sends arbitrary answers.
func hostileCA(t *testing.T, routes map[string]http.HandlerFunc) Config {
	t.Helper()
	ca, err := embedded.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Close)
	cert, err := ca.Issue(t.Context(), []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/root/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"ca": %s}`, quotePEM(ca.RootPEM())) })
	for path, h := range routes {
		mux.HandleFunc(path, h)
	}
	server := httptest.NewUnstartedServer(mux)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	server.StartTLS()
	t.Cleanup(server.Close)
	pw := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(pw, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{URL: server.URL, Fingerprint: ca.Fingerprint(), Provisioner: "p", PasswordFile: pw, Names: []string{"me"}}
}

// A provisioner's key whose JWE has an empty encrypted key makes go-jose/v3 before
// 3.0.5 panic. That is an error of this identity: it is reported, attempts continue
// with the usual pauses, and the process lives.
func TestCAWithAnEmptyEncryptedKey(t *testing.T) {
	t.Parallel()
	public, secret, err := jose.GenerateDefaultKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := secret.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(text, ".")
	parts[1] = ""
	key, err := json.Marshal(public)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	c := hostileCA(t, map[string]http.HandlerFunc{"/provisioners": func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprintf(w, `{"provisioners": [{"type": "JWK", "name": "p", "key": %s, "encryptedKey": %q}]}`, key, strings.Join(parts, "."))
	}})
	s, log, _ := run(t, c)
	st := await(t, s, "told of twice", func(st certs.Status) bool { return st.Failures >= 2 })
	if n := asked.Load(); n < 2 || st.Ready {
		t.Errorf("after %d answers: %+v", n, st)
	}
	if !strings.Contains(st.LastError, "internal error: panic:") && !strings.Contains(st.LastError, "does not open the key of provisioner") {
		t.Errorf("told as %q", st.LastError)
	}
	if n := strings.Count(log.String(), `msg="identity not renewed"`); n != 1 {
		t.Errorf("%d lines in the log: %s", n, log)
	}
}
