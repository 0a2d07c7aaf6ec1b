package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/l4"
)

// wantReload asks for a reload and does not wait for it. Requests during a reload are
// combined into one.
func (p *Process) wantReload() {
	select {
	case p.reloads <- struct{}{}:
	default:
	}
}

// reloadLoop runs the reloads for SIGHUP and --watch, so that a slow reload does not
// delay the next signal.
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

// reload applies the current configuration completely. On an error the old one stays in
// effect completely. Without a file it only reloads the identities.
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
	p.noteReload(err)
	p.manager.ready(p.readiness())
	p.metrics.Reloaded(err == nil)
	if err != nil {
		p.log.Error("reload failed; the old configuration stays in use", "cause", err.Error())
		return err
	}
	p.log.Info("reloaded")
	return nil
}

// noteReload keeps the result of a reload for the status.
func (p *Process) noteReload(err error) {
	r := &api.Reload{At: time.Now()}
	if err != nil {
		r.Error = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastReload = r
}

// reloaded returns the result of the last reload; nil if there was none.
func (p *Process) reloaded() *api.Reload {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastReload
}

// readiness is the server's, with what is wrong with the rest of the process.
func (p *Process) readiness() l4.Readiness {
	r := p.server.Ready()
	p.mu.Lock()
	last, applied := p.lastReload, p.applied
	p.mu.Unlock()
	if last != nil && last.Error != "" {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the reload at %s failed, and the configuration of %s is still in use: %s",
			last.At.Format(time.RFC3339), applied.Format(time.RFC3339), strings.ReplaceAll(last.Error, "\n", "; ")))
	}
	r.Warnings = append(r.Warnings, p.web.Lost()...)
	return r
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

// watchInterval is how often --watch reads the file, which has a few KiB. Polling also
// detects what file events miss: writes by other hosts, and folders that are replaced
// by a link, as Kubernetes does.
const watchInterval = 500 * time.Millisecond

// fileWatch knows the content of the file that is in use.
type fileWatch struct {
	path string
	used []byte
}

// newFileWatch starts with the file's current content. Call it before the file is
// loaded, so that a change in between is detected.
func newFileWatch(path string) *fileWatch {
	used, _ := certs.ReadFile(path, config.MaxSize) // loading reports the error
	return &fileWatch{path, used}
}

// run calls changed when the content has changed and is the same at two checks in a
// row. So a file that is written in pieces is read when it is complete. It ends with
// ctx.
func (w *fileWatch) run(ctx context.Context, changed func()) {
	seen := w.used
	for certs.Pause(ctx, watchInterval) == nil {
		now, err := certs.ReadFile(w.path, config.MaxSize)
		if err != nil {
			continue // the file is being replaced; nothing has changed until it exists again
		}
		if bytes.Equal(now, seen) && !bytes.Equal(now, w.used) {
			w.used = now
			changed()
		}
		seen = now
	}
}
