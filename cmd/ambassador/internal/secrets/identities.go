package secrets

import (
	"context"
	"log/slog"
	"sync"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/certs/spiffe"
	"ambassador/certs/step"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/kubernetes"
)

// identity is a certificate with its key, its roots, or both, and their issuer.
type identity struct {
	// Static after construction.
	source *certs.Source
	log    *slog.Logger
	run    func(ctx context.Context) // keeps the source current until ctx ends
	rerun  bool                      // run reads the files anew when it is called again

	mu    sync.Mutex
	again context.CancelFunc // guarded by mu; lets run be called anew; nil: it does not run
}

// identities are those that the sections describe.
func (s *Store) identities(sections []*config.IdentitySection) (want []wanted[*identity]) {
	for _, section := range sections {
		want = append(want, wanted[*identity]{section.Name, section.Key(), func() (*identity, error) {
			id := &identity{source: certs.NewSource(section.Name), log: s.log}
			id.source.OnPanic = s.panicked
			return id, id.open(section, s.api)
		}})
	}
	return want
}

// open makes the issuer, which does nothing before run but read files.
func (id *identity) open(section *config.IdentitySection, api *kubernetes.Client) error {
	switch {
	case section.Step != nil:
		if err := checkPassword(section); err != nil {
			return err
		}
		issuer, err := step.Open(*section.Step, id.source, id.log)
		if err != nil {
			return &keyError{"step.storage", err}
		}
		id.run = issuer.Run
		return nil
	case section.SPIFFE != "":
		id.run = spiffe.New(section.SPIFFE, id.source, id.log).Run
		return nil
	case section.Kubernetes != "":
		ref, err := kubernetes.ParseSecret(section.Kubernetes)
		if err == nil {
			id.run = api.Identity(ref, id.source, id.log).Run
		}
		return err
	}
	watcher, err := files.Open(section.Files, id.source, id.log)
	id.run, id.rerun = watcher.Run, true
	return err
}

// start runs the issuer.
func (id *identity) start(ctx context.Context, all *sync.WaitGroup) {
	all.Go(func() { id.keep(ctx) })
	all.Go(func() { id.source.LogExpiry(ctx, id.log) })
}

// keep runs the issuer until ctx ends, and anew at each refresh if that reads files.
func (id *identity) keep(ctx context.Context) {
	if !id.rerun {
		id.run(ctx)
		return
	}
	for ctx.Err() == nil {
		turn, again := context.WithCancel(ctx)
		id.mu.Lock()
		id.again = again
		id.mu.Unlock()
		id.run(turn)
		again()
	}
}

// refresh lets the issuer read its files now.
func (id *identity) refresh() {
	id.mu.Lock()
	again := id.again
	id.mu.Unlock()
	if again != nil {
		again()
	}
}
