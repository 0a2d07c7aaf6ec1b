package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/page"
	"ambassador/cmd/ambassador/internal/report"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// Deps is what the admin API shows and what it sets going. Functions are
// called from many goroutines.
type Deps struct {
	Ready func() l4.Readiness
	// Try makes trials of upstreams that nothing else tries before their first session:
	// all of them, or that of one name. It does not wait. It may be nil: there are none.
	Try func(upstream string)
	// Trials are those of the addresses of the upstream of that name; false: there is none.
	Trials    func(ctx context.Context, upstream string) ([]upstream.Trial, bool)
	Listeners func() []l4.ListenerStatus
	Upstreams func() []upstream.Status
	Traffic   func() []l4.Traffic
	Sessions  func(n int) []outcome.Record // the n newest, or all
	Recent    func(n int) []outcome.Record // the n newest, or all
	Kill      func(id, by string) bool

	// Identities may be nil: there are none.
	Identities func() []certs.Status
	// Users may be nil: there are no users files.
	Users func() []api.UsersFile
	// Rules is the upstream of a listener, or how many rules it has. It may be nil.
	Rules func(listener string) (upstream string, rules int)
	// Loaded is when the configuration in use was loaded. It may be nil.
	Loaded func() time.Time
	// Sandbox is what the kernel keeps the process to. It may be nil, and its answer.
	Sandbox func() *api.Sandbox
	// LastReload is the result of the last reload. It may be nil, and its answer.
	LastReload func() *api.Reload
	// Config is the configuration in use as YAML, without secrets.
	Config func() ([]byte, error)
	// Reload validates and applies the configuration's file. An error means that
	// the old configuration is in use as a whole. Nil: there is no file.
	Reload func(context.Context) error
	// Drain and quit set it going and return at once.
	Drain, Quit func()
	// Upgrade checks that another program can take the place of this one, and begins that
	// unless DryRun; it is set going once Go is called. Nil: that is not possible here.
	Upgrade func(context.Context, UpgradeRequest) (plan api.UpgradePlan, begin func(), err error)
	// LastUpgrade is the result of the last upgrade. It may be nil, and its answer.
	LastUpgrade func() *api.Upgrade
	// Report is what rules with `report` would deny. It may be nil: nothing.
	Report  func() report.Report
	Metrics http.Handler
	// Page is the live page. It may be nil: there is none.
	Page    *page.Page
	Version string
	Started time.Time
}

// DepsFor fills in what a server provides. The rest is the caller's.
func DepsFor(s *l4.Server) Deps {
	return Deps{Ready: s.Ready, Try: s.TryUpstreams, Trials: s.Trials, Listeners: s.Listeners, Upstreams: s.Upstreams, Traffic: s.Traffic,
		Sessions: s.Sessions, Recent: s.Recent, Kill: s.Kill}
}

// Guard is how the admin API is guarded.
type Guard struct {
	// TCP: the API is on a TCP address, which any page in a local browser can
	// reach. On a unix socket the file's mode is the guard.
	TCP bool
	// Hosts are names that requests may use for us, besides IP addresses and
	// localhost.
	Hosts []string
	// Token is the content of admin.token_file. Empty: over TCP nothing may be
	// changed.
	Token string
	// TokenForAll: over TCP reading needs the token, too. It is not asked of /livez
	// and /readyz without parameters: probes have no token, and learn no more than
	// whether traffic may come and what is waited for.
	TokenForAll bool
}

// NewHandler serves the whole admin API.
func NewHandler(d Deps, o Guard) http.Handler {
	a := &admin{Deps: d, guard: o, turns: newTurns(0), trying: make(chan struct{}, 1)}
	return a.handler(append(a.probes(), a.api()...))
}

// newProbeHandler serves /livez, /readyz and /metrics: nothing that
// changes anything, so that it may be on any address, under any name.
func newProbeHandler(d Deps) http.Handler {
	a := &admin{Deps: d, turns: newTurns(0)}
	return a.handler(a.probes())
}

const (
	// requestTimeout bounds a request as a whole, a reload included. It bounds
	// reading as well as writing, because net/http cancels the context of a
	// request that is still being served when ReadTimeout has passed.
	requestTimeout = 60 * time.Second
	// metricsTimeout is the same where nothing can be reloaded.
	metricsTimeout = turnTimeout + sendTimeout + 5*time.Second
	// webIdleTimeout keeps the connection of a scraper that comes once a minute.
	webIdleTimeout = 75 * time.Second
	// maxWebBody bounds the body of a request: no path has a use for one.
	maxWebBody = 4 << 10
)

