package process

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/admin"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/handover"
	"ambassador/cmd/ambassador/internal/output"
	"ambassador/cmd/ambassador/internal/program"
	"ambassador/cmd/ambassador/internal/report"
	"ambassador/cmd/ambassador/internal/secrets"
	"ambassador/l4"
	"ambassador/l4/carry"
	"ambassador/l4/outcome"
)

// An upgrade in place: another program replaces this one in the same process and goes on
// with the sockets, sessions and counters. Nothing has changed until the exec.

const (
	// checkTimeout bounds each question to the next program.
	checkTimeout = 20 * time.Second
	// checkOutput bounds what is kept of its answer, in bytes.
	checkOutput = 8 << 10
	// reloadTimeout bounds the wait for a reload, in which signals wait too.
	reloadTimeout = 5 * time.Second
	// frozenLog bounds the wait for the log's reader while no byte moves.
	frozenLog = 50 * time.Millisecond
)

// remains is what the process itself leaves to the next program.
type remains struct {
	ID        string                `json:"id"` // of the upgrade
	To        string                `json:"to"` // the version that was expected
	Started   time.Time             `json:"started"`
	Frozen    time.Time             `json:"frozen"` // since then no byte moves
	Report    report.Memory         `json:"report"`
	Metrics   json.RawMessage       `json:"metrics"`
	Web       []admin.CarriedSocket `json:"web"`
	Inherited []inheritedSocket     `json:"inherited,omitempty"`
	Announced []l4.Bound            `json:"announced"`
	Sandbox   *sandboxRemains       `json:"sandbox,omitempty"`
}

// inheritedSocket is a socket that systemd has passed.
type inheritedSocket struct {
	Name string `json:"name"`
	FD   int    `json:"fd"`
}

// upgrade is an upgrade that has passed its checks.
type upgrade struct {
	plan api.UpgradePlan
	file os.FileInfo // the next program, as it was checked
}

// unchanged returns an error if the file of the next program is not the one that was
// checked. A descriptor would not help: the program would be named after its number, and
// a file can be overwritten in place.
func (u *upgrade) unchanged() error {
	now, err := os.Stat(u.plan.Binary)
	if err == nil && (!os.SameFile(u.file, now) || now.Size() != u.file.Size() || !now.ModTime().Equal(u.file.ModTime())) {
		err = fmt.Errorf("%s has changed since it was checked; upgrade again", u.plan.Binary)
	}
	return err
}

// checkOnly checks the configuration for the program before, which asks by
// handover.CheckVariable whether this one can take its place.
func checkOnly(w program.World, f *config.File) error {
	if err := config.ErrorOf(secrets.Check(f)); err != nil {
		return &program.ExitError{Code: 2, Err: err}
	}
	_, err := fmt.Fprintln(w.Stdout, "ok")
	return err
}

// mayUpgrade returns why this process cannot be upgraded in place; nil if it can.
func (p *Process) mayUpgrade() error {
	switch err := handover.Available(); {
	case err != nil:
		return err
	case len(p.opts.Command) > 0:
		return errors.New("an upgrade in place is not possible with COMMAND, whose parent is this program; restart both")
	case !p.opts.alone:
		return errors.New("an upgrade in place is possible for `run`, `forward` and `socks5` alone")
	case !p.server.CanCarry():
		return errors.New("an upgrade in place is not possible with the portable relay")
	}
	return losesCapabilities()
}

