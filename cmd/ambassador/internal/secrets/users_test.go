package secrets

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ambassador/certs/files"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/htpasswd"
	"ambassador/policy"
)

// checks says whether a password is a user's.
func checks(t *testing.T, u *htpasswd.Users, user, password string) bool {
	t.Helper()
	ok, err := u.Verify(t.Context(), policy.SourceOf(netip.MustParseAddr("192.0.2.1")), user, password)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// watchedUsers are the users of a file, with the log of what becomes of it.
func watchedUsers(t *testing.T, text string) (m *Store, path string, log *cmdtest.Output) {
	t.Helper()
	path, log = filepath.Join(t.TempDir(), "users"), cmdtest.NewOutput()
	cmdtest.WriteFile(t, path, text)
	m = NewStore(t.Context(), slog.New(slog.NewTextHandler(log, nil)), nil, nil)
	return m, path, log
}

func TestUsersFollowTheirFile(t *testing.T) {
	alice, bob := cmdtest.Htpasswd(t, "alice", "wonderland"), cmdtest.Htpasswd(t, "bob", "builder")
	m, path, log := watchedUsers(t, alice)
	next, failed := m.users.prepare(m.usersFiles([]string{path}))
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	m.users.commit(next)
	users := next.get(path).users
	if !checks(t, users, "alice", "wonderland") || checks(t, users, "bob", "builder") {
		t.Error("the first users are not those of the file")
	}
	cmdtest.WriteFile(t, path, "# two\n"+alice+bob)
	log.Await(t, `msg="users renewed" users_file=\S+ users=2`)
	if !checks(t, users, "bob", "builder") {
		t.Error("a new user cannot come in")
	}
	cmdtest.WriteFile(t, path, "bob:plain\n")
	log.Await(t, `level=WARN msg="users not renewed; the old ones stay" users_file=\S+ cause=".*line 1: .*only bcrypt is taken`)
	if !checks(t, users, "bob", "builder") {
		t.Error("a bad file has taken the users away")
	}
	if s := m.UsersFiles(); len(s) != 1 || s[0].Users != 2 || !strings.Contains(s[0].LastError, "line 1") || s[0].LastErrorAt == nil {
		t.Errorf("status: %+v", s)
	}
	cmdtest.WriteFile(t, path, bob)
	log.Await(t, `msg="users renewed" users_file=\S+ users=1`)
	if checks(t, users, "alice", "wonderland") {
		t.Error("a user who is gone comes in")
	}
	if s := m.UsersFiles(); s[0].LastError != "" || s[0].Users != 1 {
		t.Errorf("status: %+v", s)
	}
}

// What is read again and again is told once, and a file that is again as it was is
// good again.
func TestUsersAreToldOnce(t *testing.T) {
	alice := cmdtest.Htpasswd(t, "alice", "wonderland")
	m, path, log := watchedUsers(t, alice)
	next, _ := m.users.prepare(m.usersFiles([]string{path}))
	u := next.get(path)
	for range 3 {
		cmdtest.WriteFile(t, path, "")
		if again := u.look(); again != files.PollInterval {
			t.Errorf("it is looked at again after %v", again)
		}
	}
	if n := strings.Count(log.String(), "it has no users"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log)
	}
	cmdtest.WriteFile(t, path, alice)
	u.look()
	if s := u.status; s.LastError != "" || !strings.Contains(log.String(), "users renewed") {
		t.Errorf("%+v\n%s", s, log)
	}
}

func TestUsersAreRefreshed(t *testing.T) {
	m, path, _ := watchedUsers(t, cmdtest.Htpasswd(t, "alice", "wonderland"))
	m.users.running, _ = m.users.prepare(m.usersFiles([]string{path})) // and nothing watches them
	cmdtest.WriteFile(t, path, cmdtest.Htpasswd(t, "bob", "builder"))
	m.Refresh()
	if !checks(t, m.users.running.get(path).users, "bob", "builder") {
		t.Error("the new users are not in use")
	}
}

func TestUsersOfAReload(t *testing.T) {
	bob := cmdtest.Htpasswd(t, "bob", "builder")
	m, path, _ := watchedUsers(t, cmdtest.Htpasswd(t, "alice", "wonderland"))
	first, _ := m.users.prepare(m.usersFiles([]string{path}))
	m.users.commit(first)
	other := filepath.Join(t.TempDir(), "others")
	cmdtest.WriteFile(t, other, "nonsense\n"+bob+":\n")
	second, failed := m.users.prepare(m.usersFiles([]string{path, other}))
	if second[path] != first[path] || second[other] != nil || len(failed) != 1 || len(flatten(failed[other])) != 2 {
		t.Errorf("%v, failed %v", second, failed)
	}
	cmdtest.WriteFile(t, other, bob)
	third, failed := m.users.prepare(m.usersFiles([]string{other}))
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	m.users.commit(third)
	if got := m.UsersFiles(); len(got) != 1 || got[0].File != other {
		t.Errorf("%+v", got)
	}
	m.users.commit(set[*usersFile]{})
	done := make(chan struct{})
	go func() { m.users.all.Wait(); close(done) }() // awaited below
	select {
	case <-done:
	case <-time.After(cmdtest.Patience):
		t.Error("files that are not wanted any more are watched")
	}
}

// A users_file that others come to write is not taken up.
func TestUsersThatEverybodyMayWrite(t *testing.T) {
	m, path, log := watchedUsers(t, cmdtest.Htpasswd(t, "alice", "wonderland"))
	m.users.running, _ = m.users.prepare(m.usersFiles([]string{path}))
	cmdtest.WriteFile(t, path, cmdtest.Htpasswd(t, "mallory", "x"))
	if err := os.Chmod(path, 0o606); err != nil {
		t.Fatal(err)
	}
	m.Refresh()
	if u := m.users.running.get(path).users; !checks(t, u, "alice", "wonderland") || checks(t, u, "mallory", "x") || !strings.Contains(log.String(), "every user of this host may write it") {
		t.Errorf("the users of a file that everybody may write are taken up:\n%s", log)
	}
}

// A users file that a Windows program has written is read.
func TestUsersInUTF16(t *testing.T) {
	text := cmdtest.Htpasswd(t, "alice", "wonderland")
	utf16 := "\xff\xfe" + strings.Join(strings.Split(text, ""), "\x00") + "\x00"
	list, err := parseUsers("users", []byte(utf16))
	if err != nil || list.Len() != 1 {
		t.Fatalf("%v", err)
	}
	if !checks(t, htpasswd.New(list), "alice", "wonderland") {
		t.Error("the password is not right")
	}
}
