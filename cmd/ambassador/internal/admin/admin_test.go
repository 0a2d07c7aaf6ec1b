package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/cmd/ambassador/internal/metrics"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// depsOf is what the admin API of a test shows and does.
func depsOf(f *cmdtest.FakeServer) Deps {
	return Deps{
		Ready: func() l4.Readiness { return f.Readiness },
		Listeners: func() []l4.ListenerStatus {
			return []l4.ListenerStatus{
				{Bound: l4.Bound{Name: "postgres", Addr: "127.0.0.1:5432"}},
				{Bound: l4.Bound{Name: "inbound", Addr: "0.0.0.0:6432"}, StartTLS: "postgres",
					TLS: &l4.ListenerTLSStatus{Identities: []string{"orders"}, Client: "required", Principals: []string{"spiffe://corp/batch/*", "dns:*.svc"}}},
			}
		},
		Upstreams: func() []upstream.Status { return f.Upstreams },
		Traffic: func() []l4.Traffic {
			return []l4.Traffic{{Listener: "postgres", Upstream: "orders_db", Active: 1, Up: 1512, Down: 3<<20 + 1023}}
		},
		Sessions: func(int) []outcome.Record { return slices.Clone(f.Live) },
		Recent:   func(n int) []outcome.Record { return slices.Clone(f.Over[:min(n, len(f.Over))]) },
		Trials: func(_ context.Context, name string) ([]upstream.Trial, bool) {
			failed := upstream.Trial{Endpoint: "mail.internal:25", Err: &outcome.Error{Stage: outcome.StageDial, Upstream: "mail", Reason: outcome.DNS, Err: errors.New("no such host")}}
			return map[string][]upstream.Trial{"mail": {failed}, "net": nil}[name], name == "mail" || name == "net"
		},
		Kill:       func(id, by string) bool { f.Killed.Store(id + " " + by); return id == "K7QX-41" },
		Identities: func() []certs.Status { return f.Identities },
		Config:     func() ([]byte, error) { return []byte("listeners: {}\n"), nil },
		Reload:     func(context.Context) error { f.Reloads.Add(1); return f.ReloadErr },
		Drain:      func() { f.Drains.Add(1) },
		Quit:       func() { f.Quits.Add(1) },
		Metrics:    http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "metrics\n") }),
		Version:    "v0.1.0",
		Started:    cmdtest.Noon().Add(-3*time.Hour - 12*time.Minute),
	}
}