// Upgrade is admin.Deps.Upgrade.
func (p *Process) Upgrade(ctx context.Context, req admin.UpgradeRequest) (plan api.UpgradePlan, begin func(), err error) {
	if err := p.mayUpgrade(); err != nil {
		return plan, nil, err
	}
	plan.From, plan.Binary = p.world.Version, req.Binary
	if plan.Binary == "" {
		if plan.Binary, err = os.Executable(); err != nil {
			return plan, nil, fmt.Errorf("the file of the running program: %w; give --binary", err)
		}
	}
	file, err := os.Stat(plan.Binary) // may wait for a host that is gone: not in the place of the one upgrade
	if err != nil {
		return plan, nil, err
	}
	if p.upgrading.Swap(true) { // its questions too: each starts a process, and the reaper waits for one
		return plan, nil, errors.New("another upgrade is running")
	}
	defer func() {
		if begin == nil {
			p.upgrading.Store(false)
		}
	}()
	if plan.To, err = p.checkNext(ctx, plan.Binary); err != nil {
		return plan, nil, err
	}
	if err = p.fitsSandbox(); err != nil {
		return plan, nil, err
	}
	plan.Carriable = p.server.Carriable()
	if req.Wait {
		plan.Wait = outcome.Seconds(p.drainConfig().Timeout)
	}
	if req.DryRun {
		return plan, nil, nil
	}
	plan.ID = rand.Text()[:10]
	return plan, func() { p.work.Go(func() { p.beginUpgrade(&upgrade{plan, file}) }) }, nil
}

// beginUpgrade waits if that is wanted, and hands the upgrade to Wait, which handles
// signals and so cannot lose one.
func (p *Process) beginUpgrade(u *upgrade) {
	p.log.Info("upgrading", "binary", u.plan.Binary, "version", u.plan.To, "sessions", u.plan.Carried)
	if u.plan.Wait > 0 {
		p.server.DrainUncarriable(p.ctx, time.Duration(u.plan.Wait))
	}
	p.otlp.Flush(p.ctx)
	select {
	case p.upgrades <- u:
	case <-p.ctx.Done():
	}
}

// checkNext asks the next program for its version, and lets it check the command line and
// the configuration that it would be started with. It returns the version.
func (p *Process) checkNext(ctx context.Context, binary string) (version string, err error) {
	answer, err := p.askNext(ctx, binary, []string{"version", "--json"})
	if err != nil {
		return "", fmt.Errorf("%s: %w", binary, p.explainSandbox(err))
	}
	var v struct {
		Version  string
		Handover int
	}
	if json.Unmarshal(answer, &v) != nil || v.Version == "" {
		return "", fmt.Errorf("%s: its answer to `version --json` is not that of an ambassador", binary)
	}
	if v.Handover != carry.Version {
		return "", fmt.Errorf("%s: version %s takes over sessions in form %d, and this one leaves them in form %d (0 is none); restart instead", binary, v.Version, v.Handover, carry.Version)
	}
	if _, err := p.askNext(ctx, binary, os.Args[1:], handover.CheckVariable+"=1"); err != nil {
		return "", fmt.Errorf("%s: it refuses the configuration: %w", binary, err)
	}
	return v.Version, nil
}

// fitsSandbox checks that the configuration, as it is now, works inside the sandbox. A
// configuration that only the next program understands is left to that.
func (p *Process) fitsSandbox() error {
	ctx, cancel := context.WithTimeout(p.ctx, reloadTimeout)
	defer cancel()
	if !eventually(ctx, p.reloading.TryLock) {
		return errReloading
	}
	defer p.reloading.Unlock()
	if p.opts.Load == nil || p.sandbox == nil {
		return nil
	}
	f, err := p.opts.Load()
	if err != nil {
		return nil
	}
	return p.withinSandbox(f)
}

// askNext runs a program and returns its output. The error has what it said.
func (p *Process) askNext(ctx context.Context, binary string, args []string, env ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var out, failed bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &limited{&out}, &limited{&failed}, time.Second
	cmd.Env = append(os.Environ(), env...)
	if err := p.reaper.start(cmd); err != nil {
		return nil, fmt.Errorf("it cannot be started: %w", err)
	}
	defer p.reaper.release()
	err := cmd.Wait()
	switch said := strings.TrimSpace(failed.String()); {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("no answer within %v", checkTimeout)
	case err != nil && said != "":
		return nil, errors.New(strings.TrimPrefix(output.Visible(said), "ambassador: "))
	case err != nil:
		return nil, err
	}
	return out.Bytes(), nil
}

// limited keeps the beginning of what is written.
type limited struct{ *bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	if room := checkOutput - l.Len(); room > 0 {
		l.Buffer.Write(b[:min(len(b), room)])
	}
	return len(b), nil
}

