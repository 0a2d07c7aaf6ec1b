package l4

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

// UserList is an htpasswd file as it was read. It is not changed.
type UserList struct {
	users map[string]*bcryptLine
	lines []*bcryptLine // of users, in the file's order
}

// bcryptLine is one user's. The memory of a verified password is void with it: a
// line of another hash gives other marks.
type bcryptLine struct {
	hash     []byte
	verified atomic.Pointer[passwordMark] // of the last good password; nil: none yet
	turn     chan struct{}                // a place for the one bcrypt of the user that may wait for its turn among all
}

// UserError is a line of an htpasswd file that cannot be used.
type UserError struct {
	Line   int // from 1
	Detail string
}

// Error is "line 3: what is wrong, and the mend". It has no part of a hash.
func (e *UserError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Detail) }

const (
	// maxBcryptCost bounds what one guess costs us: at 14 it is about a second.
	maxBcryptCost = 14
	bcryptLength  = 60
	maxUserName   = 255 // what SOCKS5 can carry
)

// ParseUsers reads the text of an htpasswd file: a line for each user, NAME:HASH,
// all hashes of bcrypt; comments (#) and empty lines. The error joins a *UserError
// for each bad line.
func ParseUsers(text []byte) (*UserList, error) {
	list := &UserList{users: map[string]*bcryptLine{}}
	var bad []error
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if err := list.add(line); err != nil {
			bad = append(bad, &UserError{n, err.Error()})
		}
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	return list, nil
}

// Len is how many users there are.
func (l *UserList) Len() int { return len(l.users) }

func (l *UserList) add(line []byte) error {
	name, hash, ok := bytes.Cut(line, []byte(":"))
	user := string(name)
	if !ok {
		return errors.New("there is no colon; a line is NAME:HASH, as `htpasswd -nbB user` prints it")
	}
	if err := checkUserName(user); err != nil {
		return err
	}
	if err := checkBcrypt(user, hash); err != nil {
		return err
	}
	if l.users[user] != nil {
		return fmt.Errorf("%q is there twice; remove one of the lines", user)
	}
	u := &bcryptLine{hash: bytes.Clone(hash), turn: make(chan struct{}, 1)}
	l.users[user], l.lines = u, append(l.lines, u)
	return nil
}

func checkUserName(name string) error {
	switch {
	case name == "":
		return errors.New("there is no name before the colon")
	case len(name) > maxUserName:
		return fmt.Errorf("the name has %d bytes; the most is %d", len(name), maxUserName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("the name %q has control characters, or is not UTF-8", name)
	}
	return nil
}

// checkBcrypt says what is wrong with a hash, and never shows it: it may be a
// password.
func checkBcrypt(user string, hash []byte) error {
	mend := fmt.Sprintf("make the line with `htpasswd -nbB %s`, which asks for bcrypt", user)
	var scheme string
	switch {
	case bytes.HasPrefix(hash, []byte("$2a$")), bytes.HasPrefix(hash, []byte("$2b$")), bytes.HasPrefix(hash, []byte("$2y$")):
		return checkBcryptBody(hash, mend)
	case bytes.HasPrefix(hash, []byte("$2x$")):
		scheme = "of the broken bcrypt ($2x$)"
	case bytes.HasPrefix(hash, []byte("$apr1$")), bytes.HasPrefix(hash, []byte("$1$")):
		scheme = "MD5"
	case bytes.HasPrefix(hash, []byte("{SHA}")):
		scheme = "SHA-1"
	case bytes.HasPrefix(hash, []byte("$5$")), bytes.HasPrefix(hash, []byte("$6$")):
		scheme = "SHA-crypt"
	default:
		scheme = "not of a scheme that we know"
	}
	return fmt.Errorf("the hash of %q is %s, and only bcrypt is taken; %s", user, scheme, mend)
}

// checkBcryptBody finds here what would else be found at the first login.
func checkBcryptBody(hash []byte, mend string) error {
	cost, err := bcrypt.Cost(hash)
	damaged := slices.ContainsFunc(hash[min(len("$2y$10$"), len(hash)):], func(c byte) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '/')
	})
	switch {
	case err != nil || len(hash) != bcryptLength || damaged:
		return fmt.Errorf("the hash is damaged: bcrypt's has %d characters and a cost of 04 to %d; %s", bcryptLength, maxBcryptCost, mend)
	case cost > maxBcryptCost:
		return fmt.Errorf("the hash has a cost of %d, which takes many seconds; the most is %d; %s -C 10", cost, maxBcryptCost, mend)
	}
	return nil
}

// Users are who may come in by name and password. They are safe for concurrent
// use.
//
// Who tries names learns nothing from the time that an answer takes: an unknown
// name costs what a known one does. A password that was right once is known again
// for about a microsecond; a wrong one costs a bcrypt each time, of which as many
// are computed at once as there are processors, and its answer comes the later
// the more of them an address has sent. That slows who waits for answers; what
// bounds guesses from many connections at once is the number of those bcrypts.
type Users struct {
	// Static after construction.
	marks sync.Pool     // of *marker
	turns chan struct{} // a place for each bcrypt that may be computed now
	// strangers is the turn of all whom the file does not know. Who guesses one
	// user's password, however often, does not stand before the others.
	strangers chan struct{}

	list     atomic.Pointer[UserList]
	failures failures

	mu          sync.Mutex
	comparisons map[passwordMark]*comparison // guarded by mu; the bcrypts under way
}

