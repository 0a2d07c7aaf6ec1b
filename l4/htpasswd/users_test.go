package htpasswd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ambassador/policy"
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

func usersOf(t testing.TB, text string) *List {
	t.Helper()
	list, err := Parse([]byte(text))
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
		{"line ends of old Macs", "# who\ra:" + goodHash + "\rb:" + goodHash + "\r", ""},
		{"a mistake behind line ends of Windows", "# who\r\n\r\nbatch\r\n", "line 3: there is no colon"},
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
		list, err := Parse([]byte(tt.text))
		switch {
		case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		case err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), goodHash[20:40])):
			t.Errorf("%s: the error shows a secret: %v", tt.name, err)
		case err != nil:
			var at *LineError
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
		list, err := Parse(text)
		if err != nil {
			return
		}
		highest := 0
		for name, line := range list.users {
			if cost, err := bcrypt.Cost(line.hash); name == "" || err != nil || cost != line.cost || cost > maxBcryptCost {
				t.Errorf("%q: cost %d, %v", name, cost, err)
			}
			highest = max(highest, line.cost)
		}
		if list.unknown.cost != highest {
			t.Errorf("the cost of unknown names is %d, want %d", list.unknown.cost, highest)
		}
	})
}

var nobody policy.Source

// sourceAt is the source of an address.
func sourceAt(addr string) policy.Source { return policy.SourceOf(netip.MustParseAddr(addr)) }

func TestCheckUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the failures wait
		long := strings.Repeat("x", 72)
		u := New(usersOf(t, htpasswdLine(t, "a", "secret", 4)+htpasswdLine(t, "b", "", 4)+htpasswdLine(t, "c", long, 5)))
		for range 2 { // the second time from memory
			for _, tt := range []struct {
				user, password string
				want           bool
			}{
				{"a", "secret", true}, {"a", "Secret", false}, {"a", "", false}, {"a", "secret\x00", false}, {"a", "secret\x00secret", false},
				{"b", "", true}, {"b", "secret", false}, {"A", "secret", false}, {"", "", false}, {"d", "secret", false},
				{"c", long, true}, {"c", long[1:], false}, {"asecret", "", false},
			} {
				if ok, err := u.Verify(t.Context(), nobody, tt.user, tt.password); ok != tt.want || err != nil {
					t.Errorf("%q %q: %v, %v", tt.user, tt.password, ok, err)
				}
			}
		}
	})
}

func TestNoUsersAtAll(t *testing.T) {
	u := New(usersOf(t, ""))
	if ok, err := u.Verify(t.Context(), nobody, "a", "b"); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

// A stand-in is a hash that bcrypt computes to its end.
func TestStandIns(t *testing.T) {
	for cost := 4; cost <= maxBcryptCost; cost++ {
		if got, err := bcrypt.Cost(standIn(cost)); got != cost || err != nil || len(standIn(cost)) != bcryptLength {
			t.Errorf("%s: cost %d, %v", standIn(cost), got, err)
		}
	}
	if err := bcrypt.CompareHashAndPassword(standIn(4), []byte("secret")); err != bcrypt.ErrMismatchedHashAndPassword {
		t.Error(err)
	}
}

// Every first check does the work of the highest cost, whatever the name is.
func TestAllNamesCostTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the failures wait
		u := New(usersOf(t, htpasswdLine(t, "a", "secret", 4)+htpasswdLine(t, "b", "secret", 7)))
		var rounds int
		u.matches = func(hash, password []byte) bool {
			cost, err := bcrypt.Cost(hash)
			if err != nil {
				t.Error(err)
			}
			rounds += 1 << cost
			return bcryptMatches(hash, password)
		}
		for _, tt := range []struct {
			user, password string
			ok             bool
		}{
			{"a", "guess", false}, {"b", "guess", false}, {"unknown", "guess", false}, {"", "", false}, {"a", "secret\x00", false},
			{"unknown", "secret", false}, {"a", "secret", true}, {"b", "secret", true},
		} {
			rounds = 0
			ok, err := u.Verify(t.Context(), nobody, tt.user, tt.password)
			if ok != tt.ok || err != nil || rounds != 1<<7 {
				t.Errorf("%q %q: %v, %v after %d rounds, want %d", tt.user, tt.password, ok, err, rounds, 1<<7)
			}
		}
	})
}

