package htpasswd

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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"

	"ambassador/policy"
)

// List is an htpasswd file as it was read. It is not changed.
type List struct {
	users   map[string]*bcryptLine
	unknown *bcryptLine // what an unknown name is compared with; its cost is the highest of the file
}

// bcryptLine is the line of one user. A verified password is remembered with its line:
// a line with another hash gives other marks.
type bcryptLine struct {
	hash     []byte
	cost     int
	verified atomic.Pointer[passwordMark] // of the last password that was right; nil: none yet
}

// LineError is a line of an htpasswd file that cannot be used.
type LineError struct {
	Line   int // from 1
	Detail string
}

// Error is "line 3: what is wrong, and the fix". It contains no part of a hash.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Detail) }

const (
	// maxBcryptCost bounds what one guess costs us: at 14 about a second.
	maxBcryptCost = 14
	bcryptLength  = 60
	maxUserName   = 255 // what SOCKS5 can carry
)

// Parse reads the text of an htpasswd file: a line NAME:HASH for each user, with a
// bcrypt hash; comments (#) and empty lines. The error joins a *LineError for each bad
// line.
func Parse(text []byte) (*List, error) {
	list := &List{users: map[string]*bcryptLine{}, unknown: &bcryptLine{}}
	var bad []error
	n := 0
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	text = bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if err := list.add(line); err != nil {
			bad = append(bad, &LineError{n, err.Error()})
		}
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	list.unknown.hash = standIn(list.unknown.cost)
	return list, nil
}

// Len is the number of users.
func (l *List) Len() int { return len(l.users) }

func (l *List) add(line []byte) error {
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
	u := &bcryptLine{hash: bytes.Clone(hash)}
	u.cost, _ = bcrypt.Cost(hash) // of a hash that was checked
	l.users[user] = u
	l.unknown.cost = max(l.unknown.cost, u.cost)
	return nil
}

// standIn is a hash of a cost that matches no password: its digest was not made from one.
func standIn(cost int) []byte {
	return fmt.Appendf(nil, "$2y$%02d$%s", cost, "abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzABCDE")
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

// checkBcrypt says what is wrong with a hash. It never quotes the hash, which may be a
// password.
func checkBcrypt(user string, hash []byte) error {
	fix := fmt.Sprintf("make the line with `htpasswd -nbB %s`, which asks for bcrypt", user)
	var scheme string
	switch {
	case bytes.HasPrefix(hash, []byte("$2a$")), bytes.HasPrefix(hash, []byte("$2b$")), bytes.HasPrefix(hash, []byte("$2y$")):
		return checkBcryptBody(hash, fix)
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
	return fmt.Errorf("the hash of %q is %s, and only bcrypt is taken; %s", user, scheme, fix)
}

// checkBcryptBody rejects hashes that would fail only at the first login.
func checkBcryptBody(hash []byte, fix string) error {
	cost, err := bcrypt.Cost(hash)
	damaged := slices.ContainsFunc(hash[min(len("$2y$10$"), len(hash)):], func(c byte) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '/')
	})
	switch {
	case err != nil || len(hash) != bcryptLength || damaged:
		return fmt.Errorf("the hash is damaged: bcrypt's has %d characters and a cost of 04 to %d; %s", bcryptLength, maxBcryptCost, fix)
	case cost > maxBcryptCost:
		return fmt.Errorf("the hash has a cost of %d, which takes many seconds; the most is %d; %s -C 10", cost, maxBcryptCost, fix)
	}
	return nil
}

// Users check names and passwords. They are safe for concurrent use.
//
// A caller asks Remembered first, which does not wait, and Verify if that says no.
//
// A client cannot tell an unknown name from a known one: each check computes the
// highest cost in the file, waits in the same queue, and the answer to a wrong password
// waits for the same delay. A password that was right once is recognized in less than a
// microsecond, without bcrypt, until its line changes or the process ends.
//
// The cost of guesses is bounded for each policy.Source, not for the user whose password
// is guessed: comparisons decides which bcrypt is next, failures decides how long the
// answer to a wrong password waits. So a source that sends guesses delays no login from
// another source, unless there are more such sources than turns in MaxWait.
//
// All clients of a host that connect to 127.0.0.1 are one source. There a login waits
// for the turn of each newer name, and no name gets more than its turn. No login waits
// longer than MaxWait: then it is refused, and may succeed at the next try. So while a
// source sends more guesses at a name than can be computed, the first login of that
// name from that source may be refused.
type Users struct {
	// Static after construction.
	marks       sync.Pool // of *marker
	matches     func(hash, password []byte) bool
	comparisons *comparisons

	list     atomic.Pointer[List]
	failures failures
}

// MaxWait bounds how long a login waits for its bcrypt to begin. It is half of the
// default of timeouts.handshake.
const MaxWait = 5 * time.Second

