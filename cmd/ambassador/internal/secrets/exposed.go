package secrets

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// lookTimeout is how long a question about the process waits for a look at its files.
const lookTimeout = 200 * time.Millisecond

// exposed knows which files with secrets every user of this host may read. A file may be
// on a host that is gone: a look at it then never ends, and nothing waits for it longer
// than lookTimeout. Until it ends there is no other, and of the files that it has not
// looked at what was found before counts.
type exposed struct {
	look func(path string) error // certs.Exposed; static

	mu      sync.Mutex
	looking chan struct{}     // guarded by mu; closed when the look ends; nil: there is none
	found   map[string]string // guarded by mu; what was found last, by path
}

// of looks at the files and returns what is wrong with each, by path.
func (e *exposed) of(paths []string) map[string]string {
	e.mu.Lock()
	if e.looking == nil {
		e.looking = make(chan struct{})
		go e.lookAt(slices.Clone(paths), e.looking)
	}
	looking := e.looking
	e.mu.Unlock()
	select {
	case <-looking:
	case <-time.After(lookTimeout):
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.found)
}

func (e *exposed) lookAt(paths []string, done chan struct{}) {
	for _, path := range paths {
		err := e.look(path)
		e.mu.Lock()
		if e.found == nil {
			e.found = map[string]string{}
		}
		if delete(e.found, path); err != nil {
			e.found[path] = err.Error()
		}
		e.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.found, func(path, _ string) bool { return !slices.Contains(paths, path) })
	e.looking = nil
	close(done)
}
