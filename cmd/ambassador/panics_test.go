package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func panicsHere() { panic("a bug") }

// A request that panics is closed and counted, and the next one is answered.
func TestPanicOfARequest(t *testing.T) {
	var log strings.Builder
	p := &process{log: &logging{Logger: slog.New(slog.NewTextHandler(&log, nil))}, metrics: newMetrics("v")}
	e := &endpoint{panics: p.panicked, pace: newTurns(requestGap)}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/bug":
			panicsHere()
		case "/abort":
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "ok")
	})
	e.handler.Store(&h)
	server := httptest.NewServer(e)
	defer server.Close()
	for path, ok := range map[string]bool{"/bug": false, "/abort": false, "/": true} {
		resp, err := http.Get(server.URL + path)
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
	if page := scrape(t, p.metrics); !strings.Contains(page, `ambassador_panics_total{part="admin"} 1`) {
		t.Error("the panic is not counted, or the abort is")
	}
	if text := log.String(); strings.Count(text, "msg=panic ") != 1 || !strings.Contains(text, "panicsHere") {
		t.Errorf("the log: %s", text)
	}
}

func TestPanicOfAReload(t *testing.T) {
	p := &process{log: &logging{Logger: slog.New(slog.DiscardHandler)}, metrics: newMetrics("v")}
	if err := p.survive(partReload, func() error { panicsHere(); return nil }); err == nil || !strings.Contains(err.Error(), "panic: a bug") {
		t.Errorf("the reload ended with %v", err)
	}
	if err := p.survive(partReload, func() error { return io.EOF }); err != io.EOF {
		t.Errorf("an error became %v", err)
	}
	if page := scrape(t, p.metrics); !strings.Contains(page, `ambassador_panics_total{part="reload"} 1`) {
		t.Error("the panic is not counted")
	}
}
