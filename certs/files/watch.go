package files

import (
	"context"
	"crypto/tls"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"ambassador/certs"
)

const (
	// PollInterval is how often the files are read without an event: network file
	// systems send none.
	PollInterval = 30 * time.Second
	// settleTime is how long the files must not change before they are read, so that
	// certificate and key are both complete; maxSettle bounds the wait for it.
	settleTime = 50 * time.Millisecond
	maxSettle  = time.Second
)

// Watcher keeps a source current with its files. Make it with Open.
type Watcher struct {
	// Static after construction.
	files  Files
	read   reader // of the files
	source *certs.Source
	log    *slog.Logger
	name   string // of the identity

	reported string // owned by Run; the last error that was reported to the source
}

// Open reads the files into the source for the first time. The error is Load's.
// It is also reported to the source, and the watcher can still be run: Run uses
// the files once they are fixed. A pair that is not valid now is not an error: it
// is published, and the source refuses it.
func Open(f Files, s *certs.Source, log *slog.Logger) (*Watcher, error) {
	w := &Watcher{files: f, read: readFile, source: s, log: log, name: s.Status().Name}
	var cert *tls.Certificate
	var roots *certs.Roots
	err := s.Guard(certs.PartFiles, func() (err error) {
		cert, roots, err = Load(f)
		return err
	})
	if err != nil {
		w.reported = err.Error()
		s.Fail(err)
		return w, err
	}
	s.Publish(cert, roots)
	w.logUnused(roots)
	if err := validity(cert, time.Now()); err != nil {
		log.Warn("identity not usable", "identity", w.name, "cause", f.Certificate()+": "+err.Error())
	}
	return w, nil
}

// validity is certs.Validity; an identity with only roots is always valid.
func validity(cert *tls.Certificate, now time.Time) error {
	if cert == nil {
		return nil
	}
	return certs.Validity(cert.Leaf, now)
}

// Run reads the files at once, and then whenever they change, until ctx ends. It
// leaves no goroutine and no descriptor behind, and may be called again. Files
// that cannot be used are logged and reported to the source once; the source
// keeps its generation.
func (w *Watcher) Run(ctx context.Context) {
	Watch(ctx, w.log.With("identity", w.name), w.files.Paths(), w.look)
}

// look reads the files, and returns when to read them again.
func (w *Watcher) look() time.Duration { return w.update(time.Now()) }

// Watch calls look at once, and then after each change on the way to one of the
// paths, symbolic links included, once the changes have settled. It also calls
// look after the time that the last call returned, at most PollInterval, because
// not every file system reports changes. It ends with ctx, and leaves no
// goroutine and no descriptor behind.
func Watch(ctx context.Context, log *slog.Logger, paths []string, look func() time.Duration) {
	events, err := fsnotify.NewWatcher()
	if err != nil { // usually no inotify instance is left
		log.Warn("files are only polled", "every", PollInterval, "cause", err.Error())
		events = &fsnotify.Watcher{} // never has an event
	} else {
		defer events.Close()
	}
	watchPaths(ctx, events, paths, look)
}

// watchPaths sets the watches before it reads, so that no change is missed in
// between.
func watchPaths(ctx context.Context, events *fsnotify.Watcher, paths []string, look func() time.Duration) {
	for ctx.Err() == nil {
		followed := follow(events, func() []string { return trails(paths) })
		wait(ctx, events, followed, min(look(), PollInterval))
	}
}

// trails lists all paths whose change can change what is read.
func trails(paths []string) (out []string) {
	for _, path := range paths {
		out = append(out, Trail(path)...)
	}
	return out
}

// maxFollows bounds the attempts to watch links that are swapped all the time.
const maxFollows = 10

// follow watches the folders of the trail, and returns the trail that is watched.
// A link that was swapped before its folder was watched makes another trail, so
// it repeats.
func follow(events *fsnotify.Watcher, trail func() []string) []string {
	now := trail()
	for range maxFollows {
		if events.Events == nil {
			break
		}
		watchFolders(events, now)
		watched := now
		if now = trail(); slices.Equal(now, watched) {
			break
		}
	}
	return now
}

