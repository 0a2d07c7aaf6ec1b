package page

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// sourceOf is a process with so many sessions of each kind.
func sourceOf(open, ended int) Source {
	session := func(i int, reason outcome.Reason) outcome.Record {
		return outcome.Record{ID: fmt.Sprintf("ABCD-%d", i), Start: time.Now(), Listener: "db", Client: fmt.Sprintf("127.0.0.1:%d", i), Upstream: "orders",
			Address: "10.0.0.7:5432", Stage: outcome.StageRelay, Reason: reason, BytesUp: int64(i), Cause: "seen <b>this</b>", Establish: outcome.Seconds(time.Millisecond)}
	}
	made := func(n, first int, reason outcome.Reason) (out []outcome.Record) {
		for i := range n {
			out = append(out, session(first+i, reason))
		}
		return out
	}
	opened, gone := made(open, 0, ""), made(ended, 10000, outcome.Refused)
	return Source{
		Status: func() api.Status {
			dead := upstream.AddressStatus{Address: "10.0.0.9:5432", Health: "unhealthy", Breaker: "open"}
			well := upstream.AddressStatus{Address: "10.0.0.7:5432", Health: "healthy", Breaker: "closed"}
			return api.Status{Upstreams: []upstream.Status{{Name: "orders", Endpoints: []upstream.EndpointStatus{{Endpoint: "db:5432", LastReason: outcome.OK, Addresses: []upstream.AddressStatus{dead, well}}}}, {Name: "net", Dynamic: true, Endpoints: []upstream.EndpointStatus{
				{Endpoint: "api.test:443", Addresses: []upstream.AddressStatus{{Address: "192.0.2.1:443", Health: "unknown", Breaker: "open"}}},
				{Endpoint: "recalled.test:443", Addresses: []upstream.AddressStatus{{Address: "recalled.test:443", Health: "unknown", Breaker: "open"}}}}}}, Version: "v1", Started: time.Now(), Readiness: l4.Readiness{Ready: true}, Listeners: []api.Listener{{ListenerStatus: l4.ListenerStatus{Bound: l4.Bound{Name: "db", Addr: "127.0.0.1:5432"}}}}}
		},
		Sessions: func(n int) []outcome.Record { return slices.Clone(opened[max(0, len(opened)-n):]) },
		Recent:   func(n int) []outcome.Record { return slices.Clone(gone[:min(n, len(gone))]) },
		Counts:   func() Counts { return Counts{} },
		Rules:    func() []Rule { return []Rule{{"proxy", "<script>", "would_deny", 3}} },
		Log:      func() []string { return []string{"<img src=x>"} },
		Failed:   func(r *outcome.Record) bool { return r.Reason == outcome.Refused },
	}
}

func document(t *testing.T, p *Page, target string, access Access) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := p.Document(w, httptest.NewRequest("GET", target, nil), access); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestDocumentEscapesAndFilters(t *testing.T) {
	p := New(sourceOf(200, 200))
	w := document(t, p, "/?q=127.0.0.1:10007", Read)
	body := w.Body.String()
	for _, want := range []string{"&lt;script&gt;", "&lt;img src=x&gt;", "seen &lt;b&gt;", "ABCD-10007", "1 of the last 4096 match", "3 sessions since the start", "Read-only"} {
		if !strings.Contains(body, want) {
			t.Errorf("the document does not contain %q", want)
		}
	}
	for _, bad := range []string{"ABCD-10008", "<button class=\"act", " style=", "onclick"} {
		if strings.Contains(body, bad) {
			t.Errorf("the document contains %q", bad)
		}
	}
	if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("Content-Security-Policy: %s", csp)
	}
}

