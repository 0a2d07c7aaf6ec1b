package kubernetes

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ambassador/policy"
)

// fakeAPI speaks as much of list and watch as a feed needs. What it answers was recorded
// from kube-apiserver 1.36.
type fakeAPI struct {
	t      *testing.T
	server *httptest.Server
	folder string // of token and ca.crt

	mu       sync.Mutex
	version  int
	oldest   int                                               // the position below which a watch is gone
	objects  map[string]map[string]any                         // by path and name
	history  []recorded                                        // of all changes
	more     chan struct{}                                     // closed at each change
	answer   func(w http.ResponseWriter, r *http.Request) bool // answers in place of the server, if it returns true
	requests []*http.Request
}

type recorded struct {
	version int
	path    string
	event   string
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	f := &fakeAPI{t: t, version: 100, objects: map[string]map[string]any{}, more: make(chan struct{}), folder: t.TempDir()}
	f.server = httptest.NewUnstartedServer(f)
	f.server.EnableHTTP2 = true
	f.server.StartTLS()
	t.Cleanup(f.server.Close)
	f.write("token", "first\n")
	f.write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})))
	return f
}

// write writes a file of the service account.
func (f *fakeAPI) write(name, text string) {
	if err := os.WriteFile(filepath.Join(f.folder, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// client makes a client of the server.
func (f *fakeAPI) client(env ...string) *Client {
	at, _ := url.Parse(f.server.URL)
	host, port, _ := net.SplitHostPort(at.Host)
	all := map[string]string{envHost: host, envPort: port, envCredentials: f.folder}
	for _, e := range env {
		key, value, _ := strings.Cut(e, "=")
		all[key] = value
	}
	c := New(func(name string) (string, bool) { v, ok := all[name]; return v, ok }, slog.New(slog.DiscardHandler), nil)
	c.backoff = policy.Backoff{Base: 20 * time.Millisecond, Max: 100 * time.Millisecond}
	return c
}

// set creates or replaces an object at a path like "default/services/db".
func (f *fakeAPI) set(at, text string) { f.change(at, "MODIFIED", text) }

// remove deletes an object.
func (f *fakeAPI) remove(at string) { f.change(at, "DELETED", `{}`) }

func (f *fakeAPI) change(at, event, text string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	i := strings.LastIndex(at, "/")
	path, name := at[:i], at[i+1:]
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		f.t.Fatal(err)
	}
	f.version++
	o["metadata"] = map[string]any{"name": name, "resourceVersion": strconv.Itoa(f.version)}
	if f.objects[path] == nil {
		f.objects[path] = map[string]any{}
	}
	if f.objects[path][name] = o; event == "DELETED" {
		delete(f.objects[path], name)
	}
	b, _ := json.Marshal(map[string]any{"type": event, "object": o})
	f.record(path, string(b))
}

// record adds to the history, with mu held.
func (f *fakeAPI) record(path, event string) {
	f.history = append(f.history, recorded{f.version, path, event})
	close(f.more)
	f.more = make(chan struct{})
}

// send sends a line to the watches of a path.
func (f *fakeAPI) send(path, line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.record(path, strings.ReplaceAll(line, "VERSION", strconv.Itoa(f.version)))
}

// answers replaces the server's answers; nil: no more.
func (f *fakeAPI) answers(answer func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

// forget makes the server forget all positions before now.
func (f *fakeAPI) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.oldest = f.version
}

// cut ends all connections.
func (f *fakeAPI) cut() { f.server.CloseClientConnections() }

// asked returns the requests so far.
func (f *fakeAPI) asked() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*http.Request(nil), f.requests...)
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	answer := f.answer
	f.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	parts := strings.SplitN(r.URL.Path, "/namespaces/", 2)
	if r.URL.Query().Get("watch") != "" {
		f.watch(w, r, parts[1])
		return
	}
	f.list(w, parts[1])
}

func (f *fakeAPI) list(w http.ResponseWriter, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	items := []any{}
	for _, o := range f.objects[path] {
		items = append(items, o)
	}
	json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)}, "items": items})
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, path string) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		f.mu.Lock()
		more, oldest := f.more, f.oldest
		var lines []string
		for _, e := range f.history {
			if e.version > from && e.path == path {
				lines, from = append(lines, e.event), e.version
			}
		}
		f.mu.Unlock()
		if from < oldest && lines == nil {
			fmt.Fprintf(w, `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: %d (%d)","reason":"Expired","code":410}}`, from, oldest)
			return
		}
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
		w.(http.Flusher).Flush()
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

const (
	theService = `{"spec":{"type":"ClusterIP","ipFamilies":["IPv4"],"ports":[{"name":"pg","protocol":"TCP","port":5432,"targetPort":"db"}]}}`
	forbidden  = `{"kind":"Status","status":"Failure","message":"services is forbidden: User \"system:serviceaccount:default:amb\" cannot list resource \"services\" in API group \"\" in the namespace \"default\"","reason":"Forbidden","code":403}`
)

// slice is an EndpointSlice of the addresses, which are ready.
func slice(addrs ...string) string {
	var all []string
	for _, a := range addrs {
		all = append(all, fmt.Sprintf(`{"addresses":[%q],"conditions":{"ready":true,"serving":true,"terminating":false}}`, a))
	}
	return `{"addressType":"IPv4","endpoints":[` + strings.Join(all, ",") + `],"ports":[{"name":"pg","protocol":"TCP","port":6432}]}`
}

// within bounds every wait of these tests.
const within = 20 * time.Second