func TestAdminPaths(t *testing.T) {
	f := cmdtest.NewFakeServer()
	h := NewHandler(depsOf(f), Guard{})
	for _, tt := range []struct {
		method, target string
		status         int
		want           string // in the body
	}{
		{"GET", "/livez", 200, "ok\n"},
		{"HEAD", "/livez", 200, ""},
		{"GET", "/readyz", 200, "ready\n"},
		{"GET", "/readyz?verbose", 200, "ready\nupstream orders_db: ok; 10.0.0.2:5432: unhealthy, breaker open: dial orders_db 10.0.0.2:5432: connect: connection refused\nupstream mail: not reached yet\n"},
		{"GET", "/readyz?upstream=orders_db", 200, "ready\nupstream orders_db: ok"},
		{"GET", "/readyz?upstream=mail", 503, "upstream mail: not reached yet\n"},
		{"GET", "/readyz?upstream=none", 404, `"error": "upstream \"none\": there is none of that name"`},
		{"GET", "/readyz?upstrem=mail", 400, `"hint": "/readyz takes only upstream, verbose"`},
		{"GET", "/readyz?upstream=mail&upstream=orders_db", 400, "given 2 times"},
		{"GET", "/readyz?%zz", 400, "invalid URL escape"},
		{"GET", "/metrics", 200, "metrics\n"},
		{"GET", "/metrics?name[]=a&name[]=b", 200, "metrics\n"},
		{"GET", "/v1/status", 200, `"version": "v0.1.0"`},
		{"GET", "/v1/status?x=1", 400, `"/v1/status takes no parameter"`},
		{"GET", "/v1/sessions", 200, `"id": "K7QX-41"`},
		{"GET", "/v1/sessions?client=1", 200, `"sessions": []`},
		{"GET", "/v1/sessions/recent", 200, `"start": "2026-11-23T11:58:00Z"`},
		{"GET", "/v1/sessions/recent?client=127.0.0.1:39998", 200, `"reason": "upstream_tls_rejected"`},
		{"GET", "/v1/upstreams", 200, `"last_reason": "refused"`},
		{"GET", "/v1/identities", 200, `"not_after": "2026-12-01T04:00:00Z"`},
		{"GET", "/v1/config", 200, "listeners: {}\n"},
		{"POST", "/v1/reload", 200, `"reloaded": true`},
		{"POST", "/v1/drain", 202, `"sessions": 1`},
		{"POST", "/v1/quit", 202, `"quitting": true`},
		{"POST", "/v1/sessions/K7QX-41/kill", 200, `"killed": "K7QX-41"`},
		{"POST", "/v1/sessions/K7QX-9/kill", 404, "there is no live one of that id"},
		{"POST", "/v1/upstreams/mail/try", 200, `"error": "dial mail: no such host"`},
		{"POST", "/v1/upstreams/mail/try?address=10.0.0.7:25", 404, `has no address`},
		{"POST", "/v1/upstreams/none/try", 404, "there is none of that name"},
		{"POST", "/v1/upstreams/net/try", 409, "it is dynamic"},
		{"GET", "/", 404, `"GET /v1/sessions/recent"`},
		{"GET", "/v2/status", 404, `"error": "/v2/status: no such path"`},
		{"GET", "/debug/pprof/", 404, "no such path"},
		{"GET", "/v1/reload", 405, `"POST /v1/reload"`},
		{"POST", "/readyz", 405, "this path takes only GET"},
		{"DELETE", "/v1/sessions", 405, "this path takes only GET"},
	} {
		status, body := cmdtest.AskHandler(h, tt.method, tt.target)
		if status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s: %d, want %d with %q:\n%s", tt.method, tt.target, status, tt.status, tt.want, body)
		}
		if status >= 400 && status != 503 && !json.Valid([]byte(body)) {
			t.Errorf("%s %s: not JSON: %s", tt.method, tt.target, body)
		}
	}
	if f.Reloads.Load() != 1 || f.Drains.Load() != 1 || f.Quits.Load() != 1 {
		t.Errorf("%d reloads, %d drains, %d quits; want 1 each", f.Reloads.Load(), f.Drains.Load(), f.Quits.Load())
	}
}

func TestMethodNotAllowedNamesTheMethod(t *testing.T) {
	w := httptest.NewRecorder()
	NewHandler(depsOf(cmdtest.NewFakeServer()), Guard{}).ServeHTTP(w, httptest.NewRequest("GET", "/v1/drain", nil))
	if got := w.Header().Get("Allow"); got != "POST" {
		t.Errorf("Allow: %q", got)
	}
}

func TestNotReadyHasAReasonALine(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.Readiness = l4.Readiness{Waiting: []string{"upstream a: not reached yet; dial:\nrefused", "upstream b: no_identity: expired"}}
	status, body := cmdtest.AskHandler(NewHandler(depsOf(f), Guard{}), "GET", "/readyz")
	if want := "upstream a: not reached yet; dial:\\nrefused\nupstream b: no_identity: expired\n"; status != 503 || body != want {
		t.Errorf("%d %q, want 503 %q", status, body, want)
	}
}

