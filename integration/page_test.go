package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// browser is a headless Chromium, and what it has complained about.
type browser struct {
	t   testing.TB
	ctx context.Context

	mu         sync.Mutex
	complaints []string // guarded by mu; exceptions and lines of the console
}

// newBrowser starts a browser that ends with the test. The test is skipped without
// Chromium.
func newBrowser(t testing.TB) *browser {
	t.Helper()
	need(t, "chromium")
	dir := shortDir(t)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.UserDataDir(dir))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	t.Cleanup(cancel)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancelAllocator)
	ctx, cancelTab := chromedp.NewContext(ctx)
	t.Cleanup(cancelTab)
	b := &browser{t: t, ctx: ctx}
	chromedp.Listen(ctx, b.note)
	return b
}

// note keeps what the browser complains about.
func (b *browser) note(event any) {
	var text string
	switch e := event.(type) {
	case *cdpruntime.EventExceptionThrown:
		text = e.ExceptionDetails.Text
	case *cdplog.EventEntryAdded:
		text = e.Entry.Text + " " + e.Entry.URL
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complaints = append(b.complaints, text)
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatalf("browser: %v; it complained: %q", err, b.complaints)
	}
}

// text is what a reader sees of an element.
func (b *browser) text(selector string) string {
	b.t.Helper()
	text, err := chromedp.Run(b.ctx, chromedp.Text(selector))
	if err != nil {
		b.t.Fatalf("browser: text of %s: %v", selector, err)
	}
	return text
}

// shows waits until an element has a text.
func (b *browser) shows(selector, want string) {
	b.t.Helper()
	err := eventually(patience, func() error {
		if got := b.text(selector); !strings.Contains(got, want) {
			return fmt.Errorf("%s shows %q, want %q in it", selector, got, want)
		}
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
}

// shoot keeps a picture of the whole page as an artefact.
func (b *browser) shoot(name string) {
	b.t.Helper()
	js[bool](b, "scrollTo(0, 0), true") // else the sticky line of links is in the middle
	picture, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatal(err)
	}
	dir := os.Getenv("AMBASSADOR_TEST_ARTIFACTS")
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name), picture, 0o644); err != nil {
		b.t.Error(err)
	}
}

// look is the size of the window, and light or dark. Nothing moves smoothly: a click goes
// to where an element was.
func (b *browser) look(width int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, 900))
	features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
		b.t.Fatal(err)
	}
}

// agree answers every question of the page with yes.
func (b *browser) agree() {
	b.t.Helper()
	if _, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("window.confirm = () => true, true")); err != nil {
		b.t.Fatal(err)
	}
}

// quiet asserts that the browser has complained about nothing.
func (b *browser) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.complaints {
		b.t.Errorf("the console of the browser says %q", text)
	}
	b.complaints = nil
}

// click clicks on an element. What the page shows anew may move it between the search and
// the press: the press then meets another element, and is repeated.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.meet(selector, func() error { return chromedp.Do(b.ctx, chromedp.Click(selector)) })
}

// meet presses until the press has met the element.
func (b *browser) meet(selector string, press func() error) {
	b.t.Helper()
	err := eventually(patience, func() error {
		js[bool](b, fmt.Sprintf("window.met = false; addEventListener('pointerdown', (e) => { met = e.target.closest(%q) !== null }, {capture: true, once: true}); true", selector))
		if err := press(); err != nil {
			return err
		}
		if !js[bool](b, "met") {
			return errors.New("the press has met another element")
		}
		return nil
	})
	if err != nil {
		b.t.Fatalf("browser: press on %s: %v", selector, err)
	}
}