// turnless lets no comparison begin, until the function that it returns is called,
// each time for one.
func turnless(u *Users) (allow func()) {
	q := u.comparisons
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running, q.share = q.most, q.most
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.running--
		q.begin()
	}
}

// A password that was right needs no bcrypt again, until its line is another.
func TestVerifiedPasswordsAreRemembered(t *testing.T) {
	a, other := htpasswdLine(t, "a", "secret", 4), htpasswdLine(t, "a", "secret", 4)
	b := htpasswdLine(t, "b", "secret", 4)
	u := New(usersOf(t, a))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	remembered := func() bool {
		t.Helper()
		ok, err := u.Verify(ended, nobody, "a", "secret")
		if ok == (err != nil) {
			t.Errorf("%v, %v", ok, err)
		}
		return ok
	}
	if ok, err := u.Verify(t.Context(), nobody, "a", "secret"); !ok || err != nil {
		t.Fatalf("the right password: %v, %v", ok, err)
	}
	turnless(u)
	if !remembered() {
		t.Error("it is not remembered")
	}
	if ok, err := u.Verify(ended, nobody, "a", "Secret"); ok || err != context.Canceled {
		t.Errorf("a wrong one: %v, %v", ok, err)
	}
	u.Set(usersOf(t, a+b))
	if !remembered() {
		t.Error("it is forgotten, though its line is the same")
	}
	if ok, _ := u.Verify(ended, nobody, "b", "secret"); ok {
		t.Error("the same password of another user came in")
	}
	u.Set(usersOf(t, other))
	if remembered() {
		t.Error("it is remembered, though its line is another")
	}
	u.Set(usersOf(t, ""))
	if ok, _ := u.Verify(ended, nobody, "a", "secret"); ok {
		t.Error("it is remembered, though its user is gone")
	}
}

