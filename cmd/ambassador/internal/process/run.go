package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"

	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/handover"
	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/metrics"
	"ambassador/cmd/ambassador/internal/otlp"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/page"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/report"
	"ambassador/cmd/ambassador/internal/secrets"
	"ambassador/l4"
	"ambassador/l4/descriptors"
	"ambassador/l4/outcome"
)

// FileOptions are the options of a process that reads its configuration from the file
// at path; edit overrides it. With watch the process reloads when the file changes. A
// pipe cannot be watched.
func FileOptions(path string, env func(string) (string, bool), watch bool, edit func(*config.File)) Options {
	return FileOptionsAfter(nil, path, env, watch, edit)
}

// FileOptionsAfter is FileOptions for a program that goes on with the sessions of h. If
// the next program has failed and gone back to this one, the first configuration is that
// which was in use, because the file may be what failed.
func FileOptionsAfter(h *handover.Received, path string, env func(string) (string, bool), watch bool, edit func(*config.File)) Options {
	source := &config.Source{Path: path}
	if h.Pending() && h.Failed != "" {
		source.First = h.Config
	}
	opts := Options{Load: func() (*config.File, error) {
		f, err := secrets.Load(source, env)
		if err != nil {
			return nil, &program.ExitError{Code: 2, Err: err}
		}
		edit(f)
		return f, nil
	}}
	if watch {
		opts.watch = newFileWatch(path)
	}
	opts.Handover = h
	return opts
}

// Options configures a process, apart from its configuration file.
type Options struct {
	// Load reads the configuration for a reload. If nil, there is no file.
	Load func() (*config.File, error)
	// watch requests a reload when the file changes. If nil, no file is watched.
	watch *fileWatch
	// Command is started when the process is ready, and the process ends with it. If
	// empty, there is none.
	Command []string
	// WaitTimeout bounds the time until the process is ready for Command. If zero,
	// nothing bounds it.
	WaitTimeout time.Duration
	// Report counts what rules with `report` have allowed. If nil, Start makes one.
	Report *report.Tally
	// Descriptors is how many descriptors the rest of the process may need.
	Descriptors int
	// Signals replaces the process's signals, in tests.
	Signals chan os.Signal
	// Handover is what the program before this one in the same process has left. If nil,
	// there was none.
	Handover *handover.Received
	// alone means that the process does nothing else, so that it can be hardened and
	// sandboxed.
	alone bool
}

// Process is a running ambassador.
type Process struct {
	// Static after construction.
	world   program.World
	opts    Options
	ctx     context.Context // its end stops everything at once
	cancel  context.CancelFunc
	log     *logs.Log
	metrics *metrics.Metrics
	otlp    *otlp.Exporter
	server  *l4.Server
	page    *page.Page
	started time.Time
	secrets *secrets.Store
	// kubernetes is the API server; it is asked only if the configuration names its objects.
	kubernetes *kubernetes.Client
	web        *admin.Endpoints
	manager    serviceManager
	// inherited are the sockets that systemd passed. The server reads it in Apply.
	inherited map[string][]*os.File
	signals   chan os.Signal // SIGTERM, SIGINT, SIGHUP; `quit` is a SIGTERM
	reloads   chan struct{}  // requests for a reload
	upgrades  chan *upgrade  // Wait does them
	upgrading atomic.Bool    // one is being made
	left      bool           // the sessions are the next process's; set and read by Wait's goroutine
	remains   *remains       // of the program before, until Start has taken them over; else nil
	work      sync.WaitGroup // all goroutines that end with ctx
	records   sync.WaitGroup // sessions whose record is not written yet
	memory    memory
	reaper    reaper
	sandbox   *sandbox // set by the first apply, before anything is served; nil: the process is not alone

	guarded     atomic.Pointer[[]netip.AddrPort]  // addresses of web; see guard
	logSessions atomic.Pointer[map[string]string] // log.sessions of each listener that does not log all
	reloading   sync.Mutex                        // held by callers of apply, and during an upgrade; guards web and announced
	announced   map[l4.Bound]bool

	mu          sync.Mutex
	file        *config.File // guarded by mu
	applied     time.Time    // guarded by mu; when file came into use
	hash        string       // guarded by mu; hashOf(file)
	lastReload  *api.Reload  // guarded by mu; nil before the first
	lastUpgrade *api.Upgrade // guarded by mu; nil before the first
}