// upgrade replaces this program. It returns only if that fails: then nothing has changed.
func (p *Process) upgrade(u *upgrade) {
	defer p.upgrading.Store(false)
	err := p.replaceNow(u)
	p.log.Error("upgrade failed; the running program goes on", "binary", u.plan.Binary, "cause", err.Error())
	p.noteUpgrade(&api.Upgrade{ID: u.plan.ID, At: time.Now(), From: u.plan.From, To: u.plan.To, Error: err.Error()})
}

// errReloading means that a reload has not ended: a file of it may be on a host that is gone.
var errReloading = errors.New("a reload is running, and has not ended for a while")

// replaceNow is replace while nothing is reloaded.
func (p *Process) replaceNow(u *upgrade) error {
	ctx, cancel := context.WithTimeout(p.ctx, reloadTimeout)
	defer cancel()
	if !eventually(ctx, p.reloading.TryLock) {
		return errReloading
	}
	defer p.reloading.Unlock()
	p.manager.reloading()
	defer func() { p.manager.ready(p.readiness()) }()
	return p.replace(u)
}

// errSignal means that a signal came first.
var errSignal = errors.New("a signal to the process came first")

func (p *Process) replace(u *upgrade) error {
	r := &remains{ID: u.plan.ID, To: u.plan.To, Started: p.started, Announced: p.bound(), Sandbox: p.sandbox.remains()}
	more, err := r.addInherited(p)
	if err != nil {
		return fmt.Errorf("describe the sockets of systemd: %w", err)
	}
	h, web, thaw, err := p.freeze(r)
	if err != nil {
		return err
	}
	defer thaw()
	p.mu.Lock()
	h.Config = p.file.Text()
	p.mu.Unlock()
	defer signal.Notify(p.signals, endSignals...) // noSignal may ignore some
	return handover.Exec(u.plan.Binary, h, append(more, web...), func() error {
		if err := u.unchanged(); err != nil {
			return err
		}
		return p.noSignal()
	})
}

