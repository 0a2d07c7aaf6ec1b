package admin

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// The record of a killed session names the user of the unix socket, or the address.
func TestPeerOf(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		address := map[string]string{"unix": filepath.Join(t.TempDir(), "s"), "tcp": "127.0.0.1:0"}[network]
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		peer := make(chan string, 1)
		gate := &Gate{Max: 4, Log: slog.New(slog.DiscardHandler)}
		server := newHTTPServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { peer <- peerOf(r) }), gate, time.Minute, gate.Log)
		go server.Serve(gate.Listen(ln)) // ends with Close
		defer server.Close()
		conn, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		want := conn.LocalAddr().String()
		if network == "unix" {
			want = fmt.Sprintf("uid %d", os.Getuid())
		}
		if got := <-peer; got != want {
			t.Errorf("%s: %q, want %q", network, got, want)
		}
	}
}
