package l4test

import (
	"maps"
	"sync"
	"testing"
)

// Survived counts panics by their part.
type Survived struct {
	mu sync.Mutex
	n  map[string]int
}

func (s *Survived) Count(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = map[string]int{}
	}
	s.n[part]++
}

func (s *Survived) Want(t *testing.T, want map[string]int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(s.n, want) {
		t.Errorf("panics by part: %v, want %v", s.n, want)
	}
}
