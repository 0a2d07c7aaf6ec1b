package l4

import (
	"runtime"
	"slices"
	"sync"
)

// comparisons are the passwords that wait for a bcrypt, or have one under way.
//
// Sources take turns, and within a source the names that it tries: the one whose
// last turn is the longest ago goes first, one without a turn yet before all
// others, and of several the newest. So a source that sends thousands of guesses
// delays only itself, and its guesses at one name delay only that name. The newest
// goes first because in an overload it is the one that can still be answered in
// time; in order of arrival all of them would wait until they give up.
//
// It is safe for concurrent use. What waits is not bounded here: each comparison
// belongs to a session, whose number limits.connections and limits.memory bound.
type comparisons struct {
	// Static after construction.
	most  int // that are computed at once
	share int // of them, for one source

	mu      sync.Mutex
	all     map[comparisonKey]*comparison // guarded by mu
	waiting []*comparison                 // guarded by mu; of all, without a turn yet, the newest last
	running int                           // guarded by mu
	turns   uint64                        // guarded by mu; how many there were
	claims  map[claim]*claimant           // guarded by mu; of all
}

// comparisonKey is what a comparison is about. Equal ones are made once.
type comparisonKey struct {
	from Source
	mark passwordMark
}

// comparison is one bcrypt, which the first who asks computes for all.
type comparison struct {
	key    comparisonKey
	turn   chan struct{} // closed when it may be computed
	source *claimant
	name   *claimant
	begun  bool // guarded by comparisons.mu; turn is closed

	done chan struct{}
	// Set before done is closed.
	ok    bool
	given bool // there is an answer; else its owner gave up, and another must compute
}

// claim is what takes turns: a source, or a name that a source tries.
type claim struct {
	from  Source
	named bool
	name  string
}

// claimant is what is known of a claim. Guarded by comparisons.mu.
type claimant struct {
	claim
	lastTurn uint64 // 0: none yet
	running  int
	held     int // comparisons of it; it is forgotten with the last
}

// newComparisons lets one source compute on half of the processors, so that another
// source finds one that is free.
func newComparisons() *comparisons {
	most := max(1, min(runtime.GOMAXPROCS(0), runtime.NumCPU()))
	return &comparisons{most: most, share: max(1, most/2),
		all: map[comparisonKey]*comparison{}, claims: map[claim]*claimant{}}
}

// join finds the comparison of a key, which becomes the newest, or makes it; then
// the caller owns it: it waits for its turn, computes, and calls end.
func (q *comparisons) join(key comparisonKey, user string) (c *comparison, owner bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c = q.all[key]; c != nil {
		if !c.begun {
			q.withdraw(c)
			q.waiting = append(q.waiting, c)
		}
		return c, false
	}
	c = &comparison{key: key, turn: make(chan struct{}), done: make(chan struct{}),
		source: q.claim(claim{from: key.from}), name: q.claim(claim{key.from, true, user})}
	q.all[key] = c
	q.waiting = append(q.waiting, c)
	q.begin()
	return c, true
}

// end forgets a comparison, whether it had its turn or not, and tells those who
// wait for its answer.
func (q *comparisons) end(c *comparison) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.all, c.key)
	if c.begun {
		q.running--
		c.source.running--
	} else {
		q.withdraw(c)
	}
	q.release(c.source)
	q.release(c.name)
	close(c.done)
	q.begin()
}

// begin gives turns to as many as may compute. Mu is held.
func (q *comparisons) begin() {
	for q.running < q.most {
		i := q.next()
		if i < 0 {
			return
		}
		c := q.waiting[i]
		q.waiting = slices.Delete(q.waiting, i, i+1)
		q.turns++
		q.running++
		c.source.running++
		c.source.lastTurn, c.name.lastTurn = q.turns, q.turns
		c.begun = true
		close(c.turn)
	}
}

// next is which of those that wait has the next turn; negative: none may. Mu is
// held. It looks at all of them, which takes 40 µs for 4,096, and a bcrypt at least
// a millisecond.
func (q *comparisons) next() int {
	best := -1
	for i, c := range slices.Backward(q.waiting) {
		if c.source.running < q.share && (best < 0 || c.before(q.waiting[best])) {
			best = i
		}
	}
	return best
}

// before says whether c has its turn before a newer one.
func (c *comparison) before(newer *comparison) bool {
	if c.source == newer.source {
		return c.name.lastTurn < newer.name.lastTurn
	}
	return c.source.lastTurn < newer.source.lastTurn
}

// withdraw takes a comparison out of those that wait. Mu is held.
func (q *comparisons) withdraw(c *comparison) {
	i := slices.Index(q.waiting, c)
	q.waiting = slices.Delete(q.waiting, i, i+1)
}

// claim finds a claimant, or makes it, for one more comparison. Mu is held.
func (q *comparisons) claim(of claim) *claimant {
	t := q.claims[of]
	if t == nil {
		t = &claimant{claim: of}
		q.claims[of] = t
	}
	t.held++
	return t
}

// release is for one comparison less. Mu is held.
func (q *comparisons) release(t *claimant) {
	if t.held--; t.held == 0 {
		delete(q.claims, t.claim)
	}
}
