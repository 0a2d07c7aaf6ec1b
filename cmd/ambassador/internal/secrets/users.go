package secrets

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4/htpasswd"
)

// Users keeps the users of every users_file current. Its methods are called
// one at a time, but for statuses.
type Users struct {
	// Static after construction.
	ctx context.Context // ends the watching
	log *slog.Logger
	all sync.WaitGroup // what watches

	mu      sync.Mutex
	running UsersSet // guarded by mu
}

// NewUsers keeps users current until ctx ends.
func NewUsers(ctx context.Context, log *slog.Logger) *Users { return &Users{ctx: ctx, log: log} }

// Wait waits until no file is watched any more, once the context has ended.
func (m *Users) Wait() { m.all.Wait() }

// UsersSet are the users of one configuration, by the path of their file.
type UsersSet map[string]*usersFile

// usersFile is one that is, or is to be, watched.
type usersFile struct {
	// Static after construction.
	path  string
	users *htpasswd.Users
	log   *slog.Logger

	stop context.CancelFunc // owned by Users; nil before Commit

	looking sync.Mutex        // held while the file is read, so that its states are told in their order
	sum     [sha256.Size]byte // guarded by looking; of the text in use

	mu     sync.Mutex
	status api.UsersFile // guarded by mu
}

// maxUsersFile bounds a users_file: about a hundred thousand users.
const maxUsersFile = 8 << 20

// maxUsersErrors bounds the mistakes of a users_file that are told: another file has one
// in each line.
const maxUsersErrors = 20

// readUsers reads a users_file.
func readUsers(path string) (list *htpasswd.List, sum [sha256.Size]byte, err error) {
	text, err := certs.ReadGuarded(path, maxUsersFile)
	if err == nil {
		list, err = parseUsers(path, text)
	}
	return list, sha256.Sum256(text), err
}

// parseUsers reads the text of a users_file. The error joins all that is wrong with
// it, each with its line and how to fix it.
func parseUsers(path string, text []byte) (*htpasswd.List, error) {
	list, err := htpasswd.Parse(text)
	if err == nil && list.Len() == 0 {
		err = errors.New("it has no users, so that nobody could come in; add one with `htpasswd -nbB USER PASSWORD`")
	}
	if err == nil {
		return list, nil
	}
	var all []error
	for i, e := range flatten(err) {
		if i == maxUsersErrors {
			all = append(all, fmt.Errorf("%s: and %d more mistakes", path, len(flatten(err))-i))
			break
		}
		all = append(all, fmt.Errorf("%s: %w", path, e))
	}
	return nil, errors.Join(all...)
}

// Users are those of a file; nil if path is empty.
func (s UsersSet) Users(path string) *htpasswd.Users {
	if u := s[path]; u != nil {
		return u.users
	}
	return nil
}

// Prepare gives the users of a configuration: those that are watched already, and
// others as their files are. Failed has the files that cannot be used. Nothing has
// changed before Commit.
func (m *Users) Prepare(paths []string) (next UsersSet, failed map[string]error) {
	m.mu.Lock()
	running := m.running
	m.mu.Unlock()
	next, failed = UsersSet{}, map[string]error{}
	for _, path := range paths {
		if u := running[path]; u != nil {
			next[path] = u
			continue
		}
		list, sum, err := readUsers(path)
		if err != nil {
			failed[path] = err
			continue
		}
		next[path] = &usersFile{path: path, users: htpasswd.New(list), log: m.log.With("users_file", path), sum: sum,
			status: api.UsersFile{File: path, Users: list.Len(), Loaded: time.Now()}}
	}
	return next, failed
}

// Commit watches the new ones, and stops watching those that are not wanted any more.
func (m *Users) Commit(next UsersSet) {
	m.mu.Lock()
	old := m.running
	m.running = next
	m.mu.Unlock()
	for path, u := range old {
		if next[path] != u {
			u.stop()
		}
	}
	for _, u := range next {
		if u.stop != nil {
			continue
		}
		ctx, cancel := context.WithCancel(m.ctx)
		u.stop = cancel
		m.all.Go(func() { files.Watch(ctx, u.log, []string{u.path}, u.look) })
	}
}

// Refresh reads every file now. What it finds it logs.
func (m *Users) Refresh() {
	for _, u := range m.list() {
		u.look()
	}
}

// Statuses lists the files by path.
func (m *Users) Statuses() []api.UsersFile {
	var out []api.UsersFile
	for _, u := range m.list() {
		out = append(out, u.reply())
	}
	return out
}

func (m *Users) list() (out []*usersFile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range m.running {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b *usersFile) int { return strings.Compare(a.path, b.path) })
	return out
}

// look takes up the users that the file has now. If it cannot be used, that is
// told once, and the old ones stay.
func (u *usersFile) look() time.Duration {
	u.looking.Lock()
	defer u.looking.Unlock()
	text, err := certs.ReadGuarded(u.path, maxUsersFile)
	sum, said := sha256.Sum256(text), u.reply().LastError
	if err == nil && sum == u.sum && said == "" {
		return files.PollInterval
	}
	var list *htpasswd.List
	if err == nil {
		list, err = parseUsers(u.path, text)
	}
	var wrong string
	if err != nil {
		wrong = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	switch wrong {
	case "":
		u.users.Set(list)
		u.sum = sum
		u.log.Info("users renewed", "users", list.Len())
		u.tell(api.UsersFile{File: u.path, Users: list.Len(), Loaded: time.Now()})
	case said:
	default:
		u.log.Warn("users not renewed; the old ones stay", "cause", wrong)
		now, status := time.Now(), u.reply()
		status.LastError, status.LastErrorAt = wrong, &now
		u.tell(status)
	}
	return files.PollInterval
}

func (u *usersFile) reply() api.UsersFile {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status
}

// tell replaces the status.
func (u *usersFile) tell(status api.UsersFile) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status = status
}