func TestUpstreamIsReadyByItsLastOutcome(t *testing.T) {
	ok, bad := upstream.EndpointStatus{Endpoint: "a:1", LastReason: outcome.OK}, upstream.EndpointStatus{Endpoint: "b:1", LastReason: outcome.Timeout, LastError: "dial"}
	for _, tt := range []struct {
		what string
		u    upstream.Status
		ok   bool
		line string
	}{
		{"one works", upstream.Status{Reached: true, Endpoints: []upstream.EndpointStatus{bad, ok}}, true, "upstream : ok; b:1: dial (timeout)"},
		{"none works any more", upstream.Status{Reached: true, Endpoints: []upstream.EndpointStatus{bad}}, false, "upstream : the last attempts failed; b:1: dial (timeout)"},
		{"never reached", upstream.Status{Endpoints: []upstream.EndpointStatus{bad}}, false, "upstream : not reached yet; b:1: dial (timeout)"},
		{"not reached, whatever an endpoint says", upstream.Status{Endpoints: []upstream.EndpointStatus{ok}}, false, "upstream : not reached yet"},
		{"one address of two", upstream.Status{Reached: true, Endpoints: []upstream.EndpointStatus{{Endpoint: "c:1", LastReason: outcome.Refused, LastError: "dial", Addresses: []upstream.AddressStatus{
			{Address: "[::1]:1", Health: "unhealthy", Breaker: "closed", LastError: "refused"}, {Address: "127.0.0.1:1", Health: "healthy", Breaker: "closed"}}}}}, true, "upstream : ok; [::1]:1: unhealthy, breaker closed: refused"},
		{"health off, last attempt well", upstream.Status{Reached: true, Endpoints: []upstream.EndpointStatus{{Endpoint: "c:1", LastReason: outcome.OK, Addresses: []upstream.AddressStatus{{Address: "127.0.0.1:1", Health: "unknown", Breaker: "closed"}}}}}, true, "upstream : ok"},
		{"breaker open", upstream.Status{Reached: true, Endpoints: []upstream.EndpointStatus{{Endpoint: "c:1", LastReason: outcome.OK, Addresses: []upstream.AddressStatus{{Address: "127.0.0.1:1", Health: "healthy", Breaker: "open", LastError: "reset"}}}}}, false, "upstream : the last attempts failed; 127.0.0.1:1: healthy, breaker open: reset"},
		{"its name is gone", upstream.Status{Reached: true, Endpoints: []upstream.EndpointStatus{{Endpoint: "c:1", LastReason: outcome.OK, LookupError: "no such host", GoneSince: &time.Time{}}}}, false, "upstream : the last attempts failed; c:1: no such host (dns)"},
		{"dynamic", upstream.Status{Dynamic: true, Endpoints: []upstream.EndpointStatus{bad}}, true, "upstream : ok; it goes where clients ask"},
		{"dynamic without our identity", upstream.Status{Dynamic: true, IdentityError: "expired"}, false, "upstream : no_identity: expired"},
		{"identity lost", upstream.Status{Reached: true, IdentityError: "expired", Endpoints: []upstream.EndpointStatus{ok}}, false, "upstream : no_identity: expired"},
	} {
		if ok, line := liveState(tt.u); ok != tt.ok || line != tt.line {
			t.Errorf("%s: %v %q, want %v %q", tt.what, ok, line, tt.ok, tt.line)
		}
	}
}

func TestFailedReloadSaysSo(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.ReloadErr = errors.New("ambassador.yaml:1:1: listener: unknown key")
	status, body := cmdtest.AskHandler(NewHandler(depsOf(f), Guard{}), "POST", "/v1/reload")
	if status != 422 || !strings.Contains(body, "unknown key") || !strings.Contains(body, "the old configuration is still in use") {
		t.Errorf("%d %s", status, body)
	}
	d := depsOf(f)
	d.Reload = nil
	if status, body := cmdtest.AskHandler(NewHandler(d, Guard{}), "POST", "/v1/reload"); status != 409 {
		t.Errorf("without a file: %d %s", status, body)
	}
}

func TestQuitIsAnsweredBeforeItHappens(t *testing.T) {
	d := depsOf(cmdtest.NewFakeServer())
	w := httptest.NewRecorder()
	d.Quit = func() {
		if !w.Flushed || !strings.Contains(w.Body.String(), "quitting") {
			t.Errorf("nothing answered yet: %q", w.Body)
		}
	}
	NewHandler(d, Guard{}).ServeHTTP(w, httptest.NewRequest("POST", "/v1/quit", nil))
}

// The answer is whole even where quitting closes every connection at once.
func TestQuitIsAnsweredInWhole(t *testing.T) {
	d := depsOf(cmdtest.NewFakeServer())
	var server *httptest.Server
	d.Quit = func() { server.Config.Close() }
	server = httptest.NewServer(NewHandler(d, Guard{}))
	defer server.Close()
	resp, err := http.Post(server.URL+"/v1/quit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "quitting") {
		t.Errorf("the answer is %q, %v", body, err)
	}
}

func TestTCPGuardHost(t *testing.T) {
	h := NewHandler(depsOf(cmdtest.NewFakeServer()), Guard{TCP: true, Hosts: []string{"Admin.corp"}})
	for host, want := range map[string]int{
		"127.0.0.1": 200, "127.0.0.1:9901": 200, "[::1]:9901": 200, "[::1]": 200, "10.1.2.3:1": 200, "localhost": 200, "LOCALHOST:9901": 200, "localhost.": 200,
		"admin.corp:9901": 200, "ADMIN.corp": 200,
		"evil.example": 403, "evil.example:9901": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "admin.corp.evil": 403, "": 403, "x:y:z": 403,
	} {
		status, body := cmdtest.AskHandler(h, "GET", "/livez", func(r *http.Request) { r.Host = host })
		if status != want || want == 403 && !strings.Contains(body, "admin.hosts") {
			t.Errorf("Host %q: %d, want %d: %s", host, status, want, body)
		}
	}
	if status, _ := cmdtest.AskHandler(h, "GET", "/no/such", func(r *http.Request) { r.Host = "evil.example" }); status != 403 {
		t.Errorf("the guard lets an unknown path through: %d", status)
	}
}