// Run runs an ambassador until it is told to end. Only Run does that. The error is nil
// after a clean stop.
func Run(ctx context.Context, w program.World, f *config.File, opts Options) error {
	if _, asked := w.Env(handover.CheckVariable); asked && w.Alone {
		return checkOnly(w, f)
	}
	if err := findCommand(opts.Command); err != nil {
		return err
	}
	if err := noSandboxFor(f, opts.Command); err != nil {
		return err
	}
	if opts.Signals == nil {
		more := []os.Signal{leaveSignal}
		if len(opts.Command) > 0 {
			more = commandSignals
		}
		signals, stop := EndSignals(more...)
		defer stop()
		opts.Handover.Signals(signals)
		opts.Signals = signals
	}
	if opts.alone = w.Alone; opts.alone {
		patient()
	}
	p, err := Start(ctx, w, f, opts)
	if err != nil {
		opts.Handover.GoBack(err)
		return err
	}
	defer p.Close()
	return p.Wait()
}

// Start starts the identities, the admin API and the listeners. When it returns,
// connections are accepted and every address has been printed. The caller calls Wait or
// Drain, and then Close.
func Start(ctx context.Context, w program.World, f *config.File, opts Options) (*Process, error) {
	inherited, err := inheritedSockets()
	if err != nil {
		return nil, err
	}
	p, err := newProcess(ctx, w, opts, inherited)
	if err != nil {
		return nil, err
	}
	if level, err := logs.ParseLevel(f.Log.Level); err == nil {
		p.log.Set(level, f.Log.Format) // apply logs
	}
	p.memory.code = codeMappings()
	p.harden() // before keys are read
	p.reloading.Lock()
	defer p.reloading.Unlock()
	if err := p.apply(f); err != nil {
		opts.Handover.GoBack(err) // not after Close, which waits while all sessions stand still
		p.Close()
		return nil, err
	}
	if p.remains != nil {
		p.tookOver(opts.Handover)
		p.memory.wait = quietAfter
	}
	p.lostStored(opts.Handover)
	p.closeUnused(f)
	opts.Handover.Collect()
	p.manager.ready(p.readiness())
	p.work.Go(p.reloadLoop)
	p.work.Go(p.attendManager)
	p.work.Go(func() { p.memory.run(p.ctx) })
	p.work.Go(func() { p.reaper.run(p.ctx) })
	p.work.Go(func() { p.otlp.Run(p.ctx) })
	p.work.Go(func() { p.page.Run(p.ctx) })
	if opts.watch != nil {
		p.work.Go(p.watchFile)
	}
	return p, nil
}

