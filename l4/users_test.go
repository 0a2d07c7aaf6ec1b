package l4

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// htpasswdLine is a user's line, of the lowest cost unless said.
func htpasswdLine(t testing.TB, user, password string, cost int) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		t.Fatal(err)
	}
	return user + ":" + string(hash) + "\n"
}

func usersOf(t testing.TB, text string) *UserList {
	t.Helper()
	list, err := ParseUsers([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// goodHash is a hash of good form.
const goodHash = "$2y$04$OoTcTBIqvMGkf7NQzQS3Deva0r0HVIqQHQwNvzdpCJv7ZbAoEqjSW"

// The specification of the lines that are taken, and of what is said of others.
func TestParseUsers(t *testing.T) {
	body := goodHash[len("$2y$"):]
	for _, tt := range []struct{ name, text, err string }{
		{"nothing", "", ""},
		{"comments and empty lines", "# who\n\n  \n#x:y\n", ""},
		{"all three kinds, and a last line without an end", "a:$2a$" + body + "\nb:$2b$" + body + "\r\nc:$2y$" + body, ""},
		{"a byte order mark", "\xef\xbb\xbfa:" + goodHash, ""},
		{"a name of other letters", "jürgen:" + goodHash, ""},
		{"no colon", "\nbatch\n", "line 2: there is no colon; a line is NAME:HASH, as `htpasswd -nbB user` prints it"},
		{"no name", ":" + goodHash, "line 1: there is no name"},
		{"a name that is too long", strings.Repeat("x", 256) + ":" + goodHash, "line 1: the name has 256 bytes; the most is 255"},
		{"a control character", "a\tb:" + goodHash, `line 1: the name "a\tb" has control characters`},
		{"not UTF-8", "a\xff:" + goodHash, "is not UTF-8"},
		{"twice", "a:" + goodHash + "\nb:" + goodHash + "\na:" + goodHash, `line 3: "a" is there twice`},
		{"MD5", "a:$apr1$tE4pLrcJ$Hk7rQwq8iXAhDkGbtr9AQ0", `the hash of "a" is MD5, and only bcrypt is taken; make the line with ` + "`htpasswd -nbB a`"},
		{"SHA-1", "a:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "is SHA-1"},
		{"SHA-crypt", "a:$6$abc$def", "is SHA-crypt"},
		{"broken bcrypt", "a:$2x$" + body, "broken bcrypt"},
		{"a password", "a:hunter2", "not of a scheme that we know"},
		{"nothing", "a:", "not of a scheme that we know"},
		{"a cost of 15", "a:$2y$15$" + body[3:], "a cost of 15, which takes many seconds; the most is 14"},
		{"a cost of 14", "a:$2y$14$" + body[3:], ""},
		{"a cost of 3", "a:$2y$03$" + body[3:], "is damaged"},
		{"no cost", "a:$2y$xx$" + body[3:], "is damaged"},
		{"cut", "a:" + goodHash[:59], "is damaged"},
		{"longer", "a:" + goodHash + "x", "is damaged"},
		{"something behind", "a:" + goodHash + ":x", "is damaged"},
		{"another alphabet", "a:" + goodHash[:40] + "+" + goodHash[41:], "is damaged"},
		{"all at once", "a\n:" + goodHash + "\nb:x", "line 3"},
	} {
		list, err := ParseUsers([]byte(tt.text))
		switch {
		case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		case err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), goodHash[20:40])):
			t.Errorf("%s: the error shows a secret: %v", tt.name, err)
		case err != nil:
			var at *UserError
			if list != nil || !errors.As(err, &at) || at.Line == 0 {
				t.Errorf("%s: no line in %#v", tt.name, err)
			}
		}
	}
}

func FuzzParseUsers(f *testing.F) {
	for _, s := range []string{"a:" + goodHash, "# x\n\na:$apr1$x$y", ":\n:", "a:$2y$", "a:$2b$31$" + goodHash[7:]} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseUsers(text)
		if err != nil {
			return
		}
		for name, line := range list.users {
			if cost, err := bcrypt.Cost(line.hash); name == "" || err != nil || cost > maxBcryptCost {
				t.Errorf("%q: cost %d, %v", name, cost, err)
			}
		}
		if len(list.lines) != list.Len() {
			t.Errorf("%d lines of %d users", len(list.lines), list.Len())
		}
	})
}

var nobody Source

// sourceAt is the source of an address.
func sourceAt(addr string) Source { return SourceOf(netip.MustParseAddr(addr)) }

func TestCheckUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the failures wait
		long := strings.Repeat("x", 72)
		u := NewUsers(usersOf(t, htpasswdLine(t, "a", "secret", 4)+htpasswdLine(t, "b", "", 4)+htpasswdLine(t, "c", long, 5)))
		for range 2 { // the second time from memory
			for _, tt := range []struct {
				user, password string
				want           bool
			}{
				{"a", "secret", true}, {"a", "Secret", false}, {"a", "", false}, {"a", "secret\x00", false}, {"a", "secret\x00secret", false},
				{"b", "", true}, {"b", "secret", false}, {"A", "secret", false}, {"", "", false}, {"d", "secret", false},
				{"c", long, true}, {"c", long[1:], false}, {"asecret", "", false},
			} {
				if ok, err := u.Check(t.Context(), nobody, tt.user, tt.password); ok != tt.want || err != nil {
					t.Errorf("%q %q: %v, %v", tt.user, tt.password, ok, err)
				}
			}
		}
	})
}

func TestNoUsersAtAll(t *testing.T) {
	u := NewUsers(usersOf(t, ""))
	if ok, err := u.Check(t.Context(), nobody, "a", "b"); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

// The cost of an unknown name is that of a known one, and always the same.
func TestUnknownUsersCostWhatKnownOnesDo(t *testing.T) {
	u := NewUsers(usersOf(t, htpasswdLine(t, "a", "x", 4)+htpasswdLine(t, "b", "x", 6)))
	list := u.list.Load()
	costs := map[int]int{}
	for i := range 200 {
		name := fmt.Sprint("unknown", i)
		line, known := list.lookUp(u, name)
		again, _ := list.lookUp(u, name)
		if known || line == nil || line != again {
			t.Fatalf("%s: %v, %v", name, line == again, known)
		}
		cost, _ := bcrypt.Cost(line.hash)
		costs[cost]++
	}
	if costs[4] < 50 || costs[6] < 50 {
		t.Errorf("costs of unknown names: %v, want the file's", costs)
	}
}

// turnless makes every bcrypt wait for ever.
func turnless(u *Users) {
	for range cap(u.turns) {
		u.turns <- struct{}{}
	}
}

// A password that was right needs no bcrypt again, until its line is another.
func TestVerifiedPasswordsAreRemembered(t *testing.T) {
	a, other := htpasswdLine(t, "a", "secret", 4), htpasswdLine(t, "a", "secret", 4)
	b := htpasswdLine(t, "b", "secret", 4)
	u := NewUsers(usersOf(t, a))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	remembered := func() bool {
		t.Helper()
		ok, err := u.Check(ended, nobody, "a", "secret")
		if ok == (err != nil) {
			t.Errorf("%v, %v", ok, err)
		}
		return ok
	}
	if ok, err := u.Check(t.Context(), nobody, "a", "secret"); !ok || err != nil {
		t.Fatalf("the right password: %v, %v", ok, err)
	}
	turnless(u)
	if !remembered() {
		t.Error("it is not remembered")
	}
	if ok, err := u.Check(ended, nobody, "a", "Secret"); ok || err != context.Canceled {
		t.Errorf("a wrong one: %v, %v", ok, err)
	}
	u.Set(usersOf(t, a+b))
	if !remembered() {
		t.Error("it is forgotten, though its line is the same")
	}
	if ok, _ := u.Check(ended, nobody, "b", "secret"); ok {
		t.Error("the same password of another user came in")
	}
	u.Set(usersOf(t, other))
	if remembered() {
		t.Error("it is remembered, though its line is another")
	}
	u.Set(usersOf(t, ""))
	if ok, _ := u.Check(ended, nobody, "a", "secret"); ok {
		t.Error("it is remembered, though its user is gone")
	}
}

// Who asks the same waits for one bcrypt, and for another if who computed has left.
func TestSamePasswordsShareABcrypt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUsers(usersOf(t, htpasswdLine(t, "a", "secret", 4)))
		turnless(u)
		ctx, leave := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			if ok, err := u.Check(ctx, nobody, "a", "secret"); ok || err != context.Canceled {
				t.Errorf("who has left: %v, %v", ok, err)
			}
		})
		synctest.Wait()
		for range 100 {
			group.Go(func() {
				if ok, err := u.Check(t.Context(), nobody, "a", "secret"); !ok || err != nil {
					t.Errorf("who stayed: %v, %v", ok, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		if n := len(u.comparisons); n != 1 {
			t.Errorf("%d bcrypts under way, want one", n)
		}
		<-u.turns
		group.Wait()
		if n, held := len(u.comparisons), len(u.turns); n != 0 || held != cap(u.turns)-1 {
			t.Errorf("%d bcrypts and %d turns are left", n, held)
		}
	})
}

// Who waits for its turn waits no longer than its context.
func TestWaitForATurnIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUsers(usersOf(t, htpasswdLine(t, "a", "secret", 4)))
		turnless(u)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if ok, err := u.Check(ctx, nobody, "a", "secret"); ok || err != context.DeadlineExceeded || time.Since(start) != time.Minute {
			t.Errorf("%v, %v after %v", ok, err, time.Since(start))
		}
	})
}