func TestTCPGuardToken(t *testing.T) {
	for _, tt := range []struct {
		token, header string
		want          int
	}{
		{"", "", 403}, {"", "Bearer ", 403}, {"", "Bearer x", 403},
		{"secret", "", 401}, {"secret", "Bearer", 401}, {"secret", "Bearer wrong", 401}, {"secret", "Basic secret", 401}, {"secret", "secret", 401},
		{"secret", "Bearer secret", 202}, {"secret", "bearer secret", 202}, {"secret", "Bearer secrets", 401},
	} {
		f := cmdtest.NewFakeServer()
		h := NewHandler(depsOf(f), Guard{TCP: true, Token: tt.token})
		status, body := cmdtest.AskHandler(h, "POST", "http://127.0.0.1/v1/drain", func(r *http.Request) { r.Header.Set("Authorization", tt.header) })
		if status != tt.want || status != 202 && !strings.Contains(body, "admin.token_file") {
			t.Errorf("token %q, Authorization %q: %d, want %d: %s", tt.token, tt.header, status, tt.want, body)
		}
		if done := f.Drains.Load() == 1; done != (tt.want == 202) {
			t.Errorf("token %q, Authorization %q: drained: %v", tt.token, tt.header, done)
		}
		if status, _ := cmdtest.AskHandler(h, "GET", "http://127.0.0.1/v1/status"); status != 200 {
			t.Errorf("reading needs no token: %d", status)
		}
	}
}

// With token_for: all only probes need no token.
func TestTCPGuardTokenForAll(t *testing.T) {
	h := NewHandler(depsOf(cmdtest.NewFakeServer()), Guard{TCP: true, Token: "secret", TokenForAll: true})
	for target, open := range map[string]bool{
		"/livez": true, "/readyz": true, "/readyz?verbose": false, "/readyz?upstream=mail": false, "/metrics": false, "/v1/status": false,
		"/v1/sessions": false, "/v1/sessions/recent": false, "/v1/upstreams": false, "/v1/identities": false, "/v1/config": false, "/": false, "/none": false,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			status, _ := cmdtest.AskHandler(h, method, "http://127.0.0.1"+target)
			if (status != 401) != open {
				t.Errorf("%s %s without a token: %d", method, target, status)
			}
			status, _ = cmdtest.AskHandler(h, method, "http://127.0.0.1"+target, func(r *http.Request) { r.Header.Set("Authorization", "Bearer secret") })
			if status == 401 || status == 403 {
				t.Errorf("%s %s with the token: %d", method, target, status)
			}
		}
	}
	if status, _ := cmdtest.AskHandler(NewHandler(depsOf(cmdtest.NewFakeServer()), Guard{TokenForAll: true}), "GET", "/v1/status"); status != 200 {
		t.Errorf("on a unix socket: %d", status)
	}
}

func TestTCPGuardAgainstOtherOrigins(t *testing.T) {
	h := NewHandler(depsOf(cmdtest.NewFakeServer()), Guard{TCP: true, Token: "secret"})
	for _, tt := range []struct {
		key, value string
		want       int
	}{
		{"Sec-Fetch-Site", "cross-site", 403}, {"Sec-Fetch-Site", "same-site", 403}, {"Origin", "https://evil.example", 403}, {"Origin", "null", 403},
		{"Sec-Fetch-Site", "same-origin", 202}, {"Sec-Fetch-Site", "none", 202}, {"Origin", "http://127.0.0.1", 202},
	} {
		status, body := cmdtest.AskHandler(h, "POST", "http://127.0.0.1/v1/drain", func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer secret")
			r.Header.Set(tt.key, tt.value)
		})
		if status != tt.want {
			t.Errorf("%s: %s: %d, want %d: %s", tt.key, tt.value, status, tt.want, body)
		}
	}
}