// newProcess makes the parts and starts none of them.
func newProcess(ctx context.Context, w program.World, opts Options, inherited map[string][]*os.File) (*Process, error) {
	p := &Process{world: w, opts: opts, log: logs.New(w.Stderr, w.Env), metrics: metrics.New(w.Version, admin.Part, partReload),
		started: time.Now(), manager: newServiceManager(w.Env), inherited: inherited, signals: opts.Signals, reloads: make(chan struct{}, 1), upgrades: make(chan *upgrade)}
	if opts.Handover.Pending() {
		if err := p.takeOver(opts.Handover); err != nil {
			return nil, err
		}
	}
	if p.opts.Report == nil {
		p.opts.Report = report.New(time.Now())
	}
	if p.signals == nil {
		p.signals = make(chan os.Signal, 1)
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	headers, _ := w.Env("OTEL_EXPORTER_OTLP_HEADERS")
	p.otlp = otlp.New(p.log.Logger, w.Version, headers)
	p.kubernetes = kubernetes.New(w.Env, p.log.Logger, p.metrics.Panicked)
	p.secrets = secrets.NewStore(p.ctx, p.log.Logger, p.metrics.Panicked, p.kubernetes)
	p.server = l4.New(p.ctx, l4.Options{Log: p.log.Logger, Observer: p.observer(), Inherited: p.inherited, Guarded: p.guardedAddrs, Carried: handoverServer(opts.Handover), Adopting: opts.Handover.Take})
	p.metrics.Attach(p.server, p.secrets.Identities)
	p.metrics.Watch(p.state)
	p.page = page.New(p.pageSource())
	p.web = &admin.Endpoints{Env: w.Env, Log: p.log.Logger, Deps: p.adminDeps(), Connections: admin.Connections(descriptors.Limit()), Panics: p.panicked}
	if p.remains != nil {
		p.web.Carried = p.remains.Web
	}
	return p, nil
}

// observer counts every session and writes its log line.
func (p *Process) observer() l4.Observer {
	o := p.metrics.Observer()
	opened, ended := o.Opened, o.Ended
	o.Opened = func(listener string) {
		p.records.Add(1)
		p.memory.happened()
		opened(listener)
	}
	o.Adopted = func() { p.records.Add(1) }
	o.Ended = func(r *outcome.Record) {
		defer p.records.Done()
		p.memory.happened()
		ended(r)
		p.opts.Report.Add(r)
		p.otlp.Session(r)
		if p.logs(r) {
			p.log.Session(r)
		}
	}
	return o
}

// adminDeps is what the admin API can read and do.
func (p *Process) adminDeps() admin.Deps {
	d := admin.DepsFor(p.server)
	d.Identities, d.Users, d.Rules = p.secrets.JudgedIdentities, p.secrets.UsersFiles, p.rules
	d.Config, d.Sandbox = p.config, p.sandboxed
	d.Ready, d.LastReload, d.Loaded = p.readiness, p.reloaded, p.loaded
	if p.opts.Load != nil {
		d.Reload = func(context.Context) error { return p.reload() }
	}
	d.Report = func() report.Report {
		return p.opts.Report.Report(func() []outcome.Record { return p.server.Sessions(math.MaxInt) })
	}
	d.Drain = func() { p.server.Drain(p.drainConfig()) }
	d.Quit = p.Quit
	d.Upgrade, d.LastUpgrade = p.Upgrade, p.upgraded
	d.Metrics = p.metrics.Handler()
	d.Version, d.Started = p.world.Version, p.started
	d.Page = p.page
	return d
}

// Quit has the same effect as SIGTERM. If a signal is already pending, another would
// change nothing.
func (p *Process) Quit() {
	select {
	case p.signals <- syscall.SIGTERM:
	default:
	}
}

func (p *Process) attendManager() { p.manager.attend(p.ctx, p.readiness) }

func (p *Process) watchFile() { p.opts.watch.run(p.ctx, p.wantReload) }

// apply makes f the configuration in use. On an error nothing has changed. The caller
// holds reloading.
func (p *Process) apply(f *config.File) error {
	level, err := logs.ParseLevel(f.Log.Level)
	if err != nil {
		return &program.ExitError{Code: 2, Err: fmt.Errorf("log.level: %w", err)}
	}
	if err := p.withinSandbox(f); err != nil {
		return err
	}
	named, err := p.secrets.Prepare(f)
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	cfg, err := f.ServerConfig(config.Parts{Identity: named.Identity, Roots: named.Roots, Users: named.Users, Login: secrets.ProbeLogin, Discover: p.kubernetes.Discover, Ask: AskHTTP})
	if err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	cfg.ReservedDescriptors = reservedDescriptors(f, p.web.Connections) + p.opts.Descriptors
	sockets, err := socketsOf(f)
	if err != nil {
		return err
	}
	web, err := p.web.Prepare(p.ctx, sockets)
	if err != nil {
		return err
	}
	if err := p.enterSandbox(f); err != nil {
		web.Discard()
		return err
	}
	p.guard(p.web.Addrs(web)) // clients may try the new addresses before they are served
	if err := p.server.Apply(cfg); err != nil {
		web.Discard()
		p.guard(p.web.Addrs(nil))
		return err
	}
	hash := hashOf(f)
	p.secrets.Commit(named)
	p.metrics.Applied(cfg, ruleSeriesOf(f))
	p.recallMetrics()
	p.web.Commit(web)
	p.guard(p.web.Addrs(nil))
	p.log.Set(level, f.Log.Format)
	p.log.SetWhy(!f.Admin.Off)
	p.logSessions.Store(logSessionsOf(f))
	p.otlp.Set(f.Tracing.OTLP, f.Tracing.Logs)
	p.mu.Lock()
	p.file, p.applied, p.hash = f, time.Now(), hash
	p.mu.Unlock()
	for _, w := range f.Warnings() {
		p.log.Warn("unsafe setting", "setting", w)
	}
	for _, w := range secrets.Exposures(f) {
		p.log.Warn("secret not kept from other users", "setting", w)
	}
	for _, w := range secrets.Faults(f) {
		p.log.Warn("peers may reject our certificate", "setting", w)
	}
	p.announce()
	return nil
}

// socketsOf returns the addresses at which the configuration serves HTTP.
func socketsOf(f *config.File) (want admin.Sockets, err error) {
	want.Metrics = f.Metrics.Listen
	if f.Admin.Off {
		return want, nil
	}
	token, err := secrets.AdminToken(f)
	if err != nil {
		return want, &program.ExitError{Code: 2, Err: &config.Error{Problems: []config.Problem{f.Problem("admin.token_file", err)}}}
	}
	want.Admin = &admin.Socket{At: adminsocket.Address{At: f.Admin.Listen, Unsafe: f.Admin.UnsafeAdminListen, Socket: f.Admin.Socket.Config()},
		Guard: admin.Guard{Hosts: f.Admin.Hosts, Token: token, TokenForAll: f.Admin.TokenFor == config.TokenForAll}}
	return want, nil
}

// ruleSeriesOf returns the metric series of all rules.
func ruleSeriesOf(f *config.File) (out []metrics.Rule) {
	for _, r := range f.RuleLabels() {
		out = append(out, metrics.Rule(r))
	}
	return out
}

// guard keeps clients of dynamic upstreams away from addresses of our own sockets that
// the server does not know.
func (p *Process) guard(addrs []netip.AddrPort) { p.guarded.Store(&addrs) }

func (p *Process) guardedAddrs() []netip.AddrPort {
	if addrs := p.guarded.Load(); addrs != nil {
		return *addrs
	}
	return nil
}

// announce prints every address that has not been printed yet: to standard output, or
// to standard error if standard output belongs to COMMAND.
func (p *Process) announce() {
	var w io.Writer = p.world.Stdout
	if len(p.opts.Command) > 0 {
		w = p.world.Stderr
	}
	bound := map[l4.Bound]bool{}
	for _, b := range p.bound() {
		bound[b] = true
		if !p.announced[b] {
			fmt.Fprintf(w, "listening %s %s\n", b.Name, output.Visible(b.Addr))
		}
	}
	p.announced = bound
}

// bound returns all addresses of listeners, and where HTTP is served.
func (p *Process) bound() []l4.Bound { return append(p.server.Listening(), p.web.Bound()...) }

// config returns the configuration in use as YAML.
func (p *Process) config() ([]byte, error) {
	p.mu.Lock()
	f := p.file
	p.mu.Unlock()
	var b bytes.Buffer
	err := f.PrintYAML(&b)
	return b.Bytes(), err
}

// rules is the upstream of a listener in the configuration in use, or how many rules it
// has.
func (p *Process) rules(listener string) (upstream string, rules int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil { // the admin API is not served yet
		return "", 0
	}
	for _, l := range p.file.Listeners {
		if l.Name == listener {
			return l.Upstream, len(l.Rules)
		}
	}
	return "", 0
}

// loaded is when the configuration in use was loaded.
func (p *Process) loaded() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied
}

