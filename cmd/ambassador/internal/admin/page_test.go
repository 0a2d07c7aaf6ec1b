package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/page"
	"ambassador/l4/outcome"
)

// TestPageIsGuarded asserts who sees the page, and who sees its buttons.
func TestPageIsGuarded(t *testing.T) {
	d := depsOf(cmdtest.NewFakeServer())
	d.Page = page.New(page.Source{Status: func() api.Status { return d.Status() }, Sessions: d.Sessions, Recent: d.Recent, Counts: func() (c page.Counts) { return c },
		Rules: func() []page.Rule { return nil }, Log: func() []string { return nil }, Failed: func(*outcome.Record) bool { return false }})
	for _, tt := range []struct {
		name        string
		guard       Guard
		host, token string
		status      int
		access      string
	}{
		{"a unix socket", Guard{}, "localhost", "", 200, "open"},
		{"TCP without a token file", Guard{TCP: true}, "127.0.0.1:9901", "", 200, "read"},
		{"TCP with a token file", Guard{TCP: true, Token: "s"}, "127.0.0.1:9901", "", 200, "token"},
		{"TCP with the token", Guard{TCP: true, Token: "s"}, "127.0.0.1:9901", "s", 200, "open"},
		{"TCP with a wrong token", Guard{TCP: true, Token: "s"}, "127.0.0.1:9901", "x", 200, "token"},
		{"DNS rebinding", Guard{TCP: true, Token: "s"}, "evil.test:9901", "s", 403, ""},
		{"token for all, without", Guard{TCP: true, Token: "s", TokenForAll: true}, "127.0.0.1:9901", "", 401, ""},
		{"token for all, with", Guard{TCP: true, Token: "s", TokenForAll: true}, "127.0.0.1:9901", "s", 200, "open"},
	} {
		h := NewHandler(d, tt.guard)
		for _, path := range []string{"/", "/page/page.js"} {
			r := httptest.NewRequest("GET", "http://"+tt.host+path, nil)
			if tt.token != "" {
				r.Header.Set("Authorization", "Bearer "+tt.token)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tt.status {
				t.Errorf("%s: GET %s: status %d, want %d", tt.name, path, w.Code, tt.status)
			}
			if want := `data-access="` + tt.access + `"`; path == "/" && w.Code == http.StatusOK && !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s: the page has not %s", tt.name, want)
			}
		}
	}
}
