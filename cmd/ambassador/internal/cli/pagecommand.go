package cli

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
)

func (a *commands) pageCommand() *cobra.Command {
	listen, limit := "127.0.0.1:0", time.Hour
	cmd := a.clientCommand("page", "Serve the live page of a running ambassador to a browser on this host",
		"  ambassador page\n  ambassador page --for 8h --listen 127.0.0.1:9902", cobra.NoArgs,
		func(ctx context.Context, f *adminFlags, _ []string) error { return a.servePage(ctx, f, listen, limit) })
	cmd.Long = `Serve the live page of a running ambassador to a browser on this host.

It prints a URL that opens the page once: the browser that opens it gets a cookie,
without which the page cannot be read and no session be ended. The cookie is for a folder
with a random name, so that no other server at that loopback address gets it.
The page is served until --for has passed, or until Ctrl-C.`
	cmd.Flags().StringVar(&listen, "listen", listen, "loopback address to serve the page at; port 0: a free one")
	cmd.Flags().DurationVar(&limit, "for", limit, "how long to serve the page")
	return cmd
}

const (
	// pageConnections bounds the connections of browsers.
	pageConnections = 32
	// pageCookie is the cookie of the browser that opened the URL. A browser sends it to all
	// ports of an address, but for paths in its folder only.
	pageCookie = "ambassador-page"
)

func (a *commands) servePage(ctx context.Context, f *adminFlags, listen string, limit time.Duration) error {
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !at.Addr().IsLoopback() {
		return &program.ExitError{Code: 2, Err: fmt.Errorf("--listen %s: give a loopback address, like 127.0.0.1:0", listen)}
	}
	if limit <= 0 {
		return &program.ExitError{Code: 2, Err: fmt.Errorf("--for %v: give a duration above zero", limit)}
	}
	c, err := f.client(ctx, a)
	if err != nil {
		return err
	}
	if _, err := c.ask(ctx, http.MethodGet, api.PathPage, clientTimeout); err != nil {
		return err
	}
	var cfg net.ListenConfig
	cfg.SetMultipathTCP(false)
	ln, err := cfg.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("--listen: %w; choose another port, or 127.0.0.1:0", err)
	}
	defer ln.Close()
	p, err := newPageProxy(c, ln.Addr().String())
	if err != nil {
		return err
	}
	if err := p.announce(a.Stdout, f.json, limit); err != nil {
		return err
	}
	return servePageAt(ctx, ln, p, limit, slog.New(slog.NewTextHandler(a.Stderr, nil)))
}

// announce prints the URL, and until when it is good.
func (p *pageProxy) announce(w io.Writer, asJSON bool, limit time.Duration) error {
	at := "http://" + p.host + "/open/" + p.once
	if asJSON {
		return output.WriteJSON(w, map[string]any{"url": at, "until": time.Now().Add(limit).UTC().Truncate(time.Second)})
	}
	_, err := fmt.Fprintf(w, "%s\nThe URL opens the page once, in one browser. It is served for %v, or until Ctrl-C.\n", at, limit)
	return err
}

// servePageAt serves until the limit has passed, which is a success, or ctx ends.
func servePageAt(parent context.Context, ln net.Listener, h http.Handler, limit time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	gate := &admin.Gate{What: "page", Max: pageConnections, Log: log}
	server := &http.Server{Handler: http.MaxBytesHandler(h, 4<<10), ConnState: gate.State, ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(gate.Listen(ln)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	if parent.Err() != nil {
		return context.Cause(parent)
	}
	return nil
}

// pageProxy passes the requests of one browser to the admin API: those of the page and
// of its buttons, and no others.
type pageProxy struct {
	// Static after construction.
	host         string // as in the URL, with the port
	port         string
	folder       string // of the page: "/RANDOM/"
	once, cookie string // secrets
	handler      http.Handler

	opened atomic.Bool // the URL was used
}

func newPageProxy(c *adminClient, host string) (*pageProxy, error) {
	base, err := url.Parse(c.base)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		return nil, err
	}
	proxy := &httputil.ReverseProxy{Transport: c.http.Transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(base) // and the Host that the admin API knows
		for _, name := range []string{"Cookie", "Authorization", "Origin", "Referer", "Sec-Fetch-Site"} {
			r.Out.Header.Del(name)
		}
		if c.token != "" {
			r.Out.Header.Set("Authorization", "Bearer "+c.token)
		}
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, "the ambassador does not answer: "+err.Error(), http.StatusBadGateway)
	}}
	mux := http.NewServeMux()
	for _, pattern := range []string{"GET " + api.PathPage + "{$}", "GET " + api.PathPageEvents, "GET " + api.PathPageAsset,
		"POST " + api.PathReload, "POST " + api.PathDrain, "POST " + api.PathKill, "POST " + api.PathTry} {
		mux.Handle(pattern, proxy)
	}
	folder := "/" + rand.Text()
	return &pageProxy{host: host, port: port, folder: folder + "/", once: rand.Text(), cookie: rand.Text(), handler: http.StripPrefix(folder, mux)}, nil
}

// ServeHTTP checks the name that the browser uses for us (DNS rebinding), where the
// request comes from, and the cookie.
func (p *pageProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Host != p.host && r.Host != "localhost:"+p.port {
		http.Error(w, "use the URL that `ambassador page` printed", http.StatusForbidden)
		return
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if token, ok := strings.CutPrefix(r.URL.Path, "/open/"); ok {
		p.open(w, r, token)
		return
	}
	cookie, err := r.Cookie(pageCookie)
	if err != nil || !equal(cookie.Value, p.cookie) || !strings.HasPrefix(r.URL.Path, p.folder) {
		http.Error(w, "open the URL that `ambassador page` printed; it works once, in one browser", http.StatusUnauthorized)
		return
	}
	p.handler.ServeHTTP(w, r)
}

// open gives the cookie to the first browser that knows the token.
func (p *pageProxy) open(w http.ResponseWriter, r *http.Request, token string) {
	if r.Method != http.MethodGet || !equal(token, p.once) || !p.opened.CompareAndSwap(false, true) {
		http.Error(w, "this URL was used already, or is wrong; start `ambassador page` again", http.StatusForbidden)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: pageCookie, Value: p.cookie, Path: p.folder, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, p.folder, http.StatusSeeOther)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