// Wrong passwords are answered the later the more there were from an address; right
// ones are not, and other addresses are not.
func TestFailuresAreSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUsers(usersOf(t, htpasswdLine(t, "a", "secret", 4)))
		took := func(client Source, user, password string) time.Duration {
			start := time.Now()
			if _, err := u.Check(t.Context(), client, user, password); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		one, two := sourceAt("10.0.0.1"), sourceAt("10.0.0.2")
		for i, want := range []time.Duration{0, 0, 0, 250, 500, 1000, 2000, 4000, 4000} {
			user := []string{"a", "unknown"}[i%2]
			if got := took(one, user, "wrong"); got != want*time.Millisecond {
				t.Errorf("failure %d: %v, want %v ms", i+1, got, want)
			}
		}
		if got := took(one, "a", "secret"); got != 0 {
			t.Errorf("the right password: %v", got)
		}
		if got := took(two, "a", "wrong"); got != 0 {
			t.Errorf("another address: %v", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if ok, err := u.Check(ctx, one, "a", "wrong"); ok || err != context.DeadlineExceeded {
			t.Errorf("a wait that is longer than its bound: %v, %v", ok, err)
		}
		time.Sleep(forgetAfter)
		if got := took(one, "a", "wrong"); got != 0 {
			t.Errorf("after %v: %v", forgetAfter, got)
		}
	})
}

func TestFailingClientsAreBounded(t *testing.T) {
	var f failures
	now := time.Unix(1, 0)
	addr := netip.MustParseAddr("10.0.0.0")
	first := SourceOf(addr)
	for range freeFailures + 1 {
		f.add(first, now)
	}
	for range maxFailing - 1 {
		addr = addr.Next()
		f.add(SourceOf(addr), now)
	}
	if got := f.add(first, now); got != 2*firstDelay {
		t.Errorf("with as many as there may be the first waits %v", got)
	}
	for range maxFailing {
		addr = addr.Next()
		f.add(SourceOf(addr), now)
	}
	if n := len(f.clients); n != maxFailing || f.order.Len() != n {
		t.Errorf("%d clients, %d in order", n, f.order.Len())
	}
	if got := f.add(first, now); got != 0 {
		t.Errorf("the first, which has made room, waits %v", got)
	}
}

// What a client costs whose password is remembered.
func BenchmarkRememberedPassword(b *testing.B) {
	u := NewUsers(usersOf(b, htpasswdLine(b, "batch", "correct horse battery staple", 4)))
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := u.Check(b.Context(), nobody, "batch", "correct horse battery staple"); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// Who guesses passwords, of one user or of nobody, stands before nobody else.
func TestGuessesHoldUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewUsers(usersOf(t, htpasswdLine(t, "a", "secret", 4)+htpasswdLine(t, "b", "secret", 4)))
		turnless(u)
		ctx, leave := context.WithCancel(t.Context())
		var guesses, login sync.WaitGroup
		const many = 50
		for i := range many {
			guesses.Go(func() { u.Check(ctx, nobody, "a", fmt.Sprint("guess", i)) })
			guesses.Go(func() { u.Check(ctx, nobody, fmt.Sprint("nobody", i), "guess") })
		}
		synctest.Wait()
		login.Go(func() {
			if ok, err := u.Check(ctx, nobody, "b", "secret"); !ok || err != nil {
				t.Errorf("%v, %v", ok, err)
			}
		})
		synctest.Wait()
		<-u.turns // one after the other
		login.Wait()
		u.mu.Lock()
		left := len(u.comparisons)
		u.mu.Unlock()
		if left < 2*many-10 {
			t.Errorf("%d of %d guesses came before", 2*many-left, 2*many)
		}
		leave()
		guesses.Wait()
	})
}
