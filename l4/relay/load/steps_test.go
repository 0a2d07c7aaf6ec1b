package load

import (
	"testing"
	"time"
)

func TestStepsAreBounded(t *testing.T) {
	s, did := &Steps{}, 0
	step := func() { did++ }
	for range MaxSteps {
		if !s.Take(step, 1) {
			t.Fatal("a step is not taken")
		}
	}
	if s.Take(step, 1) || !s.Wait() {
		t.Errorf("more than %d steps wait", MaxSteps)
	}
	for next := s.Next(); next != nil; next = s.Next() {
		next()
	}
	if did != MaxSteps || s.Wait() {
		t.Errorf("%d steps were done", did)
	}
	if s.Took(1000, SlowStep) {
		t.Error("a step is slow that is not")
	}
	if !s.Take(step, 1000) {
		t.Error("no step is taken after one that is not slow")
	}
	if !s.Took(1000, SlowStep+1) {
		t.Error("a slow step is not slow")
	}
	after := 1000 + 50*int64(SlowStep+1)
	if s.Take(step, after-1) || !s.Take(step, after) {
		t.Errorf("after a slow step the next is not taken %v later, but before or after", time.Duration(after))
	}
}
