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

// identities keeps the configured identities current, or the files of tls.ca,
// which are identities with nothing but roots: one watcher each.
type identities struct {
	// Static after construction.
	ctx context.Context // ends the watchers
	log *slog.Logger
	all sync.WaitGroup // the watchers

	mu      sync.Mutex
	running identitySet // guarded by mu
}

// identitySet are the identities of one configuration, by name.
type identitySet map[string]*identity

// identity is one that is, or is to be, watched.
type identity struct {
	// Static after construction.
	files   files.Files
	source  *certs.Source
	watcher *files.Watcher

	stop  context.CancelFunc // guarded by identities.mu; nil before commit
	again context.CancelFunc // guarded by identities.mu; lets the watcher look anew
}

// source is the identity of that name; nil if there is none.
func (s identitySet) source(name string) *certs.Source {
	if id := s[name]; id != nil {
		return id.source
	}
	return nil
}

func newIdentities(ctx context.Context, log *slog.Logger) *identities {
	return &identities{ctx: ctx, log: log}
}

// prepare gives the identities of a configuration: those that run and are
// unchanged, and new ones, loaded but not yet watched. Failed has those whose
// files cannot be used. A certificate that is only not valid now is no failure:
// its upstreams are not ready until a good one is there. Nothing has changed
// before commit.
func (m *identities) prepare(want map[string]files.Files) (next identitySet, failed map[string]error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, failed = identitySet{}, map[string]error{}
	for name, f := range want {
		if old := m.running[name]; old != nil && old.files == f {
			next[name] = old
			continue
		}
		id := &identity{files: f, source: certs.NewSource(name)}
		var err error
		if id.watcher, err = files.Open(f, id.source, m.log); err != nil {
			failed[name] = err
		}
		next[name] = id
	}
	return next, failed
}

// identityProblems are mistakes in the files of identities, at their places.
func (f *File) identityProblems(failed map[string]error) []Problem {
	var problems []Problem
	for _, id := range f.Identities {
		if failed[id.Name] == nil {
			continue
		}
		for _, err := range flatten(failed[id.Name]) {
			problems = append(problems, f.problem("identities."+id.Name+".files."+id.keyOf(err), err))
		}
	}
	return problems
}

// commit watches the new ones and stops those that are not wanted any more.
func (m *identities) commit(next identitySet) {
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
		m.all.Go(func() { m.watch(ctx, id) })
	}
	m.running = next
}

// watch takes up what changes on disk, until ctx ends. It looks at the files when
// it begins, and anew at each refresh.
func (m *identities) watch(ctx context.Context, id *identity) {
	for ctx.Err() == nil {
		turn, again := context.WithCancel(ctx)
		m.mu.Lock()
		id.again = again
		m.mu.Unlock()
		id.watcher.Run(turn)
		again()
	}
}

// refresh lets every watcher look at its files now. What it finds it logs.
func (m *identities) refresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.running {
		if id.again != nil {
			id.again()
		}
	}
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
