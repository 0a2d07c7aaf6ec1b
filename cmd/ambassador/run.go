package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"ambassador/certs"
	"ambassador/l4"
)

// serveFlags are the flags of the commands that run an ambassador.
type serveFlags struct {
	admin       string
	logLevel    string
	logFormat   string
	printConfig bool
}

func (f *serveFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.admin, "admin", "", `where the admin API listens: unix:/path or HOST:PORT; "" turns it off (default: a socket of its own)`)
	cmd.Flags().StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error (default info)")
	cmd.Flags().StringVar(&f.logFormat, "log-format", "", "text or json (default: text on a terminal, else json)")
	cmd.Flags().BoolVar(&f.printConfig, "print-config", false, "print the configuration as YAML and exit")
}

// apply overrules the file's sections by the flags that were given.
func (f *serveFlags) apply(cmd *cobra.Command, file *File) error {
	if cmd.Flags().Changed("admin") {
		file.Admin.Listen, file.Admin.Off = strings.TrimSpace(f.admin), f.admin == ""
	}
	if f.logLevel != "" {
		file.Log.Level = f.logLevel
	}
	if f.logFormat != "" {
		file.Log.Format = f.logFormat
	}
	if _, err := parseLevel(file.Log.Level); err != nil {
		return usageError(cmd, fmt.Errorf("--log-level: %w", err))
	}
	if file.Log.Format != "" && file.Log.Format != "text" && file.Log.Format != "json" {
		return usageError(cmd, fmt.Errorf("--log-format %s: use text or json", file.Log.Format))
	}
	return nil
}

// parseLevel reads a log level; empty is info.
func parseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if s == "" {
		return l, nil
	}
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return l, fmt.Errorf("%q is no level; use debug, info, warn or error", s)
	}
	return l, nil
}

// runCommand is `run`.
func (a *app) runCommand() *cobra.Command {
	var (
		flags serveFlags
		path  string
		watch bool
	)
	cmd := &cobra.Command{
		Use: "run [-c FILE] [-- COMMAND …]", Short: "Run what a configuration file says",
		Long: `Runs what a configuration file says, until SIGTERM or SIGINT. With COMMAND, that is started
once every required upstream has been reached; when it ends, so do we, with its exit code.`,
		Example: `  ambassador run -c ambassador.yaml
  ambassador run -c ambassador.yaml -- ./legacy-app --db 127.0.0.1:5432`,
		Args: onlyAfterDash,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := findConfig(path)
			if err != nil {
				return &exitError{Code: 2, Err: err}
			}
			load := func() (*File, error) {
				f, err := loadFile(found, a.env)
				if err != nil {
					return nil, &exitError{Code: 2, Err: err}
				}
				return f, flags.apply(cmd, f)
			}
			f, err := load()
			if err != nil {
				return err
			}
			if flags.printConfig {
				return f.printYAML(a.stdout)
			}
			opts := serveOptions{reload: load, command: args}
			if watch {
				opts.watch = found
			}
			return a.serve(cmd.Context(), f, opts)
		},
	}
	flags.bind(cmd)
	cmd.Flags().StringVarP(&path, "config", "c", "", "the configuration file (default ./ambassador.yaml, then /etc/ambassador/ambassador.yaml)")
	cmd.Flags().BoolVar(&watch, "watch", false, "reload when the configuration file changes")
	return cmd
}

// onlyAfterDash wants every argument behind "--", so that a mistyped flag's
// value is not taken for a command.
func onlyAfterDash(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
		return fmt.Errorf("unexpected %q: COMMAND comes after --", args[0])
	}
	return nil
}

