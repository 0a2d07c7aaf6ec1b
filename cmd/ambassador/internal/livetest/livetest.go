package livetest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/explain"
	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/cmd/ambassador/internal/secrets"
	"ambassador/l4"
	"ambassador/l4/netconn"
	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/l4/upstream"
)

// Options configures a test.
type Options struct {
	// Upstreams are the names of those to test. If empty, all, unless there are Requests.
	Upstreams []string
	// Requests are destinations that clients ask for.
	Requests []*explain.Question
	// Ask asks the question of health.http.
	Ask func(ctx context.Context, h config.HTTPSection, host netip.Addr) error
	// Env is the environment, which says where the Kubernetes API server is.
	Env func(string) (string, bool)
	// Done is called with the result of each upstream in the order of the file, and then of
	// each request: an *Upstream or a *Destination. It may be nil.
	Done func(Result)
}

const (
	// patience is how long a server's first words are awaited, and with them its alert: a
	// TLS 1.3 server refuses our certificate only after the handshake.
	patience = time.Second
	// atOnce bounds the addresses of an upstream that are tried at the same time.
	atOnce = 16
)

// Run tests the upstreams of f. Its error is a mistake in the file, or an upstream that
// it does not have; the end of ctx ends each attempt, and is in the report.
func Run(ctx context.Context, f *config.File, opts Options) (*Report, error) {
	for _, name := range opts.Upstreams {
		if !slices.ContainsFunc(f.Upstreams, func(u *config.UpstreamSection) bool { return u.Name == name }) {
			return nil, fmt.Errorf("the configuration has no upstream %q; it has %s", name, namesOf(f))
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	silent := slog.New(slog.DiscardHandler)
	api := kubernetes.New(opts.Env, silent, nil)
	store := secrets.NewStore(ctx, silent, nil, api)
	defer store.Wait()
	defer cancel()
	named, cfg, err := prepare(ctx, f, store, api, opts)
	if err != nil {
		return nil, err
	}
	report := &Report{OK: true, Upstreams: []Upstream{}}
	engine := relay.New()
	defer engine.Close()
	testerOf := func(name string) *tester {
		i := slices.IndexFunc(f.Upstreams, func(u *config.UpstreamSection) bool { return u.Name == name })
		return &tester{section: f.Upstreams[i], named: named, cfg: cfg.Upstreams[i], engine: engine, seen: map[string]*seen{}}
	}
	if opts.Done == nil {
		opts.Done = func(Result) {}
	}
	for _, section := range f.Upstreams {
		if len(opts.Upstreams)+len(opts.Requests) > 0 && !slices.Contains(opts.Upstreams, section.Name) {
			continue
		}
		result := testerOf(section.Name).run(ctx)
		report.OK = report.OK && result.OK
		report.Upstreams = append(report.Upstreams, result)
		opts.Done(&result)
	}
	for _, q := range opts.Requests {
		result := request(ctx, q, testerOf)
		report.OK = report.OK && result.OK
		report.Destinations = append(report.Destinations, result)
		opts.Done(&result)
	}
	return report, nil
}

func namesOf(f *config.File) string {
	var names []string
	for _, u := range f.Upstreams {
		names = append(names, u.Name)
	}
	return strings.Join(names, ", ")
}

// prepare reads what the file names, and translates it.
func prepare(ctx context.Context, f *config.File, store *secrets.Store, api *kubernetes.Client, opts Options) (named *secrets.Prepared, cfg l4.Config, err error) {
	named, err = store.Prepare(f)
	if err != nil {
		return named, cfg, err
	}
	cfg, err = f.ServerConfig(config.Parts{Identity: named.Identity, Roots: named.Roots, Users: named.Users, Login: secrets.ProbeLogin, Discover: api.Discover, Ask: opts.Ask})
	if err != nil {
		return named, cfg, err
	}
	store.Commit(named)
	for _, id := range f.Identities {
		if id.Kubernetes != "" || id.SPIFFE != "" {
			awaitFirst(ctx, named.Identity(id.Name))
		}
	}
	return named, cfg, nil
}

// firstAnswer bounds the wait for an issuer that pushes.
const firstAnswer = 10 * time.Second

// awaitFirst waits for the first answer of an issuer that pushes.
func awaitFirst(ctx context.Context, source *certs.Source) {
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	for {
		changed := source.Changed()
		if st := source.Status(); st.Ready || st.LastError != "" {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// tester tests one upstream.
type tester struct {
	section *config.UpstreamSection
	named   *secrets.Prepared // what the file names
	cfg     upstream.Config
	engine  *relay.Engine

	mu   sync.Mutex
	seen map[string]*seen // by keyOf; guarded by mu
}

func (t *tester) run(ctx context.Context) Upstream {
	result := Upstream{Name: t.section.Name, OK: true, Addresses: []Address{}}
	if t.cfg.Dynamic {
		result.Skipped = "it is dynamic, and has no address of its own; test a destination of its clients with --dest HOST:PORT"
		return result
	}
	u, err := t.upstream()
	if err != nil {
		result.OK, result.Addresses = false, []Address{{Stages: []Stage{failed(Connect, "", err)}}}
		return result
	}
	lookup, cancel := context.WithTimeout(ctx, upstream.LookupTimeout)
	trials := distinct(u.Trials(lookup))
	cancel()
	result.Addresses = t.tryAll(ctx, trials)
	for _, a := range result.Addresses {
		result.OK = result.OK && a.OK
	}
	return result
}

// upstream makes the upstream, which tells t what it sees of certificates.
func (t *tester) upstream() (*upstream.Upstream, error) {
	if t.cfg.TLS != nil {
		t.cfg.TLS = t.watch(t.cfg.TLS)
	}
	t.cfg.Preconnect = upstream.PreconnectConfig{}
	return upstream.New(t.cfg, upstream.Deps{Dial: timed(netconn.Dialer(t.engine, 0)), Marked: func(mark int) netconn.DialFunc { return timed(netconn.Dialer(t.engine, mark)) }})
}

// tryAll tests the addresses, several at once.
func (t *tester) tryAll(ctx context.Context, trials []upstream.Trial) []Address {
	all := make([]Address, len(trials))
	var work sync.WaitGroup
	room := make(chan struct{}, atOnce)
	for i, trial := range trials {
		work.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			all[i] = t.try(ctx, trial)
		})
	}
	work.Wait()
	return all
}

// try tests one address. It is bounded by the upstream's connect.timeout.
func (t *tester) try(ctx context.Context, trial upstream.Trial) Address {
	a := Address{Endpoint: trial.Endpoint, Address: trial.Address}
	if trial.Err != nil {
		a.Stages = []Stage{failedWith(Resolve, trial.Err)}
		return a
	}
	if trial.Address != trial.Endpoint {
		a.Stages = append(a.Stages, Stage{Name: Resolve, OK: true, Detail: trial.Address})
	}
	within, cancel := context.WithTimeout(ctx, t.section.Connect.Timeout+patience)
	defer cancel()
	var took atomic.Int64
	first, err := trial.Run(context.WithValue(within, dialTime{}, &took), patience, func(outcome.Stage, string, string, int) {})
	if err != nil && ctx.Err() != nil {
		err.Err = fmt.Errorf("%w: %w", errInterrupted(ctx), err.Err)
	}
	a.Stages = append(a.Stages, t.stages(ctx, keyOf(trial.Host, trial.Address), first, err, time.Duration(took.Load()))...)
	if err == nil && t.cfg.Health.Check != nil {
		a.Stages = append(a.Stages, t.check(within, trial.Address))
	}
	a.OK = !slices.ContainsFunc(a.Stages, func(s Stage) bool { return !s.OK })
	return a
}

// errInterrupted says why the test ended before the attempt did.
func errInterrupted(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("the test ended by --timeout")
	}
	return errors.New("the test was interrupted")
}

// dialTime is the key of the time that the dial of a trial took, in its context: a
// *atomic.Int64 of nanoseconds.
type dialTime struct{}

// timed measures successful dials.
func timed(dial netconn.DialFunc) netconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		began := time.Now()
		conn, err := dial(ctx, network, address)
		if took, ok := ctx.Value(dialTime{}).(*atomic.Int64); ok && err == nil {
			took.Store(int64(max(time.Since(began), time.Microsecond)))
		}
		return conn, err
	}
}

// watch makes configurations that tell what was seen of the certificates.
func (t *tester) watch(base func(host, address string) (*tls.Config, error)) func(host, address string) (*tls.Config, error) {
	return func(host, address string) (*tls.Config, error) {
		cfg, err := base(host, address)
		if err != nil {
			return nil, err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		key := keyOf(host, address)
		if t.seen[key] == nil {
			s := &seen{}
			s.config = s.watched(cfg)
			t.seen[key] = s
		}
		return t.seen[key].config, nil
	}
}

// keyOf names a host of an endpoint at one of its addresses, which two hosts may share.
func keyOf(host, address string) string { return host + " " + address }

// distinct leaves out the trials of an endpoint that is given twice.
func distinct(all []upstream.Trial) (out []upstream.Trial) {
	for _, a := range all {
		if !slices.ContainsFunc(out, func(b upstream.Trial) bool { return a.Endpoint == b.Endpoint && a.Address == b.Address }) {
			out = append(out, a)
		}
	}
	return out
}

// saw returns what was seen of the certificates in a trial; nil if TLS did not begin.
func (t *tester) saw(key string) *seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[key]
}
