package htpasswd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"ambassador/policy"
)

// queue drives comparisons that nobody computes. They are written "A:b1": source A,
// name b, password 1.
type queue struct {
	*comparisons
	t     *testing.T
	begun []string // in the order of their turns
	owned []*comparison
}

func newQueue(t *testing.T, most, share int) *queue {
	q := newComparisons()
	q.most, q.share = most, share
	return &queue{comparisons: q, t: t}
}

func keyOf(text string) comparisonKey {
	return comparisonKey{sourceAs(text[0]), passwordMark([]byte(fmt.Sprintf("%-32s", text[2:])))}
}

func (q *queue) join(text string) {
	q.t.Helper()
	c, owner := q.comparisons.join(keyOf(text), text[2:3])
	if owner {
		q.owned = append(q.owned, c)
	}
	q.look()
}

// look notes which have begun, of which there is one more at most.
func (q *queue) look() {
	q.t.Helper()
	var now []string
	for _, c := range q.owned {
		if c.begun && !strings.Contains(strings.Join(q.begun, " ")+" ", textOf(c)+" ") {
			now = append(now, textOf(c))
		}
	}
	if len(now) > 1 {
		q.t.Fatalf("%v have begun at once", now)
	}
	q.begun = append(q.begun, now...)
}

// sourceAs is the source that a letter stands for.
func sourceAs(letter byte) policy.Source {
	return policy.SourceOf(netip.AddrFrom4([4]byte{10, 0, 0, letter}))
}

// letterOf is the letter that stands for a source.
func letterOf(s policy.Source) string {
	for c := byte('A'); c <= 'Z'; c++ {
		if sourceAs(c) == s {
			return string(rune(c))
		}
	}
	return "?"
}

func textOf(c *comparison) string {
	return letterOf(c.key.from) + ":" + strings.TrimRight(string(c.key.mark[:]), " ")
}

// endOldest ends the one that has begun first.
func (q *queue) endOldest() {
	q.t.Helper()
	for i, c := range q.owned {
		if c.begun {
			q.owned = append(q.owned[:i:i], q.owned[i+1:]...)
			q.end(c)
			q.look()
			return
		}
	}
	q.t.Fatal("none has begun")
}

// The specification of whose turn it is. A dot ends the one that is computed.
func TestTurns(t *testing.T) {
	for _, tt := range []struct{ name, arrive, want string }{
		{"the newest first", "A:a1 A:a2 A:a3", "A:a3 A:a2 A:a1"},
		{"names of a source take turns", "A:a1 A:b1 A:a2 A:a3", "A:a3 A:b1 A:a2 A:a1"},
		{"a name that had no turn goes before one that had", "A:a1 A:a2 A:a3 . A:b1 A:a4", "A:a3 A:b1 A:a4 A:a2 A:a1"},
		{"the name that waits the longest for its turn", "A:a1 A:b1 A:a2 A:b2 A:c1 A:c2 . . A:c3", "A:c2 A:b2 A:a2 A:c3 A:b1 A:a1 A:c1"},
		{"sources take turns", "A:a1 A:a2 B:a1 B:a2", "B:a2 A:a2 B:a1 A:a1"},
		{"whatever their names are", "A:a1 A:b1 A:c1 A:d1 B:a1 B:b1", "B:b1 A:d1 B:a1 A:c1 A:b1 A:a1"},
		{"a source that had no turn goes before one that had", "A:a1 A:a2 A:a3 . B:a1 B:a2", "A:a3 B:a2 A:a2 B:a1 A:a1"},
		{"equal ones are one, as new as the last", "A:a1 A:a2 A:a1", "A:a1 A:a2"},
		{"equal ones of two sources are two", "A:a1 B:a1", "B:a1 A:a1"},
		{"a name of two sources is two", "A:a1 A:b1 B:a1 . . A:c1", "B:a1 A:b1 A:c1 A:a1"},
	} {
		q := newQueue(t, 1, 1)
		q.join("Z:z0") // all wait for it
		for _, text := range strings.Fields(tt.arrive) {
			if text == "." {
				q.endOldest()
			} else {
				q.join(text)
			}
		}
		for len(q.owned) > 0 {
			q.endOldest()
		}
		if got := strings.Join(q.begun[1:], " "); got != tt.want {
			t.Errorf("%s: turns %s, want %s", tt.name, got, tt.want)
		}
		if len(q.all)+len(q.claims)+len(q.waiting)+q.running != 0 {
			t.Errorf("%s: %d comparisons, %d claims, %d waiting, %d running are left", tt.name, len(q.all), len(q.claims), len(q.waiting), q.running)
		}
	}
}

// One source computes on its share only, whatever it sends.
func TestTurnsOfOneSourceAreBounded(t *testing.T) {
	if q := newComparisons(); q.share > max(1, q.most/2) {
		t.Errorf("one source may compute %d of %d at once", q.share, q.most)
	}
	q := newQueue(t, 4, 2)
	for i := range 9 {
		q.join(fmt.Sprint("A:a", i))
	}
	q.join("B:a1")
	q.join("C:a1")
	q.join("D:a1") // of five that may begin, one too many
	if got, want := strings.Join(q.begun, " "), "A:a0 A:a1 B:a1 C:a1"; got != want {
		t.Errorf("begun: %s, want %s", got, want)
	}
	q.endOldest()
	if got := q.begun[len(q.begun)-1]; got != "D:a1" {
		t.Errorf("next: %s", got)
	}
}

// Among sources that all have more than can be computed each has one turn in a round.
func TestTurnsAreFair(t *testing.T) {
	const sources, guesses = 20, 10
	q := newQueue(t, 1, 1)
	q.join("z:z0")
	var arrivals []string
	for s := range sources {
		for g := range guesses * (1 + s%3) { // some send more
			arrivals = append(arrivals, fmt.Sprintf("%c:%c%d", 'A'+s, 'a'+g%3, g))
		}
	}
	rand.Shuffle(len(arrivals), func(i, j int) { arrivals[i], arrivals[j] = arrivals[j], arrivals[i] })
	for _, text := range arrivals {
		q.join(text)
	}
	for range guesses * sources {
		q.endOldest()
	}
	had := map[byte]int{}
	for i, text := range q.begun[1:] {
		had[text[0]]++
		if round := i/sources + 1; had[text[0]] > round {
			t.Fatalf("source %c has %d turns in round %d", text[0], had[text[0]], round)
		}
	}
}

// One that gives up leaves its place, before its turn and in it.
func TestComparisonsThatGiveUp(t *testing.T) {
	q := newQueue(t, 1, 1)
	for _, text := range []string{"A:a1", "A:a2", "B:a1"} {
		q.join(text)
	}
	a1, a2, b1 := q.owned[0], q.owned[1], q.owned[2]
	q.end(a2)
	q.end(a1)
	if !b1.begun || q.running != 1 {
		t.Errorf("the one that is left has begun: %v; %d running", b1.begun, q.running)
	}
	q.end(b1)
	if len(q.all)+len(q.claims)+len(q.waiting)+q.running != 0 {
		t.Errorf("%d comparisons, %d claims, %d waiting, %d running are left", len(q.all), len(q.claims), len(q.waiting), q.running)
	}
}

// What the choice of the next costs while thousands wait.
func BenchmarkNextComparison(b *testing.B) {
	q := newComparisons()
	q.running = q.most
	for i := range 4096 {
		var key comparisonKey
		key.from = policy.SourceOf(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		q.join(key, "a")
	}
	for b.Loop() {
		q.next()
	}
}