func (p *Process) drainConfig() l4.Drain {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l4.Drain{Delay: p.file.Drain.Delay, Timeout: p.file.Drain.Timeout}
}

// Wait serves until a signal, `quit` or the end of COMMAND. Then it drains, and returns
// the error with the exit code.
func (p *Process) Wait() error {
	var command *child
	ready := p.whenReady()
	for {
		select {
		case err := <-ready:
			ready = nil
			if err == nil {
				command, err = p.startCommand()
			}
			if err != nil {
				p.Drain(l4.Drain{})
				return err
			}
		case <-command.ended():
			p.log.Info("COMMAND has ended", "pid", command.cmd.Process.Pid, "state", command.cmd.ProcessState.String())
			p.Drain(l4.Drain{Timeout: p.drainConfig().Timeout}) // load balancers need no notice: the application has ended
			return command.err
		case <-p.ctx.Done():
			err := command.kill()
			p.Drain(l4.Drain{})
			return err
		case u := <-p.upgrades:
			p.upgrade(u)
		case s := <-p.signals:
			switch {
			case s == syscall.SIGHUP:
				p.wantReload()
			case command != nil:
				command.signal(s)
			case s == leaveSignal && len(p.opts.Command) == 0:
				switch {
				case p.manager.socket == "":
					p.log.Warn("signal ignored: no service manager has started this process, which could keep sessions ($NOTIFY_SOCKET)", "signal", s.String())
					continue
				case p.leave():
					return nil
				}
				p.Drain(p.drainConfig())
				return nil
			case ends(s):
				err := p.stoppedBy(s)
				p.Drain(p.drainConfig())
				return err
			}
		}
	}
}