func TestButtonsFollowAccess(t *testing.T) {
	p := New(sourceOf(1, 0))
	for access, want := range map[Access][2]bool{Open: {true, false}, Token: {true, true}, Read: {false, false}} {
		body := document(t, p, "/", access).Body.String()
		if got := [2]bool{strings.Contains(body, "/kill"), strings.Contains(body, `id="token"`)}; got != want {
			t.Errorf("access %s: buttons and field for the token = %v, want %v", access, got, want)
		}
		if got := strings.Contains(body, `data-path="v1/upstreams/orders/try?address=10.0.0.9%3A5432"`); got != want[0] || strings.Contains(body, "address=10.0.0.7") {
			t.Errorf("access %s: a button to try the dead address alone: %t, want %t", access, got, want[0])
		}
		if got := strings.Contains(body, `data-path="v1/upstreams/net/try?address=192.0.2.1%3A443"`); got != want[0] || strings.Contains(body, "address=recalled.test") {
			t.Errorf("access %s: a button to try the address of a dynamic destination alone: %t, want %t", access, got, want[0])
		}
	}
}

// TestLogRows asserts what of a line of the log is for people.
func TestLogRows(t *testing.T) {
	for line, want := range map[string]logRow{
		`{"time":"2026-11-29T06:45:21.4455+02:00","level":"WARN","msg":"breaker","upstream":"mail","to":"open","retry_in":4.383}`:                                 {State: "warn", Time: "06:45:21", Event: "breaker", Text: "upstream mail, to open, retry_in 4.383"},
		`{"time":"2026-11-29T06:45:21Z","level":"INFO","msg":"session","id":"A-4","client":"127.0.0.1:4","upstream":"mail","reason":"refused","cause":"dial: x"}`: {Time: "06:45:21", Event: "session", Text: "A-4 refused: 127.0.0.1:4 to mail: dial: x"},
		`{"time":"x","level":"ERROR","msg":"m","nested":{"a":[1]}}`:                                                                                               {State: "bad", Time: "x", Event: "m", Text: `nested {"a":[1]}`},
		`time=06:45:21 level=INFO msg=sandbox`: {Text: "time=06:45:21 level=INFO msg=sandbox"},
		`{"time":"cut`:                         {Text: `{"time":"cut`},
		`{"a":1`:                               {Text: `{"a":1`},
		``:                                     {},
	} {
		got := logRowOf(line)
		if (got.Raw != "") != (want.Event != "") || got.Raw != "" && got.Raw != line {
			t.Errorf("%s: the line is kept as %q", line, got.Raw)
		}
		got.Raw, got.Key = "", ""
		if got != want {
			t.Errorf("%s:\n%+v, want\n%+v", line, got, want)
		}
	}
}

// TestSize asserts that the page with full tables is small on the wire.
func TestSize(t *testing.T) {
	p := New(sourceOf(5000, 4096))
	total := 0
	for name := range p.assets {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/page/"+name, nil)
		r.Header.Set("Accept-Encoding", "gzip")
		if err := p.Asset(w, r, name); err != nil {
			t.Fatal(err)
		}
		if kind, want := w.Header().Get("Content-Type"), map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)]; kind != want {
			t.Errorf("%s has type %q, want %q", name, kind, want)
		}
		total += w.Body.Len()
		z, err := gzip.NewReader(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(z); err != nil || string(text) != string(p.assets[name].plain) {
			t.Errorf("%s: %v", name, err)
		}
	}
	total += len(pack(document(t, p, "/", Open).Body.Bytes()))
	t.Logf("%d bytes", total)
	if total > 60<<10 {
		t.Errorf("the page has %d bytes compressed, want at most 60 KiB", total)
	}
}

func TestViewersAreBounded(t *testing.T) {
	p := New(sourceOf(1, 1))
	for range maxViewers {
		p.viewers <- struct{}{}
	}
	err := p.Events(httptest.NewRecorder(), httptest.NewRequest("GET", "/page/events", nil), Read, atOnce)
	if e, ok := err.(*api.Error); !ok || e.Status != http.StatusServiceUnavailable {
		t.Errorf("one viewer more: %v, want status 503", err)
	}
}

// atOnce is a turn for everybody.
func atOnce(context.Context) (done func(), err error) { return func() {}, nil }

