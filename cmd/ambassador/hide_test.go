package main

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// secretive is a configuration with secrets, of which hunter2 is in all.
const secretive = `# what is beside a secret is printed as it was
listeners: {l: {listen: "127.0.0.1:0", upstream: u}}
upstreams:
  u:
    endpoints: ["127.0.0.1:1"] # nobody
    required: false
    health:
      interval: 1h
      send: |
        AUTH hunter2
        PING
      expect: "$${YES}"
      http: {port: 1, path: '/health?token=hunter2'}
  v: {endpoints: ["127.0.0.1:1"], required: false, health: {interval: 1h, send: "hunter2 $${YES}", http: {port: 1, path: /plain}}}
  w: {endpoints: ["127.0.0.1:1"], required: false, health: {interval: 1h, expect: &pw hunter2, send: *pw}}
`

func TestSecretsAreNotPrinted(t *testing.T) {
	s := serveFile(t, secretive)
	shown, status := s.admin("GET", "/v1/config")
	out, errs := newOutput(), newOutput()
	code := run(t.Context(), []string{"run", "--print-config", "-c", s.config}, strings.NewReader(""), out, errs)
	if status != 200 || code != 0 {
		t.Fatalf("status %d, exit code %d\n%s", status, code, errs)
	}
	for name, text := range map[string]string{"/v1/config": shown, "--print-config": out.String()} {
		for _, want := range []string{"# what is beside a secret", "# nobody", "send: '***'", `"$${YES}"`, "/health?***", "path: /plain", "&pw '***'", "send: *pw"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: it has no %s:\n%s", name, want, text)
			}
		}
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s shows a secret:\n%s", name, text)
		}
		if _, err := parse(text); err != nil {
			t.Errorf("%s: it does not load: %v", name, err)
		}
	}
	f, err := parse(secretive)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.Upstreams[0].Health.Send+f.Upstreams[1].Health.Send+f.Upstreams[2].Health.Send, "AUTH hunter2\nPING\n"+"hunter2 ${YES}"+"hunter2"; got != want {
		t.Errorf("hidden, it is %q, want %q", got, want)
	}
}

// What goes wrong with a question is told without its secret.
func TestQueryOfHealthIsNotTold(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	h := HTTPSection{Port: port, Path: "/health?token=hunter2", Status: 200}
	for _, want := range []string{"/health?*** answers 404", "/health?***\": dial"} {
		err := h.ask(t.Context(), netip.MustParseAddr("127.0.0.1"))
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		server.Close()
	}
}
