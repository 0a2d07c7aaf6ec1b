package secrets

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/kubernetes"
	"ambassador/l4/htpasswd"
)

// Store keeps what a configuration names: identities, the roots of tls.ca, and users. A
// reload replaces all of it or nothing: Prepare, and then Commit. One goroutine at a time
// calls these two; the other methods may be called by any.
type Store struct {
	// Static after construction.
	log      *slog.Logger
	panicked func(part string)
	api      *kubernetes.Client // for Secrets
	ids      *keeper[*identity]
	roots    *keeper[*identity] // by path
	users    *keeper[*usersFile]

	exposed exposed

	judged atomic.Pointer[map[string]judged] // of the identities, by name; nil before the first Commit
}

// NewStore makes a store whose files and issuers are attended to until ctx ends. Panicked,
// if it is not nil, is told of each panic that an issuer has recovered from, by part:
// issuer, roots, files or source. Api is where the Secrets are.
func NewStore(ctx context.Context, log *slog.Logger, panicked func(part string), api *kubernetes.Client) *Store {
	return &Store{log: log, panicked: panicked, api: api, exposed: exposed{look: certs.Exposed}, ids: newKeeper[*identity](ctx), roots: newKeeper[*identity](ctx), users: newKeeper[*usersFile](ctx)}
}

// Prepared is what one configuration names.
type Prepared struct {
	ids, roots set[*identity]
	users      set[*usersFile]
	judged     map[string]judged
}

// Prepare reads what a configuration names and what does not run unchanged already.
// No host is contacted, and nothing has changed before Commit. A certificate that is only
// not valid now, or that must first be got, is no failure: its upstreams are not ready
// until a good one is there. The error is a *config.Error with what is wrong in each file,
// at the place of its key.
func (s *Store) Prepare(f *config.File) (*Prepared, error) {
	p := &Prepared{judged: judgedOf(f)}
	var failedIDs, failedRoots, failedUsers map[string]error
	p.ids, failedIDs = s.ids.prepare(s.identities(f.Identities))
	p.roots, failedRoots = s.roots.prepare(s.identities(f.RootFiles()))
	p.users, failedUsers = s.users.prepare(s.usersFiles(f.UsersPaths()))
	if err := config.ErrorOf(problemsOf(f, failedIDs, failedRoots, failedUsers)); err != nil {
		return nil, err
	}
	return p, nil
}

// Commit keeps what was prepared current, and stops what is not wanted any more.
func (s *Store) Commit(p *Prepared) {
	s.ids.commit(p.ids)
	s.roots.commit(p.roots)
	s.users.commit(p.users)
	s.judged.Store(&p.judged)
}

// Identity is the source of an identity; nil if there is none of that name.
func (p *Prepared) Identity(name string) *certs.Source { return sourceOf(p.ids.get(name)) }

// Roots is the source of a file of tls.ca; nil if path is empty.
func (p *Prepared) Roots(path string) *certs.Source { return sourceOf(p.roots.get(path)) }

// Users are those of a users_file; nil if path is empty.
func (p *Prepared) Users(path string) *htpasswd.Users {
	if u := p.users.get(path); u != nil {
		return u.users
	}
	return nil
}

func sourceOf(id *identity) *certs.Source {
	if id == nil {
		return nil
	}
	return id.source
}

// Refresh reads every file now. What it finds it logs.
func (s *Store) Refresh() {
	s.ids.refresh()
	s.roots.refresh()
	s.users.refresh()
}

// Identities lists the states of the identities by name, without warnings.
func (s *Store) Identities() (out []certs.Status) {
	for _, id := range s.ids.current().list() {
		out = append(out, id.source.Status())
	}
	return out
}

// JudgedIdentities is Identities with warnings, which costs more: it looks at each chain
// and at the files. It waits for the files for lookTimeout at most.
func (s *Store) JudgedIdentities() (out []certs.Status) {
	var all map[string]judged
	if p := s.judged.Load(); p != nil {
		all = *p
	}
	var paths []string
	for _, j := range all {
		paths = append(paths, j.secrets...)
	}
	exposed := s.exposed.of(paths)
	for _, id := range s.ids.current().list() {
		st := id.source.Status()
		st.Warnings = all[st.Name].warnings(id.source, exposed, time.Now())
		out = append(out, st)
	}
	return out
}

// UsersFiles lists the states of the users files by path.
func (s *Store) UsersFiles() (out []api.UsersFile) {
	for _, u := range s.users.current().list() {
		out = append(out, u.reply())
	}
	return out
}

// Wait waits until nothing is attended to any more, once the context has ended.
func (s *Store) Wait() {
	s.ids.all.Wait()
	s.roots.all.Wait()
	s.users.all.Wait()
}
