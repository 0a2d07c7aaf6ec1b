package main

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"ambassador/certs"
	"ambassador/certs/files"
)

// identities keeps the configured identities current: one watcher each.
type identities struct {
	ctx context.Context // ends the watchers
	log *slog.Logger
	all sync.WaitGroup // watchers

	mu      sync.Mutex
	running map[string]*identity // guarded by mu
}

// identity is one that is being watched.
type identity struct {
	files  files.Files
	source *certs.Source
	stop   context.CancelFunc
}

func newIdentities(ctx context.Context, log *slog.Logger) *identities {
	return &identities{ctx: ctx, log: log, running: map[string]*identity{}}
}

// prepare gives the identities of a configuration: those that run and are
// unchanged, and new ones, loaded but not yet watched. Files that cannot be
// used are no obstacle: sessions that need them end with no_identity, and the
// watcher takes them up once they are mended.
func (m *identities) prepare(want map[string]files.Files) map[string]*identity {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := map[string]*identity{}
	for name, f := range want {
		if old := m.running[name]; old != nil && old.files == f {
			next[name] = old
			continue
		}
		id := &identity{files: f, source: certs.NewSource(name)}
		if err := files.LoadInto(f, id.source); err != nil {
			m.log.Error("identity not usable", "identity", name, "cause", err.Error())
		}
		next[name] = id
	}
	return next
}

// commit watches the new ones and stops those that are not wanted any more.
func (m *identities) commit(next map[string]*identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, old := range m.running {
		if next[name] != old {
			old.stop()
		}
	}
	for _, id := range next {
		if id.stop != nil {
			continue
		}
		ctx, cancel := context.WithCancel(m.ctx)
		id.stop = cancel
		m.all.Go(func() { files.Watch(ctx, id.files, id.source, m.log) })
	}
	m.running = next
}

// statuses lists the identities by name.
func (m *identities) statuses() []certs.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []certs.Status
	for _, id := range m.running {
		out = append(out, id.source.Status())
	}
	slices.SortFunc(out, func(a, b certs.Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}
