package secrets

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/spiffe"
	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/config"
)

// Identities keeps the configured identities current: one issuer each.
type Identities struct {
	// Static after construction.
	ctx      context.Context // ends the issuers
	log      *slog.Logger
	all      sync.WaitGroup    // the issuers
	panicked func(part string) // may be nil

	mu      sync.Mutex
	running IdentitySet // guarded by mu
}

// IdentitySet are the identities of one configuration, by name.
type IdentitySet map[string]*identity

// identity is one that is, or is to be, kept current.
type identity struct {
	// Static after construction.
	key    string // the text of its section
	source *certs.Source
	run    func(ctx context.Context) // keeps the source current until ctx ends
	rerun  bool                      // run looks anew when it is called again

	stop  context.CancelFunc // guarded by Identities.mu; nil before Commit
	again context.CancelFunc // guarded by Identities.mu; lets run be called anew
}

// Source is the identity of that name; nil if there is none.
func (s IdentitySet) Source(name string) *certs.Source {
	if id := s[name]; id != nil {
		return id.source
	}
	return nil
}

// NewIdentities keeps identities current until ctx ends. Panicked, if it is not nil, is
// told of each panic that an issuer has recovered from, by part: issuer, roots, files or
// source.
func NewIdentities(ctx context.Context, log *slog.Logger, panicked func(part string)) *Identities {
	return &Identities{ctx: ctx, log: log, panicked: panicked}
}

// Wait waits until every issuer has ended, once the context has.
func (m *Identities) Wait() { m.all.Wait() }

// Prepare gives the identities of a configuration: those that run and are
// unchanged, and new ones, with what is on disk. Nobody is contacted. Failed has
// those whose files cannot be used. A certificate that is only not valid now, or
// that must first be got, is no failure: its upstreams are not ready until a good
// one is there. Nothing has changed before Commit.
func (m *Identities) Prepare(want []*config.IdentitySection) (next IdentitySet, failed map[string]error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, failed = IdentitySet{}, map[string]error{}
	for _, section := range want {
		name, key := section.Name, section.Key()
		if old := m.running[name]; old != nil && old.key == key {
			next[name] = old
			continue
		}
		id := &identity{key: key, source: certs.NewSource(name)}
		id.source.OnPanic = m.panicked
		if err := id.open(section, m.log); err != nil {
			failed[name] = err
		}
		next[name] = id
	}
	return next, failed
}

// open makes the issuer, which does nothing before run but read files.
func (id *identity) open(section *config.IdentitySection, log *slog.Logger) error {
	switch {
	case section.Step != nil:
		if err := checkPassword(section); err != nil {
			return err
		}
		issuer, err := step.Open(*section.Step, id.source, log)
		if err != nil {
			return &keyError{"step.storage", err}
		}
		id.run = issuer.Run
		return nil
	case section.SPIFFE != "":
		id.run = spiffe.New(section.SPIFFE, id.source, log).Run
		return nil
	}
	watcher, err := files.Open(section.Files, id.source, log)
	id.run, id.rerun = watcher.Run, true
	return err
}

// Commit keeps the new ones current and stops those that are not wanted any more.
func (m *Identities) Commit(next IdentitySet) {
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
		m.all.Go(func() { m.keep(ctx, id) })
		m.all.Go(func() { id.source.LogExpiry(ctx, m.log) })
	}
	m.running = next
}

// keep runs the issuer until ctx ends. One that looks anew when it is called again
// is, at each refresh.
func (m *Identities) keep(ctx context.Context, id *identity) {
	if !id.rerun {
		id.run(ctx)
		return
	}
	for ctx.Err() == nil {
		turn, again := context.WithCancel(ctx)
		m.mu.Lock()
		id.again = again
		m.mu.Unlock()
		id.run(turn)
		again()
	}
}

// Refresh lets every watcher look at its files now. What it finds it logs.
func (m *Identities) Refresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.running {
		if id.again != nil {
			id.again()
		}
	}
}

// Statuses lists the identities by name.
func (m *Identities) Statuses() []certs.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []certs.Status
	for _, id := range m.running {
		out = append(out, id.source.Status())
	}
	slices.SortFunc(out, func(a, b certs.Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}
