package main

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ambassador/certs/files"
	"ambassador/l4/htpasswd"
	"ambassador/policy"
)

// htpasswdLine is the line of a user, with a password that is cheap to check.
func htpasswdLine(t *testing.T, user, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return user + ":" + string(hash) + "\n"
}

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
func watchedUsers(t *testing.T, text string) (m *usersFiles, path string, log *output) {
	t.Helper()
	path, log = filepath.Join(t.TempDir(), "users"), newOutput()
	writeFile(t, path, text)
	m = &usersFiles{ctx: t.Context(), log: slog.New(slog.NewTextHandler(log, nil))}
	return m, path, log
}

func TestUsersFollowTheirFile(t *testing.T) {
	alice, bob := htpasswdLine(t, "alice", "wonderland"), htpasswdLine(t, "bob", "builder")
	m, path, log := watchedUsers(t, alice)
	next, failed := m.prepare([]string{path})
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	m.commit(next)
	users := next.users(path)
	if !checks(t, users, "alice", "wonderland") || checks(t, users, "bob", "builder") {
		t.Error("the first users are not those of the file")
	}
	writeFile(t, path, "# two\n"+alice+bob)
	log.await(t, `msg="users renewed" users_file=\S+ users=2`)
	if !checks(t, users, "bob", "builder") {
		t.Error("a new user cannot come in")
	}
	writeFile(t, path, "bob:plain\n")
	log.await(t, `level=WARN msg="users not renewed; the old ones stay" users_file=\S+ cause=".*line 1: .*only bcrypt is taken`)
	if !checks(t, users, "bob", "builder") {
		t.Error("a bad file has taken the users away")
	}
	if s := m.statuses(); len(s) != 1 || s[0].Users != 2 || !strings.Contains(s[0].LastError, "line 1") || s[0].LastErrorAt == nil {
		t.Errorf("status: %+v", s)
	}
	writeFile(t, path, bob)
	log.await(t, `msg="users renewed" users_file=\S+ users=1`)
	if checks(t, users, "alice", "wonderland") {
		t.Error("a user who is gone comes in")
	}
	if s := m.statuses(); s[0].LastError != "" || s[0].Users != 1 {
		t.Errorf("status: %+v", s)
	}
}

// What is read again and again is told once, and a file that is again as it was is
// good again.
func TestUsersAreToldOnce(t *testing.T) {
	alice := htpasswdLine(t, "alice", "wonderland")
	m, path, log := watchedUsers(t, alice)
	next, _ := m.prepare([]string{path})
	u := next[path]
	for range 3 {
		writeFile(t, path, "")
		if again := u.look(); again != files.PollInterval {
			t.Errorf("it is looked at again after %v", again)
		}
	}
	if n := strings.Count(log.String(), "it has no users"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log)
	}
	writeFile(t, path, alice)
	u.look()
	if s := u.status; s.LastError != "" || !strings.Contains(log.String(), "users renewed") {
		t.Errorf("%+v\n%s", s, log)
	}
}

func TestUsersAreRefreshed(t *testing.T) {
	m, path, _ := watchedUsers(t, htpasswdLine(t, "alice", "wonderland"))
	m.running, _ = m.prepare([]string{path}) // and nothing watches them
	writeFile(t, path, htpasswdLine(t, "bob", "builder"))
	m.refresh()
	if !checks(t, m.running.users(path), "bob", "builder") {
		t.Error("the new users are not in use")
	}
}

func TestUsersOfAReload(t *testing.T) {
	bob := htpasswdLine(t, "bob", "builder")
	m, path, _ := watchedUsers(t, htpasswdLine(t, "alice", "wonderland"))
	first, _ := m.prepare([]string{path})
	m.commit(first)
	other := filepath.Join(t.TempDir(), "others")
	writeFile(t, other, "nonsense\n"+bob+":\n")
	second, failed := m.prepare([]string{path, other})
	if second[path] != first[path] || second[other] != nil || len(failed) != 1 || len(flatten(failed[other])) != 2 {
		t.Errorf("%v, failed %v", second, failed)
	}
	writeFile(t, other, bob)
	third, failed := m.prepare([]string{other})
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	m.commit(third)
	if got := m.statuses(); len(got) != 1 || got[0].File != other {
		t.Errorf("%+v", got)
	}
	m.commit(usersSet{})
	done := make(chan struct{})
	go func() { m.all.Wait(); close(done) }() // awaited below
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("files that are not wanted any more are watched")
	}
}

func TestMistakesInUsersFiles(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "a.yaml")
	writeFile(t, path, ruled("socks5: {users_file: users}", allowAll))
	for _, tt := range []struct {
		users string
		want  []string
	}{
		{"", []string{"it has no users, so that nobody could come in"}},
		{"alice:secret\nbob\n", []string{"line 1: the hash of \"alice\"", "line 2: there is no colon"}},
	} {
		writeFile(t, filepath.Join(folder, "users"), tt.users)
		_, errs, code := explained(t, "-c", path)
		for _, want := range tt.want {
			if code != 2 || !strings.Contains(errs, path+":4:26: listeners.l.socks5.users_file: "+filepath.Join(folder, "users")+": "+want) {
				t.Errorf("exit code %d, want 2 and %q:\n%s", code, want, errs)
			}
		}
	}
	if err := os.Remove(filepath.Join(folder, "users")); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := explained(t, "-c", path); code != 2 || !strings.Contains(errs, "listeners.l.socks5.users_file: open ") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
