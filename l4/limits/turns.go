package limits

import (
	"context"
	"slices"
	"sync"

	"ambassador/l4/task"
	"ambassador/policy"
)

// Turns limits how many goroutines do something at a time. The sources alternate, and
// within a source the first caller is first: many callers of one source delay only
// themselves. It is safe for concurrent use.
type Turns struct {
	most int // static after construction

	mu      sync.Mutex
	running int                               // guarded by mu
	waiting map[policy.Source][]chan struct{} // guarded by mu; the waiting callers, by source; a channel is closed for its turn
	order   []policy.Source                   // guarded by mu; the sources with waiting callers, the next one first
}

// NewTurns makes turns for most goroutines at a time.
func NewTurns(most int) *Turns {
	return &Turns{most: most, waiting: map[policy.Source][]chan struct{}{}}
}

// Take waits for a turn, which the caller must give back. If ctx ends first, it returns
// the error of ctx.
func (t *Turns) Take(ctx context.Context, from policy.Source) error {
	mine := t.ask(from)
	if mine == nil {
		return nil
	}
	task.Leave(ctx)
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		t.withdraw(from, mine)
		return ctx.Err()
	}
}

// ask takes a turn at once, and returns nil. If none is free, it joins the queue, and
// returns a channel that is closed when the turn begins.
func (t *Turns) ask(from policy.Source) chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running < t.most {
		t.running++
		return nil
	}
	mine := make(chan struct{})
	if len(t.waiting[from]) == 0 {
		t.order = append(t.order, from)
	}
	t.waiting[from] = append(t.waiting[from], mine)
	return mine
}

// GiveBack ends a turn, and gives it to the next caller.
func (t *Turns) GiveBack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.order) == 0 {
		t.running--
		return
	}
	from := t.order[0]
	t.order = slices.Delete(t.order, 0, 1)
	line := t.waiting[from]
	close(line[0])
	if t.waiting[from] = line[1:]; len(line) > 1 {
		t.order = append(t.order, from)
	} else {
		delete(t.waiting, from)
	}
}

// withdraw leaves the queue. If the turn has begun meanwhile, it gives the turn back.
func (t *Turns) withdraw(from policy.Source, mine chan struct{}) {
	t.mu.Lock()
	line := t.waiting[from]
	i := slices.Index(line, mine)
	if i >= 0 {
		if line = slices.Delete(line, i, i+1); len(line) > 0 {
			t.waiting[from] = line
		} else {
			delete(t.waiting, from)
			t.order = slices.DeleteFunc(t.order, func(s policy.Source) bool { return s == from })
		}
	}
	t.mu.Unlock()
	if i < 0 {
		t.GiveBack()
	}
}

// InUse returns how many turns are taken.
func (t *Turns) InUse() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running
}

// Waiting returns how many callers of a source wait.
func (t *Turns) Waiting(from policy.Source) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting[from])
}
