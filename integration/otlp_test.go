package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRecordsReachACollector proves that a sandboxed process sends the record of a
// session to the collector, with the headers of OTEL_EXPORTER_OTLP_HEADERS, and the last
// record before it ends.
func TestRecordsReachACollector(t *testing.T) {
	got := make(chan string, 10)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- fmt.Sprintf("%s %s %s", r.URL.Path, r.Header.Get("X-Tenant"), body)
		io.WriteString(w, "{}")
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b")
	server := startServer(t, nil, echo)
	path := filepath.Join(t.TempDir(), "ambassador.yaml")
	config := fmt.Sprintf(`tracing: {otlp: "%s", logs: true}
upstreams: {echo: {endpoints: ["%s"]}}
listeners: {in: {listen: "127.0.0.1:0", upstream: echo}}
`, collector.URL, server.addr)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, "run", "-c", path)
	visitAndAwait := func(after func()) {
		t.Helper()
		if err := visit(a); err != nil {
			t.Fatal(err)
		}
		after()
		select {
		case text := <-got:
			if !strings.HasPrefix(text, "/v1/logs a b {") || !strings.Contains(text, `{"key":"ambassador.reason","value":{"stringValue":"closed"}}`) {
				t.Error(text)
			}
		case <-time.After(patience):
			t.Fatal("the collector got no record")
		}
	}
	visitAndAwait(func() {})
	visitAndAwait(func() { a.signal(syscall.SIGTERM) })
	a.ended(0)
}