// Who asks the same waits for one bcrypt, and for another if who computed has left.
func TestSamePasswordsShareABcrypt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := New(usersOf(t, htpasswdLine(t, "a", "secret", 4)))
		allow := turnless(u)
		ctx, leave := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			if ok, err := u.Verify(ctx, nobody, "a", "secret"); ok || err != context.Canceled {
				t.Errorf("who has left: %v, %v", ok, err)
			}
		})
		synctest.Wait()
		for range 100 {
			group.Go(func() {
				if ok, err := u.Verify(t.Context(), nobody, "a", "secret"); !ok || err != nil {
					t.Errorf("who stayed: %v, %v", ok, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		q := u.comparisons
		if n := len(q.all); n != 1 {
			t.Errorf("%d comparisons, want one", n)
		}
		allow()
		group.Wait()
		if n, held := len(q.all), q.running; n != 0 || held != q.most-1 {
			t.Errorf("%d comparisons and %d turns are left", n, held)
		}
	})
}

// A login waits for its turn no longer than its context, and than MaxWait.
func TestWaitForATurnIsBounded(t *testing.T) {
	for _, tt := range []struct {
		timeout, want time.Duration
		err           error
	}{
		{time.Second, time.Second, context.DeadlineExceeded},
		{time.Minute, MaxWait, ErrBusy},
	} {
		synctest.Test(t, func(t *testing.T) {
			u := New(usersOf(t, htpasswdLine(t, "a", "secret", 4)))
			turnless(u)
			ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
			defer cancel()
			var group sync.WaitGroup
			for range 2 { // the first would compute, the second waits for it
				group.Go(func() {
					start := time.Now()
					if ok, err := u.Verify(ctx, nobody, "a", "secret"); ok || err != tt.err || time.Since(start) != tt.want {
						t.Errorf("%v, %v after %v; want %v after %v", ok, err, time.Since(start), tt.err, tt.want)
					}
				})
			}
			group.Wait()
			if n := len(u.comparisons.all) + len(u.comparisons.claims); n != 0 {
				t.Errorf("%d are left", n)
			}
		})
	}
}

// Wrong passwords are answered the later the more there were from an address; right
// ones are not, and other addresses are not.
func TestFailuresAreSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := New(usersOf(t, htpasswdLine(t, "a", "secret", 4)))
		took := func(client policy.Source, user, password string) time.Duration {
			start := time.Now()
			if _, err := u.Verify(t.Context(), client, user, password); err != nil {
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
		if ok, err := u.Verify(ctx, one, "a", "wrong"); ok || err != context.DeadlineExceeded {
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
	first := policy.SourceOf(addr)
	for range freeFailures + 1 {
		f.add(first, now)
	}
	for range maxFailing - 1 {
		addr = addr.Next()
		f.add(policy.SourceOf(addr), now)
	}
	if got := f.add(first, now); got != 2*firstDelay {
		t.Errorf("with as many as there may be the first waits %v", got)
	}
	for range maxFailing {
		addr = addr.Next()
		f.add(policy.SourceOf(addr), now)
	}
	if n := len(f.sources); n != maxFailing || f.order.Len() != n {
		t.Errorf("%d clients, %d in order", n, f.order.Len())
	}
	if got := f.add(first, now); got != 0 {
		t.Errorf("the first, which has made room, waits %v", got)
	}
}

// What a client costs whose password is remembered.
func BenchmarkRememberedPassword(b *testing.B) {
	u := New(usersOf(b, htpasswdLine(b, "batch", "correct horse battery staple", 4)))
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := u.Verify(b.Context(), nobody, "batch", "correct horse battery staple"); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// bcryptTime is how long a comparison of cost 10 takes in a bubble.
const bcryptTime = 61 * time.Millisecond

// slowUsers are users in a bubble: "cheap" of cost 10, and "costly" and "other" of
// cost 12, all with the password "secret". Two comparisons are computed at once, one
// for each source.
func slowUsers(t *testing.T) *Users {
	hash := func(cost int) string { return fmt.Sprintf("$2y$%02d$%s\n", cost, goodHash[len("$2y$04$"):]) }
	u := New(usersOf(t, "cheap:"+hash(10)+"costly:"+hash(12)+"other:"+hash(12)))
	u.comparisons.most, u.comparisons.share = 2, 1
	u.matches = func(hash, password []byte) bool {
		cost, _ := bcrypt.Cost(hash)
		time.Sleep(bcryptTime << cost >> 10)
		return string(password) == "secret" && string(hash) != string(standIn(cost))
	}
	return u
}

// login is what became of a login.
type login struct {
	ok   bool
	err  error
	took time.Duration
}

func (u *Users) timed(ctx context.Context, from policy.Source, user, password string) login {
	start := time.Now()
	ok, err := u.Verify(ctx, from, user, password)
	return login{ok, err, time.Since(start)}
}

// flood sends guesses, each at once, in a fixed order: to names, from sources, in turn.
func flood(ctx context.Context, u *Users, n int, names, sources []string) (logins *[]login, wait func()) {
	logins = new([]login)
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			l := u.timed(ctx, sourceAt(sources[i%len(sources)]), names[i%len(names)], fmt.Sprint("guess", i))
			mu.Lock()
			defer mu.Unlock()
			*logins = append(*logins, l)
		})
		synctest.Wait()
	}
	return logins, group.Wait
}

// addresses are n sources.
func addresses(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("10.1.%d.%d", i>>8, i&255))
	}
	return out
}

// The answer to a guess takes the same time for every name, known or not, of any
// cost, whatever else is under way, and whether that is about known names or not.
func TestKnownAndUnknownNamesAreTheSame(t *testing.T) {
	const own, probed, filler = "10.0.0.1", 0, 1
	others := addresses(30)
	for _, load := range []struct {
		name    string
		n       int
		names   []int // probed or filler, in turn
		sources []string
	}{
		{"no load", 0, nil, nil},
		{"guesses at the same name from elsewhere", 600, []int{probed}, others[:1]},
		{"guesses at another name from elsewhere", 600, []int{filler}, others[:1]},
		{"guesses at both from many sources", 600, []int{probed, filler, filler}, others},
		{"guesses at another name from the same source", 600, []int{filler}, []string{own}},
		{"guesses at the same name from the same source", 600, []int{probed}, []string{own}},
		{"guesses at both from the same source", 600, []int{probed, filler}, []string{own}},
	} {
		probe := func(names ...string) (out []login) {
			synctest.Test(t, func(t *testing.T) {
				u := slowUsers(t)
				u.comparisons.most = 1 // two would end at the same time, in any order
				ctx, leave := context.WithCancel(t.Context())
				var guessed []string
				for _, i := range load.names {
					guessed = append(guessed, names[i])
				}
				_, wait := flood(ctx, u, load.n, guessed, load.sources)
				for i := range 8 {
					out = append(out, u.timed(t.Context(), sourceAt(own), names[probed], fmt.Sprint("probe", i)))
				}
				leave()
				wait()
			})
			return out
		}
		want := probe("unknown", "somebody")
		for _, names := range [][]string{{"cheap", "somebody"}, {"costly", "somebody"}, {"cheap", "other"}, {"costly", "other"}, {"unknown", "other"}} {
			if got := probe(names...); !slices.Equal(got, want) {
				t.Errorf("%s: guesses at %s beside %s take\n%v, at unknown beside somebody\n%v", load.name, names[probed], names[filler], got, want)
			}
		}
	}
}

