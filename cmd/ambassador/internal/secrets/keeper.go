package secrets

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// keeper keeps items of one kind that a configuration names, over reloads, in two phases:
// prepare gives the items of a configuration, and commit replaces those that run. Nothing
// has changed before commit. One goroutine at a time calls prepare and commit; the other
// methods may be called by any.
type keeper[T item] struct {
	ctx context.Context // ends what runs; static
	all sync.WaitGroup  // what runs

	mu      sync.Mutex
	running set[T] // guarded by mu; replaced as a whole
}

// item is what a keeper keeps.
type item interface {
	// start keeps the item current until ctx ends. All counts the goroutines.
	start(ctx context.Context, all *sync.WaitGroup)
	// refresh reads the item's files now.
	refresh()
}

// wanted is an item that a configuration names. Key is the text of all that makes it
// another one, where the name is the same. Open reads its files and contacts no host.
type wanted[T item] struct {
	name, key string
	open      func() (T, error)
}

// set has the items of one configuration, by name.
type set[T item] map[string]*kept[T]

// kept is an item that runs, or is to run.
type kept[T item] struct {
	key  string
	item T
	stop context.CancelFunc // owned by commit's caller; nil before commit
}

func newKeeper[T item](ctx context.Context) *keeper[T] { return &keeper[T]{ctx: ctx} }

// prepare gives the items of a configuration: those that run and are unchanged, and new
// ones. Failed has the errors of those that could not be opened, by name.
func (k *keeper[T]) prepare(want []wanted[T]) (next set[T], failed map[string]error) {
	running := k.current()
	next, failed = set[T]{}, map[string]error{}
	for _, w := range want {
		if old := running[w.name]; old != nil && old.key == w.key {
			next[w.name] = old
			continue
		}
		item, err := w.open()
		if err != nil {
			failed[w.name] = err
			continue
		}
		next[w.name] = &kept[T]{key: w.key, item: item}
	}
	return next, failed
}

// commit stops what is not in next, and starts what is new in it.
func (k *keeper[T]) commit(next set[T]) {
	k.mu.Lock()
	old := k.running
	k.running = next
	k.mu.Unlock()
	for name, was := range old {
		if next[name] != was {
			was.stop()
		}
	}
	for _, is := range next {
		if is.stop != nil {
			continue
		}
		ctx, cancel := context.WithCancel(k.ctx)
		is.stop = cancel
		is.item.start(ctx, &k.all)
	}
}

func (k *keeper[T]) current() set[T] {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.running
}

// refresh lets every item read its files now.
func (k *keeper[T]) refresh() {
	for _, item := range k.current().list() {
		item.refresh()
	}
}

// get is the item of that name; the zero value if there is none.
func (s set[T]) get(name string) (item T) {
	if found := s[name]; found != nil {
		item = found.item
	}
	return item
}

// list has the items by name.
func (s set[T]) list() (out []T) {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		out = append(out, s[name].item)
	}
	return out
}