func TestUnixNeedsNoGuard(t *testing.T) {
	status, body := cmdtest.AskHandler(NewHandler(depsOf(cmdtest.NewFakeServer()), Guard{}), "POST", "/v1/drain", func(r *http.Request) { r.Host = "anything" })
	if status != 202 {
		t.Errorf("%d %s", status, body)
	}
}

func TestMetricsOnly(t *testing.T) {
	h := newProbeHandler(depsOf(cmdtest.NewFakeServer()))
	for target, want := range map[string]int{"/livez": 200, "/readyz": 200, "/metrics": 200, "/v1/status": 404, "/v1/config": 404, "/": 404} {
		status, body := cmdtest.AskHandler(h, "GET", "http://any.name"+target)
		if status != want || want == 404 && strings.Contains(body, "POST") {
			t.Errorf("%s: %d, want %d: %s", target, status, want, body)
		}
	}
	if status, _ := cmdtest.AskHandler(h, "POST", "/v1/quit"); status != 404 {
		t.Errorf("POST /v1/quit: %d", status)
	}
}

func TestSessionMatcher(t *testing.T) {
	for _, tt := range []struct {
		client string
		want   string
		ok     bool
	}{
		{"127.0.0.1:40000", "", true}, {"127.0.0.1:40000", "127.0.0.1:40000", true}, {"127.0.0.1:40000", "127.0.0.1", true},
		{"127.0.0.1:40000", "40000", true}, {"127.0.0.1:40000", ":40000", true}, {"127.0.0.1:40000", "localhost:40000", true},
		{"127.0.0.1:40000", "X-1", true}, {"127.0.0.1:40000", "[::ffff:127.0.0.1]:40000", true},
		{"127.0.0.1:40000", "40001", false}, {"127.0.0.1:40000", "127.0.0.1:40001", false}, {"127.0.0.1:40000", "127.0.0.2", false},
		{"127.0.0.1:40000", "4000", false}, {"127.0.0.1:40000", "X-10", false}, {"127.0.0.1:40000", "65536", false}, {"127.0.0.1:40000", "-1", false},
		{"127.0.0.1:40000", "evil.example:40000", false}, {"127.0.0.1:40000", "::1", false}, {"127.0.0.1:40000", "nonsense", false}, {"127.0.0.1:40000", ":", false},
		{"10.0.0.1:40000", "localhost:40000", false}, {"10.0.0.1:40000", "40000", true},
		{"[::1]:40000", "[::1]:40000", true}, {"[::1]:40000", "::1", true}, {"[::1]:40000", "[::1]", true}, {"[::1]:40000", "localhost:40000", true},
		{"unix:/run/a.sock", "unix:/run/a.sock", true}, {"unix:/run/a.sock", "/run/a.sock", false}, {"unix:/run/a.sock", "40000", false},
	} {
		if got := sessionMatcher(tt.want)(&outcome.Record{ID: "X-1", Client: tt.client}); got != tt.ok {
			t.Errorf("%q matches client %s: %v, want %v", tt.want, tt.client, got, tt.ok)
		}
	}
}

func FuzzSessionMatcher(f *testing.F) {
	for _, s := range []string{"", "40000", ":40000", "127.0.0.1:40000", "[::1%eth0]:1", "unix:/x", "K7QX-41", "localhost:1", "[", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, want string) {
		match := sessionMatcher(want)
		match(&outcome.Record{Client: "unix:/x"})
		if ap, err := netip.ParseAddrPort(want); err == nil && !match(&outcome.Record{Client: ap.String()}) {
			t.Errorf("%q does not match itself", want)
		}
	})
}

// A real server on a real socket, with the server's bounds.
func TestAdminOverItsSockets(t *testing.T) {
	for _, at := range []adminsocket.Address{{At: "unix:" + cmdtest.ShortDir(t) + "/a.sock"}, {At: "127.0.0.1:0"}} {
		addr := serveAdmin(t, cmdtest.NewFakeServer(), at, Guard{TCP: !strings.HasPrefix(at.At, "unix:")})
		body, status, err := cmdtest.AskPrinted(addr, "GET", "/v1/status")
		if err != nil || status != http.StatusOK {
			t.Fatal(status, err)
		}
		var s api.Status
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		if s.Version != "v0.1.0" || !s.Readiness.Ready || s.Sessions != 1 || len(s.Upstreams) != 2 || s.Identities[0].LastError == "" {
			t.Errorf("%s: status %+v", addr, s)
		}
	}
}

