package process

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/config"
)

func TestHealthOverHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/primary":
			io.WriteString(w, "yes")
		case "/moved":
			http.Redirect(w, r, "/primary", http.StatusFound)
		default:
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	addr := netip.MustParseAddrPort(s.Listener.Addr().String())
	for _, tt := range []struct {
		section config.HTTPSection
		want    string // empty: success
	}{
		{config.HTTPSection{Path: "/primary", Status: 200}, ""},
		{config.HTTPSection{Path: "/standby", Status: 503}, ""},
		{config.HTTPSection{Path: "/standby", Status: 200}, "/standby answers 503 Service Unavailable, and 200 is wanted"},
		{config.HTTPSection{Path: "/moved", Status: 200}, "answers 302"},
		{config.HTTPSection{Path: "/primary", Status: 200, Port: 1}, "refused"},
	} {
		if tt.section.Port == 0 {
			tt.section.Port = int(addr.Port())
		}
		err := AskHTTP(t.Context(), tt.section, addr.Addr())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.section, err, tt.want)
		}
	}
}

// The error of a failed request does not contain the request's secret.
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
	h := config.HTTPSection{Port: port, Path: "/health?token=hunter2", Status: 200}
	for _, want := range []string{"/health?*** answers 404", "/health?***\": dial"} {
		err := AskHTTP(t.Context(), h, netip.MustParseAddr("127.0.0.1"))
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		server.Close()
	}
}
