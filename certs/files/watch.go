package files

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"ambassador/certs"
)

const (
	// PollInterval is how often the files are read where no event says that they
	// have changed: network file systems send none.
	PollInterval = 30 * time.Second
	// settleTime is how long the files must be quiet before they are read, so that
	// certificate and key are both there; maxSettle bounds it.
	settleTime = 50 * time.Millisecond
	maxSettle  = time.Second
)

// Watcher keeps a source current with its files. Make it with Open.
type Watcher struct {
	files  Files
	source *certs.Source
	log    *slog.Logger
	have   *contents // what the source's generation was made of
	said   string    // the last error that was told
}

// Open reads the files into the source for the first time. An error says why
// they cannot be used; the watcher is good nevertheless, and Run takes them up
// once they are mended.
func Open(f Files, s *certs.Source, log *slog.Logger) (*Watcher, error) {
	w := &Watcher{files: f, source: s, log: log}
	now, err := read(f)
	if err == nil {
		var cert *tls.Certificate
		var roots *x509.CertPool
		if cert, roots, err = now.parse(f); err == nil {
			w.have = now
			s.Publish(cert, roots)
			return w, nil
		}
	}
	w.said = err.Error()
	s.Fail(err)
	return w, err
}

// Run follows the files until ctx ends. A set of files that cannot be used is
// logged once and told to the source, whose generation stays.
func (w *Watcher) Run(ctx context.Context) {
	// Without events (no inotify instances left) the poll does it alone.
	events, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("files are only polled", "identity", w.source.Status().Name, "every", PollInterval, "cause", err.Error())
		w.loop(ctx, nil, nil)
		return
	}
	defer events.Close()
	w.loop(ctx, events, w.look)
}

// loop reads the files whenever they may have changed. Look, if not nil, says
// anew which folders to watch, since symbolic links may lead elsewhere now.
func (w *Watcher) loop(ctx context.Context, events *fsnotify.Watcher, look func(*fsnotify.Watcher)) {
	var changed <-chan fsnotify.Event
	var broken <-chan error
	if events != nil {
		changed, broken = events.Events, events.Errors
	}
	poll := time.NewTicker(PollInterval)
	defer poll.Stop()
	for {
		if look != nil {
			look(events)
		}
		w.update()
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-broken: // an overflow: events were lost, so look
		case <-changed:
			quiet(ctx, changed)
		}
	}
}

// quiet returns when no event has come for settleTime.
func quiet(ctx context.Context, changed <-chan fsnotify.Event) {
	end := time.After(maxSettle)
	for {
		select {
		case <-changed:
		case <-time.After(settleTime):
			return
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}

// look watches the folders of the files and of what they are links to: a watch
// of a file itself is lost when the file is replaced.
func (w *Watcher) look(events *fsnotify.Watcher) {
	var want []string
	for _, path := range []string{w.files.Cert, w.files.Key, w.files.CA} {
		if path == "" {
			continue
		}
		want = append(want, filepath.Dir(path))
		if real, err := filepath.EvalSymlinks(path); err == nil {
			want = append(want, filepath.Dir(real))
		}
	}
	for _, have := range events.WatchList() {
		if !slices.Contains(want, have) {
			events.Remove(have)
		}
	}
	for _, dir := range want {
		events.Add(dir) // a folder that is not there is found by the poll
	}
}

// update publishes what the files hold now, if it is new and good.
func (w *Watcher) update() {
	now, err := read(w.files)
	if err == nil && now.equal(w.have) {
		return
	}
	if err == nil {
		err = w.publish(now)
	}
	switch {
	case err == nil:
		w.said = ""
	case err.Error() != w.said:
		w.said = err.Error()
		w.source.Fail(err)
		w.log.Warn("identity not renewed", "identity", w.source.Status().Name, "cause", err.Error())
	}
}

func (w *Watcher) publish(now *contents) error {
	cert, roots, err := now.parse(w.files)
	if err != nil {
		return err
	}
	if err := certs.Validity(cert.Leaf, time.Now()); err != nil && w.source.Ready() == nil {
		return &FileError{w.files.Cert, err}
	}
	old := w.source.Status()
	w.source.Publish(cert, roots)
	w.have = now
	st := w.source.Status()
	w.log.Info("identity renewed", "identity", st.Name, "generation", st.Generation,
		"serial", st.Serial, "not_after", st.NotAfter, "was_not_after", old.NotAfter)
	return nil
}