// newHTTPServer is a server with a bound on every wait and on the size of requests.
// Its connections are gate's.
func newHTTPServer(h http.Handler, gate *Gate, timeout time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(h, maxWebBody),
		ConnState:         gate.State,
		ConnContext:       withPeer,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       timeout,
		WriteTimeout:      timeout,
		IdleTimeout:       webIdleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

type admin struct {
	Deps
	guard Guard
	turns *turns
	// trying has room for one trial: a server hears from no more at a time.
	trying chan struct{}
}

// route is one path of the API, with the only method it has.
type route struct {
	method, path string
	query        []string // the parameters it knows
	serve        func(http.ResponseWriter, *http.Request) error
}

func (a *admin) probes() []route {
	return []route{
		{"GET", api.PathLive, nil, a.livez},
		{"GET", api.PathReady, []string{"upstream", "verbose"}, a.readyz},
		{"GET", api.PathMetrics, []string{"name[]"}, a.scrape},
	}
}

func (a *admin) api() []route {
	return append(a.pages(), []route{
		{"GET", api.PathStatus, nil, a.status},
		{"GET", api.PathSessions, []string{"client"}, a.listSessions},
		{"GET", api.PathRecent, []string{"client"}, a.listRecent},
		{"GET", api.PathReport, nil, a.showReport},
		{"GET", api.PathUpstreams, nil, a.listUpstreams},
		{"GET", api.PathIdentities, nil, a.listIdentities},
		{"GET", api.PathConfig, nil, a.showConfig},
		{"POST", api.PathReload, nil, a.doReload},
		{"POST", api.PathDrain, nil, a.doDrain},
		{"POST", api.PathQuit, nil, a.doQuit},
		{"POST", api.PathKill, nil, a.doKill},
		{"POST", api.PathTry, []string{"address"}, a.doTry},
		{"POST", api.PathUpgrade, []string{api.UpgradeBinary, api.UpgradeDryRun, api.UpgradeWait}, a.doUpgrade},
	}...)
}

// handler makes one handler of the routes. Every request passes the guard first.
func (a *admin) handler(routes []route) http.Handler {
	mux := http.NewServeMux()
	var paths []string
	for _, r := range routes {
		paths = append(paths, r.method+" "+strings.TrimSuffix(r.path, exactly))
		mux.Handle(r.path, a.guarded(func(w http.ResponseWriter, req *http.Request) error {
			if err := r.check(req); err != nil {
				w.Header().Set("Allow", r.method)
				err.Paths = paths
				return err
			}
			if r.costs(req) {
				return a.turns.serve(w, req, func(w http.ResponseWriter) error { return r.serve(w, req) })
			}
			return r.serve(w, req)
		}))
	}
	mux.Handle("/", a.guarded(func(_ http.ResponseWriter, req *http.Request) error {
		return &api.Error{Status: http.StatusNotFound, Text: req.URL.Path + ": no such path", Hint: "use one of paths", Paths: paths}
	}))
	return mux
}

// guarded answers with the error of serve as JSON, and asks the guard before.
func (a *admin) guarded(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		var err error
		if refused := a.guard.check(r); refused != nil {
			err = refused
		} else {
			err = serve(w, r)
		}
		if err == nil {
			return
		}
		e, ok := err.(*api.Error)
		if !ok {
			e = &api.Error{Status: http.StatusInternalServerError, Text: err.Error()}
		}
		if e.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		replyJSON(w, e.Status, e)
	})
}

// check refuses another method and parameters that would be ignored.
func (r *route) check(req *http.Request) *api.Error {
	if req.Method != r.method && !(req.Method == http.MethodHead && r.method == http.MethodGet) {
		return &api.Error{Status: http.StatusMethodNotAllowed, Text: req.Method + " " + req.URL.Path + ": this path takes only " + r.method, Hint: "use one of paths"}
	}
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return &api.Error{Status: http.StatusBadRequest, Text: "query: " + err.Error(), Hint: "escape the parameters as in a URL"}
	}
	for _, key := range slices.Sorted(maps.Keys(query)) {
		if !slices.Contains(r.query, key) {
			return &api.Error{Status: http.StatusBadRequest, Text: fmt.Sprintf("query: unknown parameter %q", key), Hint: r.knownQuery()}
		}
		if len(query[key]) > 1 && !strings.HasSuffix(key, "[]") {
			return &api.Error{Status: http.StatusBadRequest, Text: fmt.Sprintf("query: parameter %q is given %d times", key, len(query[key])), Hint: "give it once"}
		}
	}
	return nil
}