// serveAdmin serves the admin API of f until the test ends.
func serveAdmin(t *testing.T, f *cmdtest.FakeServer, at adminsocket.Address, o Guard) (addr string) {
	t.Helper()
	ln, addr, err := adminsocket.Listen(t.Context(), cmdtest.EnvOf(), at)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, addr, NewHandler(depsOf(f), o))
}

// The whole of it over a real server: a connection that is refused is in
// /metrics, among the recent sessions and in `why`, by its client's own port.
func TestAdminOfARealServer(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	defer cancel()
	m := metrics.New("test")
	o := m.Observer()
	count, ended := o.Ended, make(chan *outcome.Record, 1)
	o.Ended = func(r *outcome.Record) { count(r); ended <- r }
	server := l4.New(ctx, l4.Options{Observer: o})
	defer server.Shutdown(ctx, l4.Drain{})
	cfg := l4.Config{
		Listeners: []l4.ListenerConfig{{Name: "in", Addresses: []string{"127.0.0.1:0"}, Upstream: "up"}},
		Upstreams: []upstream.Config{{Name: "up", Endpoints: []upstream.EndpointConfig{{Address: nobody.Addr().String()}}, Connect: upstream.ConnectConfig{Attempts: 1}}},
	}
	if err := server.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	m.Attach(server, nil)
	m.Applied(cfg, nil)
	d := DepsFor(server)
	d.Metrics = m.Handler()

	if c, err := net.Dial("tcp", server.Listening()[0].Addr); err == nil { // else the reset came before Dial had looked
		defer c.Close()
	}
	var client string
	select {
	case r := <-ended:
		client = r.Client
	case <-time.After(10 * time.Second):
		t.Fatal("the session does not end")
	}
	h := NewHandler(d, Guard{})
	_, port, _ := net.SplitHostPort(client)
	for target, want := range map[string]string{
		"/metrics":                               `ambassador_sessions_total{listener="in",reason="refused",stage="dial",upstream="up"} 1`,
		"/v1/sessions/recent?client=" + client:   `"reason": "refused"`,
		"/v1/sessions/recent?client=" + port:     `"reason": "refused"`,
		"/v1/sessions":                           `"sessions": []`,
		"/v1/status":                             `"identities": []`,
		"/readyz?upstream=up":                    "upstream up: not reached yet; ",
		"/readyz":                                "ready",
		"/metrics?name[]=ambassador_bytes_total": `ambassador_bytes_total{direction="up",listener="in",upstream="up"} 0`,
	} {
		if _, body := cmdtest.AskHandler(h, "GET", target); !strings.Contains(body, want) {
			t.Errorf("%s: want %s in\n%s", target, want, body)
		}
	}
	if status, _ := cmdtest.AskHandler(h, "POST", "/v1/sessions/none/kill"); status != 404 {
		t.Errorf("kill of nothing: %d", status)
	}
}

func TestHTTPServerBoundsEveryWait(t *testing.T) {
	s := newHTTPServer(http.NotFoundHandler(), &Gate{}, requestTimeout, slog.New(slog.DiscardHandler))
	for name, d := range map[string]time.Duration{"ReadHeaderTimeout": s.ReadHeaderTimeout, "ReadTimeout": s.ReadTimeout, "WriteTimeout": s.WriteTimeout, "IdleTimeout": s.IdleTimeout} {
		if d <= 0 || d > 5*time.Minute {
			t.Errorf("%s is %v", name, d)
		}
	}
	if s.MaxHeaderBytes <= 0 || s.Handler == nil {
		t.Errorf("server: %+v", s)
	}
	if min(s.ReadTimeout, s.WriteTimeout) <= api.ReloadTimeout {
		t.Error("a reload may take longer than its request")
	}
}

// What the admin API answers.
func TestAnswersCanBeSeen(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.Readiness = l4.Readiness{Waiting: []string{cmdtest.Evil}}
	f.Over[0].User, f.Over[0].Tag = cmdtest.Evil, cmdtest.Evil
	h := NewHandler(depsOf(f), Guard{})
	for _, path := range []string{"/readyz", "/v1/status", "/v1/sessions/recent", "/v1/%1b%c2%9b%e2%80%ae"} {
		_, body := cmdtest.AskHandler(h, "GET", path)
		cmdtest.MustBeVisible(t, path, body)
	}
}
