package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestPageProxyGuards asserts which requests reach the admin API.
func TestPageProxyGuards(t *testing.T) {
	var reached []string
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached = append(reached, r.Method+" "+r.URL.Path)
		if r.Header.Get("Cookie") != "" || r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s %s arrives with Cookie %q, Authorization %q", r.Method, r.URL, r.Header.Get("Cookie"), r.Header.Get("Authorization"))
		}
	}))
	defer api.Close()
	c := &adminClient{base: api.URL, token: "secret"}
	c.http.Transport = http.DefaultTransport
	const host = "127.0.0.1:4000"
	p, err := newPageProxy(c, host)
	if err != nil {
		t.Fatal(err)
	}
	cookie := pageCookie + "=" + p.cookie
	for _, tt := range []struct {
		name, method, host, path, cookie, site string
		want                                   int
	}{
		{"without the cookie", "GET", host, p.folder, "", "", 401},
		{"a wrong cookie", "GET", host, p.folder, pageCookie + "=x", "", 401},
		{"another name", "GET", "evil.test:4000", "/", cookie, "", 403},
		{"another port", "GET", "127.0.0.1:80", "/", cookie, "", 403},
		{"a wrong token", "GET", host, "/open/x", "", "", 403},
		{"the token by POST", "POST", host, "/open/" + p.once, "", "", 403},
		{"the token", "GET", host, "/open/" + p.once, "", "", 303},
		{"the token again", "GET", host, "/open/" + p.once, "", "", 403},
		{"the page", "GET", host, p.folder, cookie, "", 200},
		{"by the name localhost", "GET", "localhost:4000", p.folder + "page/events", cookie, "", 200},
		{"a change", "POST", host, p.folder + "v1/sessions/A-1/kill", cookie, "same-origin", 200},
		{"a change from another site", "POST", host, p.folder + "v1/sessions/A-1/kill", cookie, "cross-site", 403},
		{"a change from another port", "POST", host, p.folder + "v1/drain", cookie, "same-site", 403},
		{"what no button does", "POST", host, p.folder + "v1/quit", cookie, "same-origin", 404},
		{"what the page does not show", "GET", host, p.folder + "v1/config", cookie, "", 404},
		{"a trial", "POST", host, p.folder + "v1/upstreams/mail/try?address=127.0.0.1:25", cookie, "same-origin", 200},
		{"outside the folder", "GET", host, "/", cookie, "", 401},
		{"another folder", "GET", host, "/x/", cookie, "", 401},
		{"a change by GET", "GET", host, p.folder + "v1/drain", cookie, "", 405},
	} {
		r := httptest.NewRequest(tt.method, "http://"+tt.host+tt.path, nil)
		if tt.cookie != "" {
			r.Header.Set("Cookie", tt.cookie)
		}
		if tt.site != "" {
			r.Header.Set("Sec-Fetch-Site", tt.site)
		}
		w := httptest.NewRecorder()
		before := len(reached)
		p.ServeHTTP(w, r)
		if w.Code != tt.want || (len(reached) > before) != (tt.want == 200) {
			t.Errorf("%s: status %d, want %d; the admin API was asked: %t", tt.name, w.Code, tt.want, len(reached) > before)
		}
	}
}

func TestPageAsJSON(t *testing.T) {
	p := &pageProxy{host: "127.0.0.1:4000", once: "token"}
	var out strings.Builder
	if err := p.announce(&out, true, time.Hour); err != nil {
		t.Fatal(err)
	}
	var got struct {
		URL   string
		Until time.Time
	}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil || got.URL != "http://127.0.0.1:4000/open/token" || time.Until(got.Until) < 59*time.Minute {
		t.Errorf("%v: %s", err, out.String())
	}
}
