package l4

import (
	"container/list"
	"runtime"
	"sync"
)

// greeters are the sessions whose client has begun to say what has to come before a
// dial, and has not said it yet; who has said nothing is in silence. They bound what a
// flood of clients can cost, whoever else the process serves: their number bounds the
// memory, and turns the processor time.
type greeters struct {
	// turns has a place for each that may compute now: as many as there are
	// processors. Thousands of handshakes would else stand before every relay that
	// has something to move; so each waits for its turn, in the order in which they
	// came, and holds none while it waits for its client. (800 clients that send a
	// hello and do no work of their own: a ping through another listener takes
	// 1.5 ms, and 12 ms in the 99th percentile; without turns 17 to 104, and 300 to 490.)
	turns chan struct{}

	most int // static after construction; bounds all

	mu  sync.Mutex
	all list.List // guarded by mu; of *session, the oldest first
}

// maxGreeters bounds the sessions in greet: at 20 KiB each (measured; most of it is
// the goroutine's stack, or the runner's) they need 80 MiB.
const maxGreeters = 4096

// errCrowded ends the oldest of too many. Who comes in earnest has said all within
// a second, while those that only hold a place grow old.
var errCrowded = &stopError{ReasonLimit, "too many clients had not done their handshake, and this one had taken the longest"}

func newGreeters() *greeters {
	return &greeters{turns: make(chan struct{}, runtime.GOMAXPROCS(0)), most: maxGreeters}
}

// enter counts a session in until leave. If there are too many, the oldest is
// stopped.
func (g *greeters) enter(s *session) (leave func()) {
	g.mu.Lock()
	at := g.all.PushBack(s)
	var oldest *session
	if g.all.Len() > g.most {
		oldest = g.all.Remove(g.all.Front()).(*session)
	}
	g.mu.Unlock()
	if oldest != nil {
		oldest.note(func(r *Record) { r.Limit = "handshakes" })
		oldest.stop(errCrowded)
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.all.Remove(at) // nothing if it was the oldest
	}
}
