package policy

import (
	"container/list"
	"sync"
)

// MaxBreakers is how many destinations a Breakers remembers: each costs about
// 250 bytes with its key, so that they cost a megabyte.
const MaxBreakers = 4096

// Breakers has a breaker for each of many destinations, and forgets the least
// recently used beyond a bound: destinations that clients name are without end.
// Make it with NewBreakers. It is safe for concurrent use.
type Breakers struct {
	cfg BreakerConfig // static after construction
	max int           // static after construction

	mu     sync.Mutex
	byKey  map[string]*list.Element // guarded by mu; of *keyedBreaker
	recent *list.List               // guarded by mu; the most recently used in front
}

type keyedBreaker struct {
	key     string
	breaker Breaker
}

// NewBreakers makes an empty table of at most max breakers.
func NewBreakers(cfg BreakerConfig, max int) *Breakers {
	return &Breakers{cfg: cfg, max: max, byKey: map[string]*list.Element{}, recent: list.New()}
}

// For is the breaker of a destination. One that the table has forgotten can still
// be settled; a new one begins closed.
func (b *Breakers) For(key string) *Breaker {
	b.mu.Lock()
	defer b.mu.Unlock()
	if el := b.byKey[key]; el != nil {
		b.recent.MoveToFront(el)
		return &el.Value.(*keyedBreaker).breaker
	}
	k := &keyedBreaker{key: key}
	k.breaker.Init(b.cfg)
	b.byKey[key] = b.recent.PushFront(k)
	if b.recent.Len() > b.max {
		delete(b.byKey, b.recent.Remove(b.recent.Back()).(*keyedBreaker).key)
	}
	return &k.breaker
}

// Counts is how many of the breakers are in each state, by BreakerState.
func (b *Breakers) Counts() (n [Open + 1]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for el := b.recent.Front(); el != nil; el = el.Next() {
		n[el.Value.(*keyedBreaker).breaker.State()]++
	}
	return n
}