// watchFolders watches exactly the folders of the trail. It does not watch the
// files, because such a watch ends when a file is replaced. A folder that cannot
// be watched is left to polling. A folder that is watched already is added again:
// another may have taken its path.
func watchFolders(events *fsnotify.Watcher, trail []string) {
	var folders []string
	for _, path := range trail {
		folders = append(folders, filepath.Dir(path))
	}
	for _, old := range events.WatchList() {
		if !slices.Contains(folders, old) {
			events.Remove(old) // fails if the folder is gone, and its watch with it
		}
	}
	for _, folder := range slices.Compact(slices.Sorted(slices.Values(folders))) {
		events.Add(folder) // failure: see above
	}
}

// wait returns when the trail has changed and settled, after limit, or when ctx
// ends.
func wait(ctx context.Context, events *fsnotify.Watcher, trail []string, limit time.Duration) {
	end := time.NewTimer(limit)
	defer end.Stop()
	quiet := time.NewTimer(limit)
	defer quiet.Stop()
	changed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-quiet.C:
			return
		case <-events.Errors: // events were lost
			return
		case e := <-events.Events:
			if !concerns(e, trail) {
				continue
			}
			quiet.Reset(settleTime)
			if !changed {
				changed = true
				end.Reset(min(limit, maxSettle))
			}
		}
	}
}

// concerns reports whether the event is about a path of the trail or its folder.
// The folder may contain a thousand other files.
func concerns(e fsnotify.Event, trail []string) bool {
	return slices.ContainsFunc(trail, func(path string) bool { return e.Name == path || e.Name == filepath.Dir(path) })
}

// update publishes the content of the files, if it is good, and returns when to
// read them again.
func (w *Watcher) update(now time.Time) time.Duration {
	again := PollInterval
	err := w.source.Guard(certs.PartFiles, func() (err error) {
		again, err = w.publish(now)
		return err
	})
	if err == nil {
		w.reported = ""
	} else {
		w.failed(err)
	}
	return again
}

// failed logs an error and reports it to the source, once.
func (w *Watcher) failed(err error) {
	if text := err.Error(); text != w.reported {
		w.reported = text
		w.source.Fail(err)
		w.logFailure(err)
	}
}

// publish does not replace a valid pair by one that is not valid. It returns when
// to read again: a pair that is not valid yet is read again when it becomes
// valid.
func (w *Watcher) publish(now time.Time) (again time.Duration, err error) {
	cert, roots, err := loadFrom(w.files, w.read)
	if err != nil {
		return PollInterval, err
	}
	if err := validity(cert, now); err != nil && w.source.Ready() == nil {
		again = PollInterval
		if early := cert.Leaf.NotBefore.Sub(now); early > 0 {
			again = min(again, early)
		}
		return again, &FileError{w.files.Certificate(), err}
	}
	old := w.source.Status()
	if w.source.Publish(cert, roots) {
		w.logRenewed(old)
		w.logUnused(roots)
	}
	return PollInterval, nil
}

func (w *Watcher) logRenewed(old certs.Status) {
	if w.files.OnlyRoots() {
		w.log.Info("roots renewed", "file", w.files.CA, "generation", w.source.Status().Generation)
		return
	}
	w.source.LogRenewal(w.log, old)
}

// logUnused logs the certificates that are not used as roots, and the revocation
// lists that make us refuse certificates that are on none.
func (w *Watcher) logUnused(roots *certs.Roots) {
	if roots == nil {
		return
	}
	for _, text := range roots.Unused {
		w.log.Warn("root not used", "identity", w.name, "file", w.files.Roots(), "cause", text)
	}
	unusable, partial := roots.Revoked.Faults(time.Now())
	for _, text := range unusable {
		w.log.Warn("revocation list not usable", "identity", w.name, "file", w.files.CRL, "cause", text)
	}
	for _, text := range partial {
		w.log.Warn("revocation list is partial", "identity", w.name, "file", w.files.CRL, "cause", text)
	}
}

func (w *Watcher) logFailure(err error) {
	if w.files.OnlyRoots() {
		w.log.Warn("roots not renewed", certs.Cause(err)...) // the cause names the file
		return
	}
	w.log.Warn("identity not renewed", append([]any{"identity", w.name}, certs.Cause(err)...)...)
}
