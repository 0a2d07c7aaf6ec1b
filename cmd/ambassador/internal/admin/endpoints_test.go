package admin

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A request that panics is closed and counted, and the next one is answered.
func TestPanicOfARequest(t *testing.T) {
	var panics []string
	e := &endpoint{pace: newTurns(requestGap), panics: func(part string, value any, stack []byte) {
		panics = append(panics, fmt.Sprint(part, ": ", value, "\n", string(stack)))
	}}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/bug":
			panicsInARequest()
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
	server.Close() // waits for the requests, which write panics
	if len(panics) != 1 || !strings.HasPrefix(panics[0], "admin: a bug\n") || !strings.Contains(panics[0], "panicsInARequest") {
		t.Errorf("%q; want one panic, and no abort", panics)
	}
}

func panicsInARequest() { panic("a bug") }
