package process

import (
	"bytes"
	"context"
	"errors"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/config"
)

// wantReload asks for a reload and does not wait for it. Several that are asked
// for in the course of one are one.
func (p *Process) wantReload() {
	select {
	case p.reloads <- struct{}{}:
	default:
	}
}

// reloadLoop does the reloads that SIGHUP and --watch ask for, so that a slow one
// does not keep the next signal waiting.
func (p *Process) reloadLoop() {
	for {
		select {
		case <-p.reloads:
			p.reload() //nolint:errcheck // it has logged its error
		case <-p.ctx.Done():
			return
		}
	}
}

// reload takes up the configuration as it is now, whole; on an error the old one
// stays, whole. Without a file only the identities are loaded again.
func (p *Process) reload() error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	if p.opts.Load == nil {
		p.secrets.Refresh()
		p.log.Info("no configuration file to reload; the certificates and users are looked at")
		return nil
	}
	p.manager.reloading()
	err := p.survive(partReload, p.reloadFile)
	p.manager.ready(p.server.Ready())
	p.metrics.Reloaded(err == nil)
	if err != nil {
		p.log.Error("reload failed; the old configuration stays in use", "cause", err.Error())
		return err
	}
	p.log.Info("reloaded")
	return nil
}

func (p *Process) reloadFile() error {
	if p.ctx.Err() != nil {
		return errors.New("the process is ending")
	}
	f, err := p.opts.Load()
	if err != nil {
		return err
	}
	return p.apply(f)
}

// watchInterval is how often --watch looks at the file. A look is a read of a few
// KiB; it also sees what file events miss: writes of other hosts, and folders that
// are replaced by a link, as Kubernetes does.
const watchInterval = 500 * time.Millisecond

// fileWatch knows the content of a file that is in use.
type fileWatch struct {
	path string
	used []byte
}

// newFileWatch begins with what the file has now. Make it before the file is
// loaded: a change in between is then seen.
func newFileWatch(path string) *fileWatch {
	used, _ := certs.ReadFile(path, config.MaxSize) // loading says what is wrong with it
	return &fileWatch{path, used}
}

// run calls changed when the content is another one and has been so for two
// looks: a file that is written in pieces is read when it is whole. It ends with ctx.
func (w *fileWatch) run(ctx context.Context, changed func()) {
	seen := w.used
	for sleep(ctx, watchInterval) {
		now, err := certs.ReadFile(w.path, config.MaxSize)
		if err != nil {
			continue // it is being replaced; until it is there again, nothing has changed
		}
		if bytes.Equal(now, seen) && !bytes.Equal(now, w.used) {
			w.used = now
			changed()
		}
		seen = now
	}
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
