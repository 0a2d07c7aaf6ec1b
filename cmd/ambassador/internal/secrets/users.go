package secrets

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"ambassador/certs"
	"ambassador/certs/files"
	"ambassador/cmd/ambassador/internal/api"
	"ambassador/l4/htpasswd"
)

// usersFile is the users of a users_file, which is watched.
type usersFile struct {
	// Static after construction.
	path  string
	users *htpasswd.Users
	log   *slog.Logger

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
	if err != nil {
		err = files.Unreadable(path, err)
	} else {
		list, err = parseUsers(path, text)
	}
	return list, sha256.Sum256(text), err
}

// parseUsers reads the text of a users_file. The error joins all that is wrong with
// it, each with its line and how to fix it.
func parseUsers(path string, text []byte) (*htpasswd.List, error) {
	list, err := htpasswd.Parse(certs.Text(text))
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

// usersFiles are those at the paths.
func (s *Store) usersFiles(paths []string) (want []wanted[*usersFile]) {
	for _, path := range paths {
		want = append(want, wanted[*usersFile]{name: path, open: func() (*usersFile, error) { return openUsers(path, s.log) }})
	}
	return want
}

// openUsers reads a users_file, which is to be watched.
func openUsers(path string, log *slog.Logger) (*usersFile, error) {
	list, sum, err := readUsers(path)
	if err != nil {
		return nil, err
	}
	return &usersFile{path: path, users: htpasswd.New(list), log: log.With("users_file", path), sum: sum,
		status: api.UsersFile{File: path, Users: list.Len(), Loaded: time.Now()}}, nil
}

// start watches the file.
func (u *usersFile) start(ctx context.Context, all *sync.WaitGroup) {
	all.Go(func() { files.Watch(ctx, u.log, []string{u.path}, u.look) })
}

// refresh reads the file now. What it finds it logs.
func (u *usersFile) refresh() { u.look() }

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
		u.tell(api.UsersFile{File: u.path, Users: list.Len(), Loaded: time.Now()})
		u.log.Info("users renewed", "users", list.Len())
	case said:
	default:
		now, status := time.Now(), u.reply()
		status.LastError, status.LastErrorAt = wrong, &now
		u.tell(status)
		u.log.Warn("users not renewed; the old ones stay", "cause", wrong)
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