// Drain lets sessions finish as d says. Another SIGTERM, SIGINT or `quit` ends them at
// once. When it returns, no session is left and every record is written.
func (p *Process) Drain(d l4.Drain) {
	p.manager.stopping()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	done := make(chan struct{})
	p.work.Go(func() { p.manager.extend(ctx) })
	p.work.Go(func() {
		defer close(done)
		p.server.Shutdown(ctx, d)
	})
	for {
		select {
		case <-done:
			waitFor(p.records.Wait, recordsTimeout)
			return
		case s := <-p.signals:
			if s == syscall.SIGHUP {
				p.log.Warn("no reload: the process is ending")
			}
			if !ends(s) {
				continue
			}
			p.log.Warn("ending at once", "signal", s.String())
			cancel()
		}
	}
}

const (
	// recordsTimeout bounds the wait for the log lines of the last sessions, which are
	// written after Shutdown has returned.
	recordsTimeout = 2 * time.Second
	// closeTimeout bounds the wait for the goroutines that end with ctx. Only reading a
	// file on a network that hangs can take longer, and nothing waits for that.
	closeTimeout = 5 * time.Second
)

// Close ends everything that is left at once.
func (p *Process) Close() {
	if p.left { // sessions stand still, and nothing here may touch them
		p.log.Close()
		return
	}
	p.cancel()
	p.web.Close()
	waitFor(p.secrets.Wait, closeTimeout)
	waitFor(p.work.Wait, closeTimeout)
	p.log.Close()
}

// waitFor waits for wait to return, at most d.
func waitFor(wait func(), d time.Duration) {
	done := make(chan struct{})
	go func() { // ends with wait
		defer close(done)
		wait()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// Listening returns the addresses of the listeners.
func (p *Process) Listening() []l4.Bound { return p.server.Listening() }
