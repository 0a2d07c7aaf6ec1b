package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/adminsocket"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/cmd/ambassador/internal/metrics"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/secrets"
	"ambassador/l4"
	"ambassador/l4/outcome"
)

// FileOptions are the options of a process that reads its configuration from the file
// at path; edit overrides it. With watch the process reloads when the file changes. A
// pipe cannot be watched.
func FileOptions(path string, env func(string) (string, bool), watch bool, edit func(*config.File)) Options {
	source := &config.Source{Path: path}
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
	// Seen is called with the record of every ended session. It may be nil.
	Seen func(*outcome.Record)
	// Descriptors is how many descriptors the rest of the process may need.
	Descriptors int
	// Signals replaces the process's signals, in tests.
	Signals chan os.Signal
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
	server  *l4.Server
	secrets *secrets.Store
	web     *admin.Endpoints
	manager serviceManager
	signals chan os.Signal // SIGTERM, SIGINT, SIGHUP; `quit` is a SIGTERM
	reloads chan struct{}  // requests for a reload
	work    sync.WaitGroup // all goroutines that end with ctx
	records sync.WaitGroup // sessions whose record is not written yet
	memory  memory
	sandbox *sandbox // set by the first apply, before anything is served; nil: the process is not alone

	guarded   atomic.Pointer[[]netip.AddrPort] // addresses of web; see guard
	reloading sync.Mutex                       // held by callers of apply; guards web and announced
	announced map[l4.Bound]bool

	mu   sync.Mutex
	file *config.File // guarded by mu
}

// Run runs an ambassador until it is told to end. Only Run does that. The error is nil
// after a clean stop.
func Run(ctx context.Context, w program.World, f *config.File, opts Options) error {
	if err := findCommand(opts.Command); err != nil {
		return err
	}
	if err := noSandboxFor(f, opts.Command); err != nil {
		return err
	}
	if opts.Signals == nil {
		signals, stop := EndSignals()
		defer stop()
		opts.Signals = signals
	}
	opts.alone = w.Alone
	p, err := Start(ctx, w, f, opts)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Wait()
}

// EndSignals returns a channel of the signals that Wait handles, until stop is called.
// Meanwhile SIGPIPE is caught and dropped: a log without a reader must not end
// sessions.
func EndSignals() (signals chan os.Signal, stop func()) {
	signals, dropped := make(chan os.Signal, 8), make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Notify(dropped, syscall.SIGPIPE)
	return signals, func() {
		signal.Stop(signals)
		signal.Stop(dropped)
	}
}

// Start starts the identities, the admin API and the listeners. When it returns,
// connections are accepted and every address has been printed. The caller calls Wait or
// Drain, and then Close.
func Start(ctx context.Context, w program.World, f *config.File, opts Options) (*Process, error) {
	p := newProcess(ctx, w, opts)
	if level, err := logs.ParseLevel(f.Log.Level); err == nil {
		p.log.Set(level, f.Log.Format) // apply logs
	}
	p.harden() // before keys are read
	p.reloading.Lock()
	defer p.reloading.Unlock()
	if err := p.apply(f); err != nil {
		p.Close()
		return nil, err
	}
	p.manager.ready(p.server.Ready())
	p.work.Go(p.reloadLoop)
	p.work.Go(p.attendManager)
	p.work.Go(func() { p.memory.run(p.ctx) })
	if opts.watch != nil {
		p.work.Go(p.watchFile)
	}
	return p, nil
}