// forwardCommand is `forward`.
func (a *app) forwardCommand() *cobra.Command {
	var (
		flags serveFlags
		what  forwardFlags
	)
	cmd := &cobra.Command{
		Use: "forward --listen ADDR --to ADDR", Short: "One plaintext listener in front of one TLS service, without a file",
		Example: `  ambassador forward --listen 127.0.0.1:5433 --to db.internal:5432 --starttls postgres \
      --cert client.crt --key client.key --ca ca.crt
  ambassador forward --listen unix:/run/app/redis.sock --to redis.internal:6380 --ca ca.crt
  ambassador forward --plain --listen 127.0.0.1:7000 --to 127.0.0.1:8000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := forwardFile(&what)
			if err != nil {
				return &exitError{Code: 2, Err: err}
			}
			if err := flags.apply(cmd, f); err != nil {
				return err
			}
			if flags.printConfig {
				return f.printYAML(a.stdout)
			}
			if problems := f.checkFiles(); len(problems) > 0 {
				return &exitError{Code: 2, Err: &ConfigError{Problems: problems}}
			}
			return a.serve(cmd.Context(), f, serveOptions{})
		},
	}
	what.bind(cmd.Flags())
	flags.bind(cmd)
	return cmd
}

// serveOptions is how a process is run, beside its configuration.
type serveOptions struct {
	// reload reads the configuration again. Nil: there is nothing to read.
	reload func() (*File, error)
	// watch is a file whose change is a reload. Empty: none.
	watch string
	// command is started once ready, and its end is ours. Empty: none.
	command []string
	// signals replaces the process's signals, in tests.
	signals <-chan os.Signal
	// log replaces standard error, in the demo.
	log *slog.Logger
}

// process is one running ambassador.
type process struct {
	// Static after start.
	app     *app
	opts    serveOptions
	ctx     context.Context // its end ends everything at once
	cancel  context.CancelFunc
	log     *slog.Logger
	level   *slog.LevelVar
	metrics *metrics
	server  *l4.Server
	ids     *identities
	quit    chan struct{} // closed by POST /v1/quit
	quitNow sync.Once
	http    []*http.Server
	serving sync.WaitGroup // http
	started time.Time

	reloading sync.Mutex // held during a reload

	mu   sync.Mutex
	file *File // guarded by mu
}

// serve runs an ambassador until it is told to end. It is the one place that
// does. The error is nil after a clean stop.
func (a *app) serve(ctx context.Context, f *File, opts serveOptions) error {
	if err := findCommand(opts.command); err != nil {
		return err
	}
	if opts.signals == nil {
		signals, stop := endSignals()
		defer stop()
		opts.signals = signals
	}
	p, err := a.start(ctx, f, opts)
	if err != nil {
		return err
	}
	defer p.close()
	return p.wait()
}

// endSignals are the signals that wait acts on, until stop.
func endSignals() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// start brings everything up: identities, listeners, admin API. When it returns,
// connections are being accepted and every address has been printed.
func (a *app) start(ctx context.Context, f *File, opts serveOptions) (*process, error) {
	p := &process{app: a, opts: opts, level: new(slog.LevelVar), quit: make(chan struct{}), started: time.Now(), file: f}
	p.ctx, p.cancel = context.WithCancel(ctx)
	level, _ := parseLevel(f.Log.Level) // checked when the file was read
	p.level.Set(level)
	if p.log = opts.log; p.log == nil {
		p.log = newLog(a.stderr, f.Log.Format, p.level)
	}
	p.metrics = newMetrics(buildVersion())
	p.ids = newIdentities(p.ctx, p.log)
	observer := p.metrics.observer()
	count := observer.Ended
	observer.Ended = func(r *l4.Record) {
		count(r)
		logSession(p.log, r)
	}
	p.server = l4.New(p.ctx, l4.Options{Log: p.log, Observer: observer, Inherited: inheritedSockets()})
	p.metrics.attach(p.server, p.ids.statuses)
	for _, w := range f.warnings() {
		p.log.Warn("unsafe setting", "what", w)
	}
	if err := p.apply(f); err != nil {
		p.close()
		return nil, err
	}
	if err := p.listenHTTP(f); err != nil {
		p.close()
		return nil, err
	}
	notifySystemd(daemon.SdNotifyReady)
	return p, nil
}

// apply makes f the configuration in use; on an error nothing has changed.
func (p *process) apply(f *File) error {
	ids := p.ids.prepare(f.identityFiles())
	cfg, err := f.serverConfig(func(name string) *certs.Source { return ids[name].source })
	if err != nil {
		return &exitError{Code: 2, Err: err}
	}
	if err := p.server.Apply(cfg); err != nil {
		return err
	}
	p.ids.commit(ids)
	p.metrics.applied(cfg)
	p.mu.Lock()
	p.file = f
	p.mu.Unlock()
	return nil
}

// listenHTTP binds the admin API and the metrics, and prints every address.
func (p *process) listenHTTP(f *File) error {
	deps := p.adminDeps()
	type bound struct{ name, addr string }
	var all []bound
	for _, l := range p.server.Listening() {
		all = append(all, bound{l.Name, l.Addr})
	}
	if !f.Admin.Off {
		ln, addr, err := p.app.listenAdmin(p.ctx, adminListen{Address: f.Admin.Listen, Unsafe: f.Admin.UnsafeAdminListen})
		switch {
		case err == nil:
			token, err := f.adminToken()
			if err != nil {
				ln.Close()
				return &exitError{Code: 2, Err: err}
			}
			p.serveHTTP(ln, newAdminHandler(deps, adminOptions{TCP: ln.Addr().Network() != "unix", Hosts: f.Admin.Hosts, Token: token}))
			all = append(all, bound{"admin", addr})
		case f.Admin.Listen != "":
			return err
		default:
			p.log.Warn("no admin socket", "cause", err.Error())
		}
	}
	if f.Metrics.Listen != "" {
		ln, err := net.Listen("tcp", f.Metrics.Listen)
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		p.serveHTTP(ln, newMetricsOnlyHandler(deps))
		all = append(all, bound{"metrics", ln.Addr().String()})
	}
	for _, b := range all {
		fmt.Fprintf(p.announce(), "listening %s %s\n", b.name, b.addr)
	}
	return nil
}

// announce is where addresses are printed: COMMAND has standard output alone.
func (p *process) announce() io.Writer {
	if len(p.opts.command) > 0 {
		return p.app.stderr
	}
	return p.app.stdout
}

func (p *process) serveHTTP(ln net.Listener, h http.Handler) {
	srv := newHTTPServer(h, p.log)
	p.http = append(p.http, srv)
	p.serving.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("admin API ended", "cause", err.Error())
		}
	})
}

// adminDeps is what the admin API may see and do.
func (p *process) adminDeps() adminDeps {
	d := adminDepsFor(p.server)
	d.identities = p.ids.statuses
	d.config = p.config
	if p.opts.reload != nil {
		d.reload = func(context.Context) error { return p.reload() }
	}
	d.drain = func() { p.server.Drain(p.drainConfig()) }
	d.quit = func() { p.quitNow.Do(func() { close(p.quit) }) }
	d.metrics = p.metrics.handler()
	d.version, d.started = buildVersion(), p.started
	return d
}

func (p *process) config() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b bytes.Buffer
	err := p.file.printYAML(&b)
	return b.Bytes(), err
}

func (p *process) drainConfig() l4.Drain {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l4.Drain{Delay: p.file.Drain.Delay, Timeout: p.file.Drain.Timeout}
}

// reload reads the configuration again and applies it whole, or not at all.
func (p *process) reload() error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	notifySystemd(reloadingState()...)
	defer notifySystemd(daemon.SdNotifyReady)
	err := p.reloadFile()
	p.metrics.reloaded(err == nil)
	if err != nil {
		p.log.Error("reload failed, the old configuration stays", "cause", err.Error())
		return err
	}
	p.log.Info("reloaded")
	return nil
}

func (p *process) reloadFile() error {
	if p.opts.reload == nil {
		return errors.New("there is no configuration file to read again; certificates are taken up by themselves")
	}
	f, err := p.opts.reload()
	if err != nil {
		return err
	}
	p.mu.Lock()
	old := p.file
	p.mu.Unlock()
	if err := p.apply(f); err != nil {
		return err
	}
	level, _ := parseLevel(f.Log.Level)
	p.level.Set(level)
	for _, section := range f.needRestart(old) {
		p.log.Warn("a change of this section takes a restart", "section", section)
	}
	return nil
}

// needRestart lists the sections that differ and are only read at start.
func (f *File) needRestart(old *File) (sections []string) {
	if f.Admin.Listen != old.Admin.Listen || f.Admin.Off != old.Admin.Off || f.Admin.TokenFile != old.Admin.TokenFile {
		sections = append(sections, "admin")
	}
	if f.Metrics.Listen != old.Metrics.Listen {
		sections = append(sections, "metrics")
	}
	if f.Log.Format != old.Log.Format {
		sections = append(sections, "log.format")
	}
	return sections
}

// wait serves until a signal, the admin API or COMMAND says that it is over,
// then drains.
func (p *process) wait() error {
	var command child
	ready, changed := p.whenReady(), p.watchFile()
	for {
		select {
		case <-ready:
			ready = nil
			c, err := p.app.startChild(p.opts.command)
			if err != nil {
				return err
			}
			command = *c
		case <-command.done:
			p.drain()
			return command.err
		case <-changed:
			p.reload()
		case <-p.quit:
			p.drain()
			return p.endCommand(command)
		case <-p.ctx.Done():
			return p.endCommand(command)
		case s := <-p.opts.signals:
			switch {
			case s == syscall.SIGHUP:
				p.reload()
			case command.done != nil:
				p.app.signalChild(&command, s)
			default:
				p.drain()
				return nil
			}
		}
	}
}

// endCommand ends a COMMAND that outlived us, and gives its exit code. It waits
// for it as long as for a drain.
func (p *process) endCommand(c child) error {
	if c.done == nil {
		return nil
	}
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(p.drainConfig().Timeout):
		c.cmd.Process.Kill()
		<-c.done
	}
	return c.err
}

// drain lets sessions finish as the configuration says; another SIGTERM or
// SIGINT ends them at once.
func (p *process) drain() {
	notifySystemd(daemon.SdNotifyStopping)
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends with the drain
		defer cancel()
		for {
			select {
			case s := <-p.opts.signals:
				if s != syscall.SIGHUP {
					return
				}
			case <-done:
				return
			}
		}
	}()
	p.server.Shutdown(ctx, p.drainConfig())
	close(done)
}

// close ends what is left, at once.
func (p *process) close() {
	p.cancel()
	for _, srv := range p.http {
		srv.Close()
	}
	p.serving.Wait()
	p.server.Shutdown(p.ctx, l4.Drain{})
	p.ids.all.Wait()
}

const (
	// readyPoll is how often readiness is looked at for COMMAND.
	readyPoll = 50 * time.Millisecond
	// readyReminder is how often the log says what COMMAND waits for.
	readyReminder = 5 * time.Second
)

// whenReady is closed once COMMAND may start; nil if there is none.
func (p *process) whenReady() <-chan struct{} {
	if len(p.opts.command) == 0 {
		return nil
	}
	ready := make(chan struct{})
	p.serving.Go(func() {
		said := time.Now()
		for p.ctx.Err() == nil {
			r := p.server.Ready()
			if r.Ready {
				close(ready)
				return
			}
			if time.Since(said) > readyReminder {
				said = time.Now()
				p.log.Warn("COMMAND waits", "for", strings.Join(r.Waiting, "; "))
			}
			sleep(p.ctx, readyPoll)
		}
	})
	return ready
}

// watchPoll is how often the configuration file is looked at. It is small, and
// reading it sees what file events miss: other hosts' writes, replaced folders.
const watchPoll = time.Second

// watchFile sends when the content of the watched file has changed; nil if none is.
func (p *process) watchFile() <-chan struct{} {
	if p.opts.watch == "" {
		return nil
	}
	changed := make(chan struct{})
	p.serving.Go(func() {
		have, _ := os.ReadFile(p.opts.watch)
		for sleep(p.ctx, watchPoll) {
			now, err := os.ReadFile(p.opts.watch)
			if err != nil || bytes.Equal(now, have) {
				continue
			}
			have = now
			select {
			case changed <- struct{}{}:
			case <-p.ctx.Done():
			}
		}
	})
	return changed
}

// sleep waits for d; false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