// ErrBusy says that a password could not be checked within MaxWait. The same login may
// succeed later.
var ErrBusy = fmt.Errorf("no turn within %v: too many logins are being checked", MaxWait)

// passwordMark is a keyed hash of a name, its line, and a password.
type passwordMark [sha256.Size]byte

// New returns users with a list, which Set replaces.
func New(list *List) *Users {
	key := make([]byte, sha256.Size)
	rand.Read(key) //nolint:errcheck // it never fails
	u := &Users{comparisons: newComparisons(), matches: bcryptMatches}
	u.marks.New = func() any { return &marker{mac: hmac.New(sha256.New, key)} }
	u.list.Store(list)
	return u
}

func bcryptMatches(hash, password []byte) bool {
	return bcrypt.CompareHashAndPassword(hash, password) == nil
}

// Set makes list the current one. The remembered password of a user whose line has the
// same hash stays.
func (u *Users) Set(list *List) {
	for name, old := range u.list.Load().users {
		if now := list.users[name]; now != nil && now != old && bytes.Equal(now.hash, old.hash) {
			now.verified.CompareAndSwap(nil, old.verified.Load())
		}
	}
	u.list.Store(list)
}

// Remembered says whether the password was right before. It does not wait, and takes
// less than a microsecond. False does not mean that the password is wrong: ask Verify.
func (u *Users) Remembered(user, password string) bool {
	l := u.attempt(user, password)
	return l.known && l.line.remembers(l.mark)
}

// Verify says whether the password is the user's. Unless the password is remembered, it
// waits: for a turn to compute, and with a wrong password for the delay of the source.
// The error is ErrBusy, or that of ctx.
func (u *Users) Verify(ctx context.Context, from policy.Source, user, password string) (ok bool, err error) {
	l := u.attempt(user, password)
	if l.known && l.line.remembers(l.mark) {
		return true, nil
	}
	ok, err = u.verify(ctx, comparisonKey{from, l.mark}, user, func() bool {
		return l.known && l.line.remembers(l.mark) || u.compute(l.list, l.line, password)
	})
	switch {
	case err != nil:
		return false, err
	case !l.known || !ok:
		return false, u.fail(ctx, from)
	}
	verified := l.mark // a copy: only a verified mark is kept
	l.line.verified.Store(&verified)
	return true, nil
}

// attempt is a name and a password, compared with the list.
type attempt struct {
	list  *List
	line  *bcryptLine // the user's; of an unknown name the list's unknown
	known bool        // the user is known, and the password is one that bcrypt takes
	mark  passwordMark
}

func (u *Users) attempt(user, password string) attempt {
	l := attempt{list: u.list.Load()}
	l.line = l.list.users[user]
	l.known = l.line != nil && strings.IndexByte(password, 0) < 0 // bcrypt takes NUL for the end, after which the password begins again
	if l.line == nil {
		l.line = l.list.unknown
	}
	l.mark = u.mark(user, l.line.hash, password)
	return l
}

// remembers says whether a mark is that of the last password that was right.
func (l *bcryptLine) remembers(mark passwordMark) bool {
	m := l.verified.Load()
	return m != nil && hmac.Equal(m[:], mark[:])
}

// compute compares a password with a line's hash. A cost of c is 2^c rounds. The
// comparisons after the first add the rounds that are missing to the highest cost, so
// that the time does not tell a known name with a cheap line.
func (u *Users) compute(list *List, line *bcryptLine, password string) bool {
	ok := u.matches(line.hash, []byte(password))
	for cost := line.cost; cost < list.unknown.cost; cost++ {
		u.matches(standIn(cost), []byte(password))
	}
	return ok
}

// marker computes marks with the key of this process. It is reused, so that a mark
// costs no memory.
type marker struct {
	mac  hash.Hash
	text []byte
	sum  passwordMark
}

// mark is the keyed hash of name, line and password, each with its length.
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
	clear(text) // the password does not stay in memory
	m.text = text
	return m.sum
}

// verify computes a comparison when it has its turn, or waits for the answer of an equal
// one.
func (u *Users) verify(ctx context.Context, key comparisonKey, user string, compute func() bool) (bool, error) {
	limit := time.NewTimer(MaxWait)
	defer limit.Stop()
	await := func(event <-chan struct{}) error {
		select {
		case <-event:
			return nil
		case <-limit.C:
			return ErrBusy
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for {
		c, owner := u.comparisons.join(key, user)
		if owner {
			defer u.comparisons.end(c)
			if err := await(c.turn); err != nil {
				return false, err
			}
			c.ok, c.given = compute(), true
			return c.ok, nil
		}
		if err := await(c.done); err != nil {
			return false, err
		}
		if c.given {
			return c.ok, nil
		}
	}
}

// fail waits for the delay of the source's failures.
func (u *Users) fail(ctx context.Context, from policy.Source) error {
	wait := u.failures.add(from, time.Now())
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