// passwordMark is a keyed hash of a name, its line, and a password.
type passwordMark [sha256.Size]byte

// comparison is one bcrypt that all wait for who ask the same.
type comparison struct {
	done chan struct{}
	// Set before done is closed.
	ok    bool
	given bool // there is an answer; else who led has left, and another one must
}

// NewUsers makes users of a list, which Set replaces.
func NewUsers(list *UserList) *Users {
	key := make([]byte, sha256.Size)
	rand.Read(key) //nolint:errcheck // it never fails
	u := &Users{comparisons: map[passwordMark]*comparison{}, strangers: make(chan struct{}, 1), turns: make(chan struct{}, max(1, min(runtime.GOMAXPROCS(0), runtime.NumCPU())))}
	u.marks.New = func() any { return &marker{mac: hmac.New(sha256.New, key)} }
	u.list.Store(list)
	return u
}

// Set makes list the current one. What was remembered of a user whose line is the
// same stays.
func (u *Users) Set(list *UserList) {
	for name, old := range u.list.Load().users {
		if now := list.users[name]; now != nil && now != old && bytes.Equal(now.hash, old.hash) {
			now.verified.CompareAndSwap(nil, old.verified.Load())
		}
	}
	u.list.Store(list)
}

// Check says whether the password is the user's. It may wait: for its turn to
// compute, and with a wrong one for longer each time that its client sends one. The
// error is that of ctx.
func (u *Users) Check(ctx context.Context, client Source, user, password string) (ok bool, err error) {
	line, known := u.list.Load().lookUp(u, user)
	if line == nil {
		return false, u.fail(ctx, client) // there is nobody whom the time could betray
	}
	if strings.IndexByte(password, 0) >= 0 {
		known = false // bcrypt takes NUL for the end, after which the password begins again
	}
	mark := u.mark(user, line.hash, password)
	if m := line.verified.Load(); known && m != nil && hmac.Equal(m[:], mark[:]) {
		return true, nil
	}
	mayWait(ctx)
	queue := line.turn
	if !known {
		queue = u.strangers
	}
	matches, err := u.verify(ctx, mark, queue, line.hash, password)
	switch {
	case err != nil:
		return false, err
	case !known || !matches:
		return false, u.fail(ctx, client)
	}
	line.verified.Store(&mark)
	return true, nil
}

// lookUp is the user's line. Who is unknown pays for another one's, always the
// same, so that all costs of the file occur among the unknown too. Nil: there are
// no lines.
func (l *UserList) lookUp(u *Users, name string) (line *bcryptLine, known bool) {
	if len(l.lines) == 0 {
		return nil, false
	}
	if line = l.users[name]; line != nil {
		return line, true
	}
	pick := u.mark(name, nil, "")
	return l.lines[binary.BigEndian.Uint64(pick[:])%uint64(len(l.lines))], false
}

// marker makes marks, with a key of this process and memory of its own.
type marker struct {
	mac  hash.Hash
	text []byte
	sum  passwordMark
}

// mark is the keyed hash of the three, each with its length.
func (u *Users) mark(user string, line []byte, password string) passwordMark {
	m := u.marks.Get().(*marker)
	defer u.marks.Put(m)
	text := m.text[:0]
	for _, n := range [...]int{len(user), len(line), len(password)} {
		text = binary.BigEndian.AppendUint64(text, uint64(n))
	}
	text = append(append(append(text, user...), line...), password...)
	m.mac.Reset()
	m.mac.Write(text)
	m.mac.Sum(m.sum[:0])
	clear(text) // the password does not stay
	m.text = text
	return m.sum
}

// verify computes a bcrypt, or waits for who computes the same.
func (u *Users) verify(ctx context.Context, mark passwordMark, queue chan struct{}, hash []byte, password string) (bool, error) {
	for {
		c, leads := u.join(mark)
		if leads {
			return u.lead(ctx, c, mark, queue, hash, password)
		}
		select {
		case <-c.done:
			if c.given {
				return c.ok, nil
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// join finds the bcrypt of a mark, or makes it, which the caller then leads.
func (u *Users) join(mark passwordMark) (c *comparison, leads bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c := u.comparisons[mark]; c != nil {
		return c, false
	}
	c = &comparison{done: make(chan struct{})}
	u.comparisons[mark] = c
	return c, true
}

// lead computes a bcrypt when it is its turn: among those of queue, and then among all.
func (u *Users) lead(ctx context.Context, c *comparison, mark passwordMark, queue chan struct{}, hash []byte, password string) (bool, error) {
	defer func() {
		u.mu.Lock()
		delete(u.comparisons, mark)
		u.mu.Unlock()
		close(c.done)
	}()
	for _, turns := range []chan struct{}{queue, u.turns} {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		defer func() { <-turns }()
	}
	c.ok = bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil
	c.given = true
	return c.ok, nil
}

// fail waits for as long as the client's failures ask for.
func (u *Users) fail(ctx context.Context, client Source) error {
	mayWait(ctx)
	wait := u.failures.add(client, time.Now())
	if wait == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