// Guesses at a user's password delay a login of that user from another source by no
// more than what is being computed.
func TestGuessesDelayNoOtherSource(t *testing.T) {
	for _, sources := range []int{1, 30, 600} {
		synctest.Test(t, func(t *testing.T) {
			u := slowUsers(t)
			_, wait := flood(t.Context(), u, 600, []string{"costly"}, addresses(sources))
			// Of cost 12, so that what is under way takes as long as the login's own.
			if l := u.timed(t.Context(), sourceAt("10.0.0.1"), "costly", "secret"); !l.ok || l.took > 2*4*bcryptTime {
				t.Errorf("%d sources: %+v", sources, l)
			}
			wait()
		})
	}
}

// All clients of a host share a source with one that sends guesses.
func TestGuessesFromTheSameSource(t *testing.T) {
	const own = "127.0.0.1"
	for _, names := range [][]string{{"costly"}, {"costly", "unknown"}} {
		synctest.Test(t, func(t *testing.T) {
			u := slowUsers(t)
			from := sourceAt(own)
			if l := u.timed(t.Context(), from, "cheap", "secret"); !l.ok {
				t.Fatalf("before: %+v", l)
			}
			guesses, wait := flood(t.Context(), u, 600, names, []string{own})
			if l := u.timed(t.Context(), from, "cheap", "secret"); !l.ok || l.took != 0 {
				t.Errorf("a remembered password: %+v", l)
			}
			for _, name := range []string{"other", "costly"} { // the second is the one that is guessed
				if l := u.timed(t.Context(), from, name, "secret"); !l.ok || l.took > 2*4*bcryptTime {
					t.Errorf("the first login of %s: %+v", name, l)
				}
			}
			wait()
			late := 0
			for _, l := range *guesses {
				if l.ok || l.took > MaxWait+4*bcryptTime+maxDelay {
					t.Errorf("a guess: %+v", l)
				}
				if l.err == ErrBusy {
					late++
				}
			}
			if late < 500 {
				t.Errorf("%d of 600 guesses were refused without a bcrypt, want most", late)
			}
		})
	}
}

// While guesses arrive faster than they can be computed, from the same source, a
// login with another name has its turn in time.
func TestSteadyGuessesFromTheSameSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := slowUsers(t)
		from := sourceAt("127.0.0.1")
		ctx, leave := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				group.Go(func() { u.Verify(ctx, from, "costly", fmt.Sprint("guess", i)) })
				sleep(ctx, 10*time.Millisecond)
			}
		})
		sleep(t.Context(), 10*time.Second)
		for _, name := range []string{"other", "cheap"} {
			if l := u.timed(t.Context(), from, name, "secret"); !l.ok || l.took > 2*4*bcryptTime {
				t.Errorf("%s: %+v", name, l)
			}
		}
		leave()
		group.Wait()
	})
}

// A source computes one comparison at a time of two, whatever it sends.
func TestGuessesOfOneSourceLeaveAProcessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := slowUsers(t)
		var now, most int
		var mu sync.Mutex
		matches := u.matches
		u.matches = func(hash, password []byte) bool {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				now--
			}()
			return matches(hash, password)
		}
		_, wait := flood(t.Context(), u, 50, []string{"cheap", "unknown"}, addresses(1))
		wait()
		if most != 1 {
			t.Errorf("%d at once, want 1", most)
		}
	})
}

// sleep waits in a bubble's time, or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
