package page

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4/outcome"
)

//go:embed assets
var files embed.FS

// Source is what the page shows. Every function is set.
type Source struct {
	Status   func() api.Status
	Sessions func(n int) []outcome.Record // the n newest that are open, or all, the oldest first
	Recent   func(n int) []outcome.Record // the n newest that have ended, or all that are kept, the newest first
	Counts   func() Counts
	Rules    func() []Rule
	Log      func() []string // the last lines, the oldest first
	// Failed reports whether a session that ended like this one is a failure.
	Failed func(*outcome.Record) bool
}

// Counts are totals since the start. They never decrease.
type Counts struct {
	Up, Down      int64 // bytes
	Ended, Failed int64 // sessions
	// Upstreams are those that the sessions of each listener were connected to.
	Upstreams map[string][]string
}

// Rule is how often a rule of a listener has decided. Name is empty for the sessions
// that no rule matched.
type Rule struct {
	Listener, Name, Verdict string
	Hits                    int64
}

// Access is what the viewer of a page may do.
type Access string

const (
	Open  Access = "open"  // send changes
	Token Access = "token" // send changes with the token of admin.token_file
	Read  Access = "read"  // look
)

const (
	// maxViewers bounds the streams at a time.
	maxViewers = 8
	// streamTimeout bounds a stream. It is shorter than the bound on a request of the
	// admin API; the browser connects again.
	streamTimeout = 50 * time.Second
	// writeTimeout bounds the sending of one event.
	writeTimeout = 10 * time.Second
	// refresh is the time between two events of a stream.
	refresh = 2 * time.Second
	// freshFor is how long all viewers share a snapshot.
	freshFor = time.Second
)

// Page serves the page. Its methods may be called from many goroutines.
type Page struct {
	// Static after construction.
	source Source
	assets map[string]asset

	viewers chan struct{} // has room for maxViewers

	mu      sync.Mutex // held while a snapshot is made
	last    *snapshot  // guarded by mu
	history history    // guarded by mu
}

// asset is a file.
type asset struct {
	plain     []byte
	packed    func() []byte // compressed once, when it is first served
	kind, tag string
}

// New makes a page. Run records its history.
func New(s Source) *Page {
	p := &Page{source: s, viewers: make(chan struct{}, maxViewers), assets: map[string]asset{}}
	for name, kind := range map[string]string{"page.css": css, "page.js": script, "uplot.css": css, "uplot.js": script, "icon.svg": "image/svg+xml"} {
		p.assets[name] = readAsset(name, kind)
	}
	return p
}

// Package mime would read a file of the host for these, of some hundred kB, at each start.
const (
	css    = "text/css; charset=utf-8"
	script = "text/javascript; charset=utf-8"
)

func readAsset(name, kind string) asset {
	text, err := files.ReadFile("assets/" + name)
	if err != nil {
		panic("page: internal error: " + err.Error())
	}
	return asset{plain: text, packed: sync.OnceValue(func() []byte { return pack(text) }), kind: kind, tag: fmt.Sprintf(`"%x"`, sha256.Sum256(text))}
}

func pack(text []byte) []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is valid
	z.Write(text)
	z.Close()
	return b.Bytes()
}

// Run records the history until ctx ends.
func (p *Page) Run(ctx context.Context) {
	tick := time.NewTicker(historyStep)
	defer tick.Stop()
	p.sample(time.Now())
	for {
		select {
		case now := <-tick.C:
			p.sample(now)
		case <-ctx.Done():
			return
		}
	}
}

func (p *Page) sample(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.source.Counts()
	c.Upstreams = nil // the plots have the figures
	p.history.add(now, c)
	if p.last != nil && now.Sub(p.last.made) >= freshFor { // it may hold every session
		p.last = nil
	}
}

// Asset serves a file that the document names. It returns an error if there is none of
// that name.
func (p *Page) Asset(w http.ResponseWriter, r *http.Request, name string) error {
	a, ok := p.assets[name]
	if !ok {
		return &api.Error{Status: http.StatusNotFound, Text: r.URL.Path + ": no such file", Hint: "open " + api.PathPage}
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "no-cache") // asks each time, and is answered 304
	h.Set("ETag", a.tag)
	if r.Header.Get("If-None-Match") == a.tag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	send(w, r, a.plain, a.packed)
	return nil
}

// send writes the form that the client takes.
func send(w http.ResponseWriter, r *http.Request, plain []byte, packed func() []byte) {
	w.Header().Set("Vary", "Accept-Encoding")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		plain = packed()
	}
	w.Write(plain)
}

// Document serves the page as of now. The parameter q filters sessions.
func (p *Page) Document(w http.ResponseWriter, r *http.Request, access Access) error {
	v := p.view(time.Now(), r.URL.Query().Get("q"), access)
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, "page", v); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	send(w, r, b.Bytes(), func() []byte { return pack(b.Bytes()) })
	return nil
}

// Events serves the stream of one viewer: an event "parts" has the HTML of the parts
// that have changed by their ids, and an event "history" the plots. Turn waits until the
// events may be made, which done says they are; after an error of it they come later.
func (p *Page) Events(w http.ResponseWriter, r *http.Request, access Access, turn func(context.Context) (done func(), err error)) error {
	select {
	case p.viewers <- struct{}{}:
		defer func() { <-p.viewers }()
	default:
		return &api.Error{Status: http.StatusServiceUnavailable, Text: fmt.Sprintf("%d pages are open already", maxViewers), Hint: "close one, or load the page again to see it once"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamTimeout)
	defer cancel()
	w.Header().Set("Content-Type", "text/event-stream")
	s := &stream{page: p, w: w, control: http.NewResponseController(w), query: r.URL.Query().Get("q"), access: access, sent: map[string]string{}}
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		if done, err := turn(ctx); err == nil {
			events, err := s.step(time.Now())
			done()
			if err == nil {
				err = s.send(events)
			}
			if err != nil {
				return nil // the viewer has gone; the answer has begun
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// stream is the events of one viewer.
type stream struct {
	page    *Page
	w       http.ResponseWriter
	control *http.ResponseController
	query   string
	access  Access
	sent    map[string]string // the HTML of each part
	plotted time.Time         // the newest sample that was sent
}

// event is one of a stream, with its data as JSON.
type event struct {
	name string
	data []byte
}

// step makes the events of what has changed.
func (s *stream) step(now time.Time) ([]event, error) {
	v := s.page.view(now, s.query, s.access)
	shared, err := v.parts()
	if err != nil {
		return nil, err
	}
	own, err := v.render(ownParts)
	if err != nil {
		return nil, err
	}
	changed := map[string]string{}
	for _, parts := range []map[string]string{shared, own} {
		for name, html := range parts {
			if html != s.sent[name] {
				s.sent[name], changed[name] = html, html
			}
		}
	}
	text, err := json.Marshal(changed)
	if err != nil {
		return nil, err
	}
	events := []event{{"parts", text}}
	if v.Newest.After(s.plotted) {
		s.plotted = v.Newest
		if text, err = json.Marshal(v.Plot); err != nil {
			return nil, err
		}
		events = append(events, event{"history", text})
	}
	return events, nil
}

func (s *stream) send(events []event) error {
	for _, e := range events {
		if err := s.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", e.name, e.data); err != nil {
			return err
		}
		if err := s.control.Flush(); err != nil {
			return err
		}
	}
	return nil
}