// newProcess makes the parts and starts none of them.
func newProcess(ctx context.Context, w program.World, opts Options) *Process {
	p := &Process{world: w, opts: opts, log: logs.New(w.Stderr), metrics: metrics.New(w.Version, admin.Part, partReload),
		manager: newServiceManager(w.Env), signals: opts.Signals, reloads: make(chan struct{}, 1)}
	if p.signals == nil {
		p.signals = make(chan os.Signal, 1)
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.secrets = secrets.NewStore(p.ctx, p.log.Logger, p.metrics.Panicked)
	p.server = l4.New(p.ctx, l4.Options{Log: p.log.Logger, Observer: p.observer(), Inherited: inheritedSockets(), Guarded: p.guardedAddrs})
	p.metrics.Attach(p.server, p.secrets.Identities)
	p.web = &admin.Endpoints{Env: w.Env, Log: p.log.Logger, Deps: p.adminDeps(), Connections: admin.Connections(l4.DescriptorLimit()), Panics: p.panicked}
	return p
}

// observer counts every session and writes its log line.
func (p *Process) observer() l4.Observer {
	o := p.metrics.Observer()
	opened, ended := o.Opened, o.Ended
	seen := p.opts.Seen
	if seen == nil {
		seen = func(*outcome.Record) {}
	}
	o.Opened = func(listener string) {
		p.records.Add(1)
		p.memory.happened()
		opened(listener)
	}
	o.Ended = func(r *outcome.Record) {
		defer p.records.Done()
		p.memory.happened()
		ended(r)
		seen(r)
		p.log.Session(r)
	}
	return o
}

// adminDeps is what the admin API can read and do.
func (p *Process) adminDeps() admin.Deps {
	d := admin.DepsFor(p.server)
	d.Identities, d.Users, d.Rules = p.secrets.Identities, p.secrets.UsersFiles, p.rules
	d.Config, d.Sandbox = p.config, p.sandboxed
	if p.opts.Load != nil {
		d.Reload = func(context.Context) error { return p.reload() }
	}
	d.Drain = func() { p.server.Drain(p.drainConfig()) }
	d.Quit = p.Quit
	d.Metrics = p.metrics.Handler()
	d.Version, d.Started = p.world.Version, time.Now()
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

func (p *Process) attendManager() { p.manager.attend(p.ctx, p.server.Ready) }

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
	cfg, err := f.ServerConfig(config.Parts{Identity: named.Identity, Roots: named.Roots, Users: named.Users, Login: secrets.ProbeLogin, Ask: askHTTP})
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
	p.secrets.Commit(named)
	p.metrics.Applied(cfg, ruleSeriesOf(f))
	p.web.Commit(web)
	p.guard(p.web.Addrs(nil))
	p.log.Set(level, f.Log.Format)
	p.mu.Lock()
	p.file = f
	p.mu.Unlock()
	for _, w := range f.Warnings() {
		p.log.Warn("unsafe setting", "setting", w)
	}
	for _, w := range secrets.Exposures(f) {
		p.log.Warn("secret not kept from other users", "setting", w)
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
	want.Admin = &admin.Socket{At: adminsocket.Address{At: f.Admin.Listen, Unsafe: f.Admin.UnsafeAdminListen},
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
	all := append(p.server.Listening(), p.web.Bound()...)
	bound := map[l4.Bound]bool{}
	for _, b := range all {
		bound[b] = true
		if !p.announced[b] {
			fmt.Fprintf(w, "listening %s %s\n", b.Name, output.Visible(b.Addr))
		}
	}
	p.announced = bound
}

// config returns the configuration in use as YAML.
func (p *Process) config() ([]byte, error) {
	p.mu.Lock()
	f := p.file
	p.mu.Unlock()
	var b bytes.Buffer
	err := f.PrintYAML(&b)
	return b.Bytes(), err
}

// rules is how many rules a listener has in the configuration in use.
func (p *Process) rules(listener string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil { // the admin API is not served yet
		return 0
	}
	for _, l := range p.file.Listeners {
		if l.Name == listener {
			return len(l.Rules)
		}
	}
	return 0
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
		case <-ready:
			ready = nil
			c, err := p.startCommand()
			if err != nil {
				p.Drain(l4.Drain{})
				return err
			}
			command = c
		case <-command.ended():
			p.log.Info("COMMAND has ended", "pid", command.cmd.Process.Pid, "state", command.cmd.ProcessState.String())
			p.Drain(l4.Drain{Timeout: p.drainConfig().Timeout}) // load balancers need no notice: the application has ended
			return command.err
		case <-p.ctx.Done():
			err := command.kill()
			p.Drain(l4.Drain{})
			return err
		case s := <-p.signals:
			switch {
			case s == syscall.SIGHUP:
				p.wantReload()
			case command != nil:
				command.signal(s)
			default:
				p.Drain(p.drainConfig())
				return nil
			}
		}
	}
}

func (p *Process) startCommand() (*child, error) {
	c, err := startChild(p.world, p.opts.Command)
	if err == nil {
		p.log.Info("COMMAND is started", "command", p.opts.Command[0], "pid", c.cmd.Process.Pid)
	}
	return c, err
}

// Drain lets sessions finish as d says. Another SIGTERM, SIGINT or `quit` ends them at
// once. When it returns, no session is left and every record is written.
func (p *Process) Drain(d l4.Drain) {
	p.manager.stopping()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	done := make(chan struct{})
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

// whenReady returns a channel that is closed when COMMAND may start; nil if there is no
// COMMAND.
func (p *Process) whenReady() <-chan struct{} {
	if len(p.opts.Command) == 0 {
		return nil
	}
	ready := make(chan struct{})
	p.work.Go(func() {
		if awaitReady(p.ctx, p.server.Ready, p.log.Logger) {
			close(ready)
		}
	})
	return ready
}

const (
	// readyInterval is how often readiness is checked.
	readyInterval = 50 * time.Millisecond
	// readyReminder is how often the log says why COMMAND has not started.
	readyReminder = 5 * time.Second
)

// awaitReady calls ask until the process is ready. Every readyReminder it logs why the
// process is not ready. It returns false if ctx ended before.
func awaitReady(ctx context.Context, ask func() l4.Readiness, log *slog.Logger) bool {
	start := time.Now()
	said := start
	for {
		r := ask()
		if r.Ready {
			return true
		}
		if time.Since(said) >= readyReminder {
			said = time.Now()
			log.Warn("COMMAND waits until we are ready", "since", time.Since(start).Round(time.Second), "for", strings.Join(r.Waiting, "; "))
		}
		if !sleep(ctx, readyInterval) {
			return false
		}
	}
}

// Listening returns the addresses of the listeners.
func (p *Process) Listening() []l4.Bound { return p.server.Listening() }