// hold presses the left button of the mouse over an element, and returns what releases it.
func (b *browser) hold(selector string) (release func()) {
	b.t.Helper()
	var at [2]float64
	pressed := false
	mouse := func(event input.DispatchMouseEventType) error {
		_, err := chromedp.Call(b.ctx, input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: event, X: at[0], Y: at[1], Button: input.MouseButtonLeft, ClickCount: 1})
		return err
	}
	b.meet(selector, func() error {
		if pressed { // another element
			if err := mouse(input.DispatchMouseEventTypeMouseReleased); err != nil {
				return err
			}
		}
		pressed = true
		at = js[[2]float64](b, fmt.Sprintf("(() => { const e = document.querySelector(%q); e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()", selector))
		return mouse(input.DispatchMouseEventTypeMousePressed)
	})
	return func() {
		b.t.Helper()
		if err := mouse(input.DispatchMouseEventTypeMouseReleased); err != nil {
			b.t.Fatalf("browser: release over %s: %v", selector, err)
		}
	}
}

// js runs an expression in the page and returns its value.
func js[T any](b *browser, expression string) (value T) {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("browser: %s: %v", expression, err)
	}
	return value
}

// fits waits until the plots are as wide as their places.
func (b *browser) fits() {
	b.t.Helper()
	err := eventually(patience, func() error {
		for _, id := range []string{"bytes", "failures"} {
			place, plot := js[int](b, "document.querySelector('#"+id+"').clientWidth"), js[int](b, "document.querySelector('#"+id+" .u-wrap').offsetWidth")
			if place != plot {
				return fmt.Errorf("the plot %s is %d wide, its place %d", id, plot, place)
			}
		}
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
}

// quiet401 is quiet, but for the status 401, which is asked for.
func (b *browser) quiet401() {
	b.t.Helper()
	b.mu.Lock()
	b.complaints = slices.DeleteFunc(b.complaints, func(text string) bool { return strings.Contains(text, "status of 401") })
	b.mu.Unlock()
	b.quiet()
}

// startWatched runs an ambassador with something in every part of its page. The server of
// its upstream mail is gone: its address is returned.
func startWatched(t testing.TB, adminSection string) (a *ambassador, mail string) {
	t.Helper()
	p := newPKI(t)
	db := startServer(t, p.mtls(t), echoLines)
	free := startServer(t, nil, echoLines)
	gone := startServer(t, nil, echoLines)
	gone.close()
	a = start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
admin: %s
identities:
  orders: {files: {cert: %s, key: %s}}
upstreams:
  orders_db: {endpoints: [%q], tls: {identity: orders, ca: %s, server_name: localhost}}
  mail: {endpoints: [%q], required: false, breaker: {failures: 1, open: 1h, max_open: 1h}, health: {interval: 0s}, connect: {timeout: 300ms}}
  internet: {dynamic: true}
listeners:
  db: {listen: "127.0.0.1:0", upstream: orders_db}
  mail: {listen: "127.0.0.1:0", upstream: mail}
  proxy:
    listen: "127.0.0.1:0"
    socks5: {}
    rules:
      - {ip: 127.0.0.0/8, upstream: internet, report: "not on the list yet"}
`, adminSection, p.file("client.crt"), p.file("client.key"), db.addr, p.file("ca.crt"), gone.addr)))
	conn := a.connect("db")
	fmt.Fprintln(conn, "hello")
	if _, err := io.ReadFull(conn, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	failed := a.connect("mail")
	io.Copy(io.Discard, failed)
	for _, dest := range []string{strings.Replace(free.addr, "127.0.0.1", "localhost", 1), "10.1.2.3:5432"} {
		c := a.connect("proxy")
		socksAsk(c, "", dest)
		c.Close()
	}
	return a, gone.addr
}

// pageURL runs `ambassador page` and returns the URL that it prints.
func pageURL(t testing.TB, a *ambassador, args ...string) string {
	t.Helper()
	p := start(t, append([]string{"page", "--admin", a.addr("admin")}, args...)...)
	m, err := p.stdout.awaitAfter(0, regexp.MustCompile(`(?m)^(http://\S+)$`), patience, p.exited)
	if err != nil {
		t.Fatalf("%v; stderr: %s", err, p.stderr)
	}
	return m[1]
}

// TestPage asserts in a real browser what an operator sees of a running process, and
// that the buttons work.
func TestPage(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	a, mail := startWatched(t, "{}")
	url := pageURL(t, a)
	b.look(1280, "light")
	b.do(chromedp.Navigate(url), chromedp.WaitVisible("#open button"))
	b.shows("#live", "Live")
	for selector, want := range map[string]string{
		"#answers":    "ready, with trouble",
		"#listeners":  "proxy",
		"#upstreams":  "next attempt in",
		"#identities": "%",
		"#rules":      "would_deny",
		"#ended":      "refused",
		"#open":       "orders_db",
		"#log":        "upstream reached",
	} {
		b.shows(selector, want)
	}
	if log := b.text("#log"); strings.Contains(log, "{") || !strings.Contains(log, "refused: 127.0.0.1:") {
		t.Errorf("the log is not in words: %s", log)
	}
	b.click("#log tr:last-child summary")
	b.shows("#log", `"msg":`)
	b.click("#log details[open] summary")
	b.do(chromedp.WaitVisible("#bytes canvas")) // after the first sample
	b.fits()
	b.shoot("page-light.png")
	b.look(1280, "dark")
	b.fits()
	b.shoot("page-dark.png")
	b.look(360, "light")
	b.fits()
	b.shoot("page-phone.png")
	if wide := js[int](b, "document.documentElement.scrollWidth"); wide > 360 {
		t.Errorf("at 360 pixels the page is %d wide", wide)
	}
	b.look(1280, "light")
	b.fits()
	// What comes while the button of the mouse is held down does not take the click away.
	release := b.hold("#upstreams button")
	for range 2 { // the first may have been under way
		since := b.text("#live")
		err := eventually(patience, func() error {
			if b.text("#live") == since {
				return errors.New("no figures come while the button is held down")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	release()
	b.shows("#result", "connection refused")
	again, err := serveAt(mail, nil, echoLines)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.close)
	b.click("#upstreams button")
	b.shows("#result", "Try now: done.")
	a.metric("ambassador_breakers{upstream=mail,state=closed}", 1)
	line(t, a.connect("mail"), "works again")
	b.agree()
	b.click("#open button")
	b.shows("#result", "Kill: done.")
	b.shows("#ended", "killed")
	// A press of which the page never sees the release does not end its updates.
	for _, press := range []string{`{button: 2}`, `{button: 0})); dispatchEvent(new Event("contextmenu"`, `{button: 0})); dispatchEvent(new Event("blur"`} {
		js[bool](b, `dispatchEvent(new PointerEvent("pointerdown", `+press+`)); true`)
		c := a.connect("mail")
		line(t, c, "after a press")
		b.shows("#open", c.LocalAddr().String())
	}
	b.quiet()
	url = pageURL(t, a) // the document of a browser without scripts
	plain := newBrowser(t)
	if _, err := chromedp.Call(plain.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	plain.do(chromedp.Navigate(url))
	plain.shows("#upstreams", "orders_db")
	plain.shows("#ended", "refused")
	plain.shows("#live", "load the page again")
	plain.quiet()
	if _, status, err := httpGet(url); err != nil || status != http.StatusForbidden {
		t.Errorf("the URL opens the page twice: status %d, %v", status, err)
	}
}

// TestPageStandsStill proves that nothing of the page moves when its script begins, when
// the first figures come and when the plots are drawn.
func TestPageStandsStill(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	token := writeFile(t, "token", "a-secret-of-32-characters-or-more\n")
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
admin: {listen: "127.0.0.1:0", token_file: %s}
upstreams: {net: {dynamic: true}}
listeners: {proxy: {listen: "127.0.0.1:0", socks5: {}, rules: [{host: a.example, upstream: net}]}}
`, token)))
	for _, width := range []int64{1280, 1000, 360} {
		b.look(width, "light")
		b.do(chromedp.EmulateViewport(width, 5000)) // what is outside of the window moves unseen
		b.do(chromedp.Navigate("http://"+a.addr("admin")+"/"), chromedp.WaitVisible("#answers"))
		b.shows("#live", "Live")
		b.do(chromedp.WaitVisible("#bytes canvas"), chromedp.WaitVisible("#failures canvas"))
		// The last move is made here: when it is reported, all before it have been.
		js[bool](b, `window.moves = []; new PerformanceObserver((list) => { for (const e of list.getEntries()) moves.push(e.sources.map((s) =>
			(s.node?.id || s.node?.nodeName) + " by " + (s.currentRect.y - s.previousRect.y)).join(", ")) }).observe({type: "layout-shift", buffered: true});
			document.querySelector("h1").style.paddingTop = "77px"; true`)
		var moves []string
		err := eventually(patience, func() error {
			if moves = js[[]string](b, "moves"); !slices.ContainsFunc(moves, func(m string) bool { return strings.Contains(m, "main by 77") }) {
				return fmt.Errorf("at %d pixels, the move of the test's is not seen: %q", width, moves)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		} else if len(moves) != 1 {
			t.Errorf("at %d pixels there were %d moves: %q", width, len(moves), moves)
		}
	}
	b.quiet()
}

// TestPageCookie proves that the browser sends the cookie of the page to no other server
// on 127.0.0.1.
func TestPageCookie(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	a := start(t, "run", "-c", writeFile(t, "ambassador.yaml", "upstreams: {net: {dynamic: true}}\nlisteners: {proxy: {listen: \"127.0.0.1:0\", socks5: {}, rules: [{host: a.example, upstream: net}]}}\n"))
	other := startServer(t, nil, func(s *server, c duplex) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		s.report(fmt.Sprintf("%s Cookie=%q", r.URL.Path, r.Header.Get("Cookie")))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
	})
	b.do(chromedp.Navigate(pageURL(t, a)), chromedp.WaitVisible("#answers"))
	b.shows("#live", "Live")
	b.do(chromedp.Navigate("http://" + other.addr + "/seen"))
	if err := other.received(`/seen Cookie=""`, patience); err != nil {
		t.Error(err)
	}
	b.do(chromedp.NavigateBack(), chromedp.WaitVisible("#answers"))
	b.shows("#live", "Live")
}

// TestPageToken proves in a browser that over TCP changes need the token: the page asks
// for it, and ` + "`ambassador page --token-file`" + ` knows it.
func TestPageToken(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	token := writeFile(t, "token", "a-secret-of-32-characters-or-more\n")
	a, _ := startWatched(t, fmt.Sprintf("{listen: \"127.0.0.1:0\", token_file: %s}", token))
	b.look(1280, "light")
	b.do(chromedp.Navigate("http://"+a.addr("admin")+"/"), chromedp.WaitVisible("#open button"))
	b.agree()
	b.click("#open button")
	b.shows("#result", "Give the token first.")
	b.do(chromedp.SendKeys("#token", "wrong"+kb.Enter))
	b.click("#open button")
	b.shows("#result", "the token is missing or wrong")
	b.quiet401()
	b.do(chromedp.SetValue("#token", "a-secret-of-32-characters-or-more"))
	b.click("#open button")
	b.shows("#result", "Kill: done.")
	b.shows("#ended", "killed")
	line(t, a.connect("db"), "another")
	b.do(chromedp.Navigate(pageURL(t, a, "--token-file", token)), chromedp.WaitVisible("#upstreams button"))
	if js[bool](b, "document.querySelector('#token') !== null") {
		t.Error("the page of a command that has the token asks for it")
	}
	b.click("#upstreams button")
	b.shows("#result", "connection refused")
	b.quiet()
}

func httpGet(url string) (body string, status int, err error) {
	client := http.Client{Timeout: patience}
	resp, err := client.Get(url)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), resp.StatusCode, err
}