// freeze stops the server where it is, and returns its state with r, and descriptors
// besides those of the server. No byte moves until thaw.
func (p *Process) freeze(r *remains) (h *carry.Handover, more []int, thaw func(), err error) {
	if _, err := p.metrics.Carry(); err != nil { // while nothing has changed
		return nil, nil, nil, fmt.Errorf("read the metrics: %w", err)
	}
	p.log.Close() // while bytes move: its reader may be slow
	r.Frozen = time.Now()
	state, thaw, err := p.server.Freeze(p.ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	h, more, err = p.describe(r, state)
	if err != nil {
		thaw()
		return nil, nil, nil, err
	}
	p.log.Flush(frozenLog)
	return h, more, thaw, nil
}

// describe completes r, and puts it together with the state of the server.
func (p *Process) describe(r *remains, state *carry.Server) (h *carry.Handover, more []int, err error) {
	r.Report = p.opts.Report.Memory()
	if r.Metrics, err = p.lastMetrics(); err != nil {
		return nil, nil, fmt.Errorf("read the metrics: %w", err)
	}
	if r.Web, err = p.web.Carry(); err != nil {
		return nil, nil, fmt.Errorf("describe the sockets: %w", err)
	}
	for _, c := range r.Web {
		more = append(more, c.FD)
	}
	text, err := json.Marshal(r)
	return &carry.Handover{From: p.world.Version, Server: *state, Process: text}, more, err
}

// lastMetrics are the metrics for the next program. Sessions that no collector has taken
// until now are lost in the exec.
func (p *Process) lastMetrics() ([]byte, error) {
	p.otlp.CountUnsent(true)
	defer p.otlp.CountUnsent(false)
	return p.metrics.Carry()
}

// noSignal, called just before the exec, returns an error if a signal that ends the
// process has come, which Wait handles then. A reload that is wanted is part of the
// upgrade, and is done afterwards if that fails.
func (p *Process) noSignal() error {
	for {
		select {
		case s := <-p.signals:
			if s == syscall.SIGHUP {
				p.wantReload()
				continue
			}
			select {
			case p.signals <- s:
			default: // others wait already
			}
			return errSignal
		default:
			signal.Ignore(syscall.SIGHUP, syscall.SIGINT) // they would end the next program before it handles them
			return p.ctx.Err()
		}
	}
}

// addInherited adds the sockets that systemd has passed, and returns their descriptors.
func (r *remains) addInherited(p *Process) (fds []int, err error) {
	for name, files := range p.inherited {
		for _, f := range files {
			raw, err := f.SyscallConn()
			if err != nil {
				return nil, err
			}
			if err := raw.Control(func(fd uintptr) {
				r.Inherited = append(r.Inherited, inheritedSocket{name, int(fd)})
				fds = append(fds, int(fd))
			}); err != nil {
				return nil, err
			}
		}
	}
	return fds, nil
}

// takeOver prepares the process to go on with what the program before has left. Apply
// does it.
func (p *Process) takeOver(h *handover.Received) error {
	r := &remains{}
	if err := json.Unmarshal(h.Process, r); err != nil {
		return fmt.Errorf("the state of the process: %w", err)
	}
	p.remains = r
	if !h.Stored { // else it is another process
		p.started = r.Started
	}
	for i := range r.Web {
		r.Web[i].FD = h.Number(r.Web[i].FD)
	}
	p.opts.Report = report.Recall(r.Report)
	p.sandbox = r.Sandbox.sandbox()
	p.announced = map[l4.Bound]bool{}
	for _, b := range r.Announced {
		p.announced[b] = true
	}
	for _, s := range r.Inherited {
		dup, err := syscall.Dup(s.FD) // the other stays open for the way back
		if err != nil {
			return os.NewSyscallError("dup", err)
		}
		syscall.CloseOnExec(dup)
		p.inherited[s.Name] = append(p.inherited[s.Name], os.NewFile(uintptr(dup), s.Name))
	}
	return nil
}

// recallMetrics goes on with the counters of the program before, if there was one. It is
// called before they are served: a counter must not fall.
func (p *Process) recallMetrics() {
	if p.remains == nil {
		return
	}
	if err := p.metrics.Recall(p.remains.Metrics); err != nil {
		p.log.Error("counters begin at zero", "cause", err.Error())
	}
}

// tookOver ends an upgrade: the sessions go on.
func (p *Process) tookOver(h *handover.Received) {
	r, n := p.remains, p.server.TakenOver()
	for _, s := range r.Inherited {
		syscall.Close(s.FD)
	}
	up := &api.Upgrade{ID: r.ID, At: time.Now(), From: h.From, To: p.world.Version, Carried: n.Carried, Ended: n.Ended, Pause: outcome.Seconds(time.Since(r.Frozen))}
	if h.Failed != "" {
		up.To, up.Error = r.To, fmt.Sprintf("version %s could not take over, and went back: %s", r.To, h.Failed)
		p.log.Error("upgrade failed; the program before goes on", "cause", h.Failed, "carried", n.Carried, "ended", n.Ended, "pause", time.Duration(up.Pause))
	} else {
		p.log.Info(tookOverText(h), "from", up.From, "to", up.To, "carried", n.Carried, "ended", n.Ended, "pause", time.Duration(up.Pause))
	}
	p.metrics.Upgraded(n.Carried, n.Ended)
	p.noteUpgrade(up)
	p.remains, h.Handover = nil, nil // they have much memory
}

func tookOverText(h *handover.Received) string {
	if h.Stored {
		return "sessions of the process before go on"
	}
	return "upgraded"
}

// noteUpgrade keeps the result of an upgrade for the status.
func (p *Process) noteUpgrade(u *api.Upgrade) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastUpgrade = u
}

func (p *Process) upgraded() *api.Upgrade {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastUpgrade
}

// handoverServer returns the state for the server; nil if there is none.
func handoverServer(h *handover.Received) *carry.Server {
	if !h.Pending() {
		return nil
	}
	return &h.Server
}

// explainSandbox adds what to do if the sandbox keeps the process from a program.
func (p *Process) explainSandbox(err error) error {
	if p.sandbox == nil || p.sandbox.files == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	exe, _ := os.Executable()
	return fmt.Errorf("%w; the sandbox of the running program allows to start programs in the folder of %s alone: put the new version there, or set sandbox.landlock: off (from the next start on)", err, cmp.Or(exe, "the running one"))
}
