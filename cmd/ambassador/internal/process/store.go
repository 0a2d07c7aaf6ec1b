package process

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/handover"
)

// A restart by systemd that keeps sessions: this process leaves them in systemd's store of
// descriptors, and the next one, which systemd starts, takes them from there. A stop looks
// the same to the process, so systemd says which it is by the signal: RestartKillSignal= of
// the unit is leaveSignal.

// leaveSignal asks a process without COMMAND to leave its sessions in the store, and to end.
const leaveSignal = syscall.SIGUSR2

const (
	// leaveChecks bounds the questions to the next program, during which sessions go on.
	leaveChecks = 30 * time.Second
	// freezeTries is how often the sessions are frozen, if they do not come to rest under
	// load: the other way is to drain them.
	freezeTries = 3
	// askTick is how often eventually asks.
	askTick = 20 * time.Millisecond
)

// leave leaves the sessions to the process that systemd starts next. After true the caller
// ends the process at once: all sessions stand still. After false they go on here.
func (p *Process) leave() bool {
	signal.Ignore(leaveSignal) // systemd sends it to all processes of the unit: it would kill those that check
	p.manager.stopping()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	p.work.Go(func() { p.manager.extend(ctx) })
	err := p.store()
	if err != nil {
		p.log.Error("sessions cannot be left to the next process, and are drained", "cause", err.Error())
	}
	p.left = err == nil
	return p.left
}

// store is leave. After an error nothing has changed.
func (p *Process) store() error {
	switch err := handover.Available(); {
	case err != nil:
		return err
	case !p.opts.alone:
		return errors.New("that is possible for `run`, `forward` and `socks5` alone")
	case !p.server.CanCarry():
		return errors.New("that is not possible with the portable relay")
	}
	next, err := os.Executable()
	if err != nil {
		return fmt.Errorf("the file of the running program: %w", err)
	}
	ctx, cancel := context.WithTimeout(p.ctx, leaveChecks)
	defer cancel()
	if !eventually(ctx, func() bool { return !p.upgrading.Swap(true) }) {
		return errors.New("an upgrade is running")
	}
	defer p.upgrading.Store(false)
	r := &remains{ID: rand.Text()[:10]}
	if r.To, err = p.checkNext(ctx, next); err != nil {
		return err
	}
	if !eventually(ctx, p.reloading.TryLock) {
		return errReloading
	}
	defer p.reloading.Unlock()
	for range freezeTries {
		if err = p.storeOnce(r); err == nil {
			return nil
		}
	}
	return err
}

// eventually asks until the answer is true, or ctx ends.
func eventually(ctx context.Context, ask func() bool) bool {
	tick := time.NewTicker(askTick)
	defer tick.Stop()
	for !ask() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (p *Process) storeOnce(r *remains) error {
	h, more, thaw, err := p.freeze(r)
	if err != nil {
		return err
	}
	if err := handover.Store(p.manager.socket, h, more); err != nil {
		thaw()
		return err
	}
	return nil
}

// lostStored counts the sessions of the process before that could not be taken from the
// store.
func (p *Process) lostStored(h *handover.Received) {
	if h == nil || h.Cause == nil {
		return
	}
	p.log.Error("sessions of the process before have ended with a reset", "sessions", h.Lost, "cause", h.Cause.Error())
	p.metrics.Upgraded(0, h.Lost)
	p.noteUpgrade(&api.Upgrade{At: time.Now(), To: p.world.Version, Ended: h.Lost, Error: fmt.Sprintf("%d sessions of the process before have ended with a reset: %v", h.Lost, h.Cause)})
}