// costs says whether the answer takes long enough to wait for a turn. What probes
// ask does not: nothing may hold those up. The page's stream has a turn for each event.
func (r *route) costs(req *http.Request) bool {
	return r.method == http.MethodGet && !isProbe(req) && r.path != api.PathPageEvents
}

// isProbe says whether the request is that of a supervisor or a balancer, which asks
// often and knows nothing.
func isProbe(r *http.Request) bool {
	return (r.URL.Path == api.PathLive || r.URL.Path == api.PathReady) && r.URL.RawQuery == ""
}

func (r *route) knownQuery() string {
	if len(r.query) == 0 {
		return r.path + " takes no parameter"
	}
	return r.path + " takes only " + strings.Join(r.query, ", ")
}

// check is the guard of a TCP address. A page in a browser on this host can
// send requests here: it is told apart by the name it uses for us (Host, against
// DNS rebinding), by what browsers say of where a request comes from, and by not
// knowing the token.
func (o Guard) check(r *http.Request) *api.Error {
	if !o.TCP {
		return nil
	}
	if !o.knownHost(r.Host) {
		return &api.Error{Status: http.StatusForbidden, Text: fmt.Sprintf("Host %q is not one of this server's names", r.Host), Hint: "use an IP address or localhost, or add the name to admin.hosts"}
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return &api.Error{Status: http.StatusForbidden, Text: err.Error(), Hint: "send the request from a program, not from a page of another origin"}
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reads && (!o.TokenForAll || isProbe(r)) {
		return nil
	}
	return o.checkToken(r.Header.Get("Authorization"))
}

func (o Guard) knownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" {
		return true
	}
	return host != "" && slices.ContainsFunc(o.Hosts, func(h string) bool { return strings.EqualFold(strings.TrimSuffix(h, "."), host) })
}

func (o Guard) checkToken(header string) *api.Error {
	if o.Token == "" {
		return &api.Error{Status: http.StatusForbidden, Text: "over TCP, changes need a token, and none is configured", Hint: "set admin.token_file, or use a unix socket in admin.listen"}
	}
	scheme, token, _ := strings.Cut(header, " ")
	got, want := sha256.Sum256([]byte(strings.TrimSpace(token))), sha256.Sum256([]byte(o.Token))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return &api.Error{Status: http.StatusUnauthorized, Text: "the token is missing or wrong", Hint: "send Authorization: Bearer TOKEN with the content of admin.token_file (ambassador … --token-file FILE)"}
	}
	return nil
}

// replyJSON writes v as JSON, with its length, so that the answer is whole once it
// is flushed. A client that has gone is not told of.
func replyJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	if err := output.WriteJSON(&b, v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

// replyText writes lines of text.
func replyText(w http.ResponseWriter, status int, lines ...string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	for _, l := range lines {
		fmt.Fprintln(w, output.Visible(l))
	}
}

func (a *admin) livez(w http.ResponseWriter, _ *http.Request) error {
	replyText(w, http.StatusOK, "ok")
	return nil
}

func (a *admin) scrape(w http.ResponseWriter, r *http.Request) error {
	a.Metrics.ServeHTTP(w, r)
	return nil
}

// readyz says whether traffic should come here: "ready", or a reason a line.
// With upstream=NAME it speaks of that upstream as it is now; verbose adds the
// warnings and a line on each upstream as it is now, and changes nothing else.
func (a *admin) readyz(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	if a.Try != nil {
		a.Try(query.Get("upstream"))
	}
	if query.Has("upstream") {
		return a.upstreamReady(w, query.Get("upstream"))
	}
	ready := a.Ready()
	status, lines := http.StatusOK, []string{"ready"}
	if !ready.Ready {
		status, lines = http.StatusServiceUnavailable, ready.Waiting
		if len(lines) == 0 {
			lines = []string{"not ready"}
		}
	}
	if query.Has("verbose") {
		lines = append(lines, ready.Warnings...)
		for _, u := range a.Upstreams() {
			_, line := liveState(u)
			lines = append(lines, line)
		}
	}
	replyText(w, status, lines...)
	return nil
}

func (a *admin) upstreamReady(w http.ResponseWriter, name string) error {
	upstreams := a.Upstreams()
	i := slices.IndexFunc(upstreams, func(u upstream.Status) bool { return u.Name == name })
	if i < 0 {
		return &api.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("upstream %q: there is none of that name", name), Hint: "see GET /v1/upstreams for their names"}
	}
	ok, line := liveState(upstreams[i])
	if !ok {
		replyText(w, http.StatusServiceUnavailable, line)
		return nil
	}
	replyText(w, http.StatusOK, "ready", line)
	return nil
}

