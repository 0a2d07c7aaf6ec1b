package htpasswd

import (
	"runtime"
	"slices"
	"sync"

	"ambassador/policy"
)

// comparisons is the queue of passwords that wait for a bcrypt or are being computed.
//
// Sources take turns, and within a source the names that it tries: the one whose last
// turn is the longest ago goes first, one without a turn yet before all others, and of
// several the newest. So a source that sends thousands of guesses delays only itself,
// and its guesses at one name delay only that name. The newest goes first because in an
// overload it is the one that can still be answered in time; in order of arrival all
// would wait until they time out.
//
// It is safe for concurrent use. It does not bound its length: each comparison belongs
// to a session, whose number limits.connections and limits.memory bound.
type comparisons struct {
	// Static after construction.
	most  int // how many are computed at once
	share int // how many of them for one source

	mu      sync.Mutex
	all     map[comparisonKey]*comparison // guarded by mu
	waiting []*comparison                 // guarded by mu; those of all without a turn yet, the newest last
	running int                           // guarded by mu
	turns   uint64                        // guarded by mu; how many were given
	claims  map[claim]*claimant           // guarded by mu; of all
}

// comparisonKey identifies a comparison. Comparisons with equal keys are computed once.
type comparisonKey struct {
	from policy.Source
	mark passwordMark
}

// comparison is one bcrypt. The caller that asked first computes it for all that wait.
type comparison struct {
	key    comparisonKey
	turn   chan struct{} // closed when it may be computed
	source *claimant
	name   *claimant
	begun  bool // guarded by comparisons.mu; turn is closed

	done chan struct{}
	// Set before done is closed.
	ok    bool
	given bool // ok is the answer; else its owner gave up, and another caller must compute
}

// claim identifies what takes turns: a source, or a name that a source tries.
type claim struct {
	from  policy.Source
	named bool
	name  string
}

// claimant is the state of a claim. Guarded by comparisons.mu.
type claimant struct {
	claim
	lastTurn uint64 // 0: none yet
	running  int
	held     int // its comparisons; it is forgotten with the last
}

// newComparisons lets one source compute on half of the processors, so that others find
// a free one.
func newComparisons() *comparisons {
	most := max(1, min(runtime.GOMAXPROCS(0), runtime.NumCPU()))
	return &comparisons{most: most, share: max(1, most/2),
		all: map[comparisonKey]*comparison{}, claims: map[claim]*claimant{}}
}

// join finds the comparison of a key and makes it the newest, or adds it. The owner of
// an added one waits for its turn, computes, and calls end.
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

// end forgets a comparison, whether it had its turn or not, and wakes the callers that
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

// begin gives turns while processors are free. Mu is held.
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

// next is the index in waiting of the next turn; negative: none may compute. Mu is held.
// It looks at all of them: 40 µs for 4,096, where a bcrypt takes at least a millisecond.
func (q *comparisons) next() int {
	best := -1
	for i, c := range slices.Backward(q.waiting) {
		if c.source.running < q.share && (best < 0 || c.before(q.waiting[best])) {
			best = i
		}
	}
	return best
}

// before says whether c has its turn before a newer comparison.
func (c *comparison) before(newer *comparison) bool {
	if c.source == newer.source {
		return c.name.lastTurn < newer.name.lastTurn
	}
	return c.source.lastTurn < newer.source.lastTurn
}

// withdraw removes a comparison from waiting. Mu is held.
func (q *comparisons) withdraw(c *comparison) {
	i := slices.Index(q.waiting, c)
	q.waiting = slices.Delete(q.waiting, i, i+1)
}

// claim finds or adds the claimant of one more comparison. Mu is held.
func (q *comparisons) claim(of claim) *claimant {
	t := q.claims[of]
	if t == nil {
		t = &claimant{claim: of}
		q.claims[of] = t
	}
	t.held++
	return t
}

// release ends one comparison of a claimant. Mu is held.
func (q *comparisons) release(t *claimant) {
	if t.held--; t.held == 0 {
		delete(q.claims, t.claim)
	}
}