// Each event is made in its turn, and sent after it.
func TestEventsTakeTurns(t *testing.T) {
	p := New(sourceOf(1, 1))
	var busy, taken atomic.Int32
	turn := func(context.Context) (func(), error) {
		if taken.Add(1) == 1 {
			return nil, context.DeadlineExceeded // the first event has to wait for the next tick
		}
		busy.Add(1)
		return func() { busy.Add(-1) }, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &eventWriter{deadlines: deadlines{httptest.NewRecorder()}, written: func() {
		if busy.Load() != 0 {
			t.Error("an event is sent within its turn")
		}
		cancel()
	}}
	if err := p.Events(w, httptest.NewRequest("GET", "/page/events", nil).WithContext(ctx), Open, turn); err != nil || taken.Load() < 2 {
		t.Errorf("%v, %d turns", err, taken.Load())
	}
}

// eventWriter calls written before each write.
type eventWriter struct {
	deadlines
	written func()
}

func (w *eventWriter) Write(b []byte) (int, error) { w.written(); return w.deadlines.Write(b) }

func TestEvents(t *testing.T) {
	p := New(sourceOf(1, 1))
	p.sample(time.Now().Add(-historyStep))
	p.sample(time.Now())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.Events(w, r, Open, atOnce) }))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got strings.Builder
	for b := make([]byte, 4096); !strings.Contains(got.String(), "event: history\n"); {
		n, err := resp.Body.Read(b)
		got.Write(b[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
	}
	if !strings.Contains(got.String(), "event: parts\ndata: {") || !strings.Contains(got.String(), "ABCD-0") {
		t.Errorf("the first events are %q", got.String())
	}
}

func TestHistoryIsARing(t *testing.T) {
	var h history
	start := time.Unix(1e9, 0)
	for i := range 3 * historySize {
		h.add(start.Add(time.Duration(i)*historyStep), Counts{Up: int64(i) * 100, Ended: int64(i) * 2, Failed: int64(i)})
	}
	plot := plotOf(h.samples())
	if len(plot.Time) != historySize-1 || plot.Up[0] != 10 || plot.Ended[5] != 2 || plot.Failed[89] != 1 {
		t.Errorf("%d values; up %v, ended %v, failed %v", len(plot.Time), plot.Up, plot.Ended, plot.Failed)
	}
}

// TestCopiesAreBounded asserts that only a filter looks at every session.
func TestCopiesAreBounded(t *testing.T) {
	source := sourceOf(5000, 4096)
	most := 0
	for _, f := range []*func(int) []outcome.Record{&source.Sessions, &source.Recent} {
		copied := *f
		*f = func(n int) []outcome.Record {
			most = max(most, n)
			return copied(n)
		}
	}
	p := New(source)
	body := document(t, p, "/", Read).Body.String()
	if most > maxAsked {
		t.Errorf("without a filter the page asks for %d sessions, want at most %d", most, maxAsked)
	}
	if want := "ABCD-4999<"; !strings.Contains(body, want) {
		t.Errorf("the document does not contain the newest session, %q", want)
	}
	if body := document(t, p, "/?q=abcd-17", Read).Body.String(); !strings.Contains(body, "111 open that match") {
		t.Error("a filter does not look at every session")
	}
}

// BenchmarkStep is what one viewer costs in two seconds, with 5,000 open sessions.
func BenchmarkStep(b *testing.B) {
	p := New(sourceOf(5000, 4096))
	s := &stream{page: p, sent: map[string]string{}, access: Open}
	now := time.Now()
	w := httptest.NewRecorder()
	s.w, s.control = w, http.NewResponseController(deadlines{w})
	for b.Loop() {
		now = now.Add(refresh)
		events, err := s.step(now)
		if err == nil {
			err = s.send(events)
		}
		if err != nil {
			b.Fatal(err)
		}
		w.Body.Reset()
	}
}

// deadlines is a recorder that takes deadlines.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetWriteDeadline(time.Time) error { return nil }
