package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/spiffe"
	"ambassador/certs/step"
)

// identities keeps the configured identities current: one issuer each.
type identities struct {
	// Static after construction.
	ctx context.Context // ends the issuers
	log *slog.Logger
	all sync.WaitGroup // the issuers
	// panicked, if it is not nil, counts a panic that an issuer has recovered from, by
	// part: issuer, roots, files or source. It is set before prepare.
	panicked func(part string)

	mu      sync.Mutex
	running identitySet // guarded by mu
}

// identitySet are the identities of one configuration, by name.
type identitySet map[string]*identity

// identity is one that is, or is to be, kept current.
type identity struct {
	// Static after construction.
	key    string // the text of its section
	source *certs.Source
	run    func(ctx context.Context) // keeps the source current until ctx ends
	rerun  bool                      // run looks anew when it is called again

	stop  context.CancelFunc // guarded by identities.mu; nil before commit
	again context.CancelFunc // guarded by identities.mu; lets run be called anew
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
// unchanged, and new ones, with what is on disk. Nobody is contacted. Failed has
// those whose files cannot be used. A certificate that is only not valid now, or
// that must first be got, is no failure: its upstreams are not ready until a good
// one is there. Nothing has changed before commit.
func (m *identities) prepare(want []*IdentitySection) (next identitySet, failed map[string]error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, failed = identitySet{}, map[string]error{}
	for _, section := range want {
		name, key := section.Name, section.key()
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
func (id *identity) open(section *IdentitySection, log *slog.Logger) error {
	switch {
	case section.Step != nil:
		if err := section.checkPassword(); err != nil {
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

// keyError is a mistake found under a key of an identity.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

// key is the text of all that makes an identity another one.
func (id *IdentitySection) key() string {
	switch {
	case id.Step != nil:
		return id.Step.Key()
	case id.SPIFFE != "":
		return "spiffe " + id.SPIFFE
	}
	return fmt.Sprintf("%#v", id.Files)
}

// checkPassword reads the password file of a provisioner, if there is one.
func (id *IdentitySection) checkPassword() error {
	if id.Step.PasswordFile == "" {
		return nil
	}
	if _, err := certs.ReadSecret(id.Step.PasswordFile); err != nil {
		return &keyError{"step.password_file", err}
	}
	return nil
}

// identityProblems are mistakes in the files of identities, at their places.
func (f *File) identityProblems(failed map[string]error) []Problem {
	var problems []Problem
	for _, id := range f.Identities {
		if failed[id.Name] == nil {
			continue
		}
		for _, err := range flatten(failed[id.Name]) {
			problems = append(problems, f.problem("identities."+id.Name+"."+id.keyOf(err), err))
		}
	}
	return problems
}

// keyOf is the key of an identity whose file is meant by err; that of the
// certificate if it is none in particular.
func (id *IdentitySection) keyOf(err error) string {
	var at *keyError
	if errors.As(err, &at) {
		return at.key
	}
	certificate := "files.cert"
	if id.Files.PKCS12 != "" {
		certificate = "files.pkcs12"
	}
	var file *files.FileError
	if !errors.As(err, &file) {
		return certificate
	}
	switch file.Path {
	case id.Files.Certificate():
		return certificate
	case id.Files.Key:
		return "files.key"
	case id.Files.CA:
		return "files.ca"
	case id.Files.CRL:
		return "files.crl"
	case id.Files.PasswordFile:
		return "files.password_file"
	}
	return certificate
}

// commit keeps the new ones current and stops those that are not wanted any more.
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
		m.all.Go(func() { m.keep(ctx, id) })
		m.all.Go(func() { id.source.LogExpiry(ctx, m.log) })
	}
	m.running = next
}

// keep runs the issuer until ctx ends. One that looks anew when it is called again
// is, at each refresh.
func (m *identities) keep(ctx context.Context, id *identity) {
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