// liveState says whether an upstream works now: our identity is valid, and one of
// its endpoints at least works. line says it in words.
func liveState(u upstream.Status) (ok bool, line string) {
	if u.Dynamic && u.IdentityError == "" {
		return true, "upstream " + u.Name + ": ok; it goes where clients ask"
	}
	var failures []string
	for _, e := range u.Endpoints {
		works, why := liveEndpoint(e)
		ok = ok || works
		failures = append(failures, why...)
	}
	words := "ok"
	switch {
	case u.IdentityError != "":
		ok, words = false, fmt.Sprintf("%s: %s", outcome.NoIdentity, u.IdentityError)
	case !u.Reached:
		ok, words = false, "not reached yet"
	case !ok:
		words = "the last attempts failed"
	}
	return ok, "upstream " + u.Name + ": " + words + strings.Join(failures, "")
}

// liveEndpoint says whether an endpoint has an address that takes sessions and is
// known to be well: by its health, or where that is not known by the last attempt.
// Why are its failures, in words.
func liveEndpoint(e upstream.EndpointStatus) (ok bool, why []string) {
	for _, a := range e.Addresses {
		switch {
		case a.Health == policy.Unhealthy || a.Breaker == policy.Open.String():
			why = append(why, fmt.Sprintf("; %s: %s, breaker %s: %s", a.Address, a.Health, a.Breaker, a.LastError))
		case a.Health == policy.Healthy || e.LastReason == outcome.OK:
			ok = true
		}
	}
	switch {
	case e.GoneSince != nil && len(e.Addresses) == 0:
		return false, append(why, fmt.Sprintf("; %s: %s (%s)", e.Endpoint, e.LookupError, outcome.DNS))
	case e.LastReason == outcome.OK:
		ok = ok || len(e.Addresses) == 0
	case e.LastReason != "" && !ok && why == nil:
		why = append(why, fmt.Sprintf("; %s: %s (%s)", e.Endpoint, e.LastError, e.LastReason))
	}
	return ok, why
}

func (a *admin) status(w http.ResponseWriter, _ *http.Request) error {
	replyJSON(w, http.StatusOK, a.Status())
	return nil
}

// Status is the answer of /v1/status.
func (a *Deps) Status() api.Status {
	traffic := a.Traffic()
	s := api.Status{Version: a.Version, PID: os.Getpid(), Started: a.Started, Readiness: a.Ready(),
		Listeners: a.listenerReplies(traffic), Upstreams: orEmpty(a.Upstreams()), Identities: a.identityReplies()}
	if a.Users != nil {
		s.UsersFiles = a.Users()
	}
	if a.Sandbox != nil {
		s.Sandbox = a.Sandbox()
	}
	if a.LastReload != nil {
		s.LastReload = a.LastReload()
	}
	if a.LastUpgrade != nil {
		s.LastUpgrade = a.LastUpgrade()
	}
	if a.Loaded != nil {
		s.Loaded = unlessZero(a.Loaded())
	}
	for _, t := range traffic {
		s.Sessions += t.Active
		s.BytesUp += t.Up
		s.BytesDown += t.Down
	}
	return s
}

// orEmpty is s, and an empty list in JSON where s is nil.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (a *admin) listSessions(w http.ResponseWriter, r *http.Request) error {
	replyJSON(w, http.StatusOK, api.Sessions{Sessions: matching(a.Sessions(math.MaxInt), r)})
	return nil
}

func (a *admin) listRecent(w http.ResponseWriter, r *http.Request) error {
	replyJSON(w, http.StatusOK, api.Sessions{Sessions: matching(a.Recent(math.MaxInt), r)})
	return nil
}

func matching(all []outcome.Record, r *http.Request) []outcome.Record {
	match := sessionMatcher(r.URL.Query().Get("client"))
	return orEmpty(slices.DeleteFunc(all, func(rec outcome.Record) bool { return !match(&rec) }))
}

// sessionMatcher understands what people say of a session: its id, its client's
// address with or without port, the port alone ("40000", ":40000"),
// "localhost:40000" for any loopback address, a unix listener's address, or its tag, user,
// destination, upstream, endpoint or address. Empty is every session.
func sessionMatcher(want string) func(*outcome.Record) bool {
	matches := addressMatcher(want)
	return func(r *outcome.Record) bool {
		if want == "" || r.ID == want || r.Client == want || isNamed(r, want) {
			return true
		}
		client, err := netip.ParseAddrPort(r.Client)
		return err == nil && matches(client)
	}
}

// isNamed reports whether the session has that tag, user, destination (with or without
// its port), upstream, endpoint or address.
func isNamed(r *outcome.Record, want string) bool {
	host, _, err := net.SplitHostPort(r.Destination)
	return err == nil && host == want || slices.Contains([]string{r.Tag, r.User, r.Destination, r.Upstream, r.Endpoint, r.Address}, want)
}

func addressMatcher(want string) func(client netip.AddrPort) bool {
	if ap, err := netip.ParseAddrPort(want); err == nil {
		return func(c netip.AddrPort) bool { return c.Port() == ap.Port() && c.Addr().Unmap() == ap.Addr().Unmap() }
	}
	if ip, err := netip.ParseAddr(strings.Trim(want, "[]")); err == nil {
		return func(c netip.AddrPort) bool { return c.Addr().Unmap() == ip.Unmap() }
	}
	host, port, err := net.SplitHostPort(want)
	if err != nil {
		host, port = "", want
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host != "" && host != "localhost" {
		return func(netip.AddrPort) bool { return false }
	}
	return func(c netip.AddrPort) bool {
		return c.Port() == uint16(number) && (host == "" || c.Addr().Unmap().IsLoopback())
	}
}

func (a *admin) listUpstreams(w http.ResponseWriter, _ *http.Request) error {
	replyJSON(w, http.StatusOK, api.Upstreams{Upstreams: orEmpty(a.Upstreams())})
	return nil
}

func (a *admin) listIdentities(w http.ResponseWriter, _ *http.Request) error {
	replyJSON(w, http.StatusOK, api.Identities{Identities: a.identityReplies()})
	return nil
}

func (a *admin) showReport(w http.ResponseWriter, _ *http.Request) error {
	r := report.Report{Since: a.Started, Entries: []report.Entry{}}
	if a.Report != nil {
		r = a.Report()
	}
	replyJSON(w, http.StatusOK, r)
	return nil
}

func (a *admin) showConfig(w http.ResponseWriter, _ *http.Request) error {
	text, err := a.Config()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/yaml")
	w.Write(text)
	return nil
}

func (a *admin) doReload(w http.ResponseWriter, r *http.Request) error {
	if a.Reload == nil {
		return &api.Error{Status: http.StatusConflict, Text: "there is no configuration file to load again", Hint: "use `ambassador run -c FILE`"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), api.ReloadTimeout)
	defer cancel()
	if err := a.Reload(ctx); err != nil {
		return &api.Error{Status: http.StatusUnprocessableEntity, Text: err.Error(), Hint: "the old configuration is still in use, whole; fix the file and reload again"}
	}
	replyJSON(w, http.StatusOK, api.Reloaded{Reloaded: true})
	return nil
}

func (a *admin) doDrain(w http.ResponseWriter, _ *http.Request) error {
	a.Drain()
	replyJSON(w, http.StatusAccepted, api.Draining{Draining: true, Sessions: a.active()})
	return nil
}

// doQuit answers before it acts: afterwards the client may be gone.
func (a *admin) doQuit(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Connection", "close")
	replyJSON(w, http.StatusAccepted, api.Quitting{Quitting: true, Sessions: a.active()})
	http.NewResponseController(w).Flush()
	a.Quit()
	return nil
}

func (a *admin) active() int {
	n := 0
	for _, t := range a.Traffic() {
		n += t.Active
	}
	return n
}
