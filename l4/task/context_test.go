package task

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// A bounded context and one of package context live through the same, and must not
// be told apart.
func TestBoundedIsAContext(t *testing.T) {
	type pair struct{ ours, theirs context.Context }
	type key struct{}
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			parent, cancelParent := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
			defer cancelParent()
			if rng.IntN(2) == 0 {
				var cancel context.CancelFunc
				parent, cancel = context.WithTimeout(parent, time.Duration(rng.IntN(10))*time.Second)
				defer cancel()
			}
			var p, child pair
			var cancel, cancelTheirs context.CancelFunc
			if d := time.Duration(rng.IntN(12)-1) * time.Second; rng.IntN(4) > 0 {
				p.ours, cancel = WithTimeout(parent, d)
				p.theirs, cancelTheirs = context.WithTimeout(parent, d)
			} else {
				p.ours, cancel = WithCancel(parent)
				p.theirs, cancelTheirs = context.WithCancel(parent)
			}
			defer cancel()
			defer cancelTheirs()
			child = p
			if rng.IntN(2) == 0 { // asks for Done at once
				var end, endTheirs context.CancelFunc
				child.ours, end = context.WithCancel(p.ours)
				child.theirs, endTheirs = context.WithCancel(p.theirs)
				defer end()
				defer endTheirs()
			} else if rng.IntN(2) == 0 {
				var end, endTheirs context.CancelFunc
				child.ours, end = WithTimeout(p.ours, 5*time.Second)
				child.theirs, endTheirs = context.WithTimeout(p.theirs, 5*time.Second)
				defer end()
				defer endTheirs()
			}
			did := ""
			same := func(what string, ours, theirs any) {
				if ours != theirs {
					t.Fatalf("seed %d, after%s: %s is %v, want %v", seed, did, what, ours, theirs)
				}
			}
			ended := func(c context.Context) bool {
				select {
				case <-c.Done():
					return true
				default:
					return false
				}
			}
			for step := range 9 {
				switch n := rng.IntN(6); {
				case step == 0: // as they begin
				case n == 0:
					did += " cancel"
					cancel()
					cancelTheirs()
				case n == 1:
					did += " parent's cancel"
					cancelParent()
				default:
					d := time.Duration(rng.IntN(3)) * time.Second
					did += fmt.Sprint(" ", d)
					time.Sleep(d)
				}
				synctest.Wait()
				for i, c := range []pair{p, child} {
					what := fmt.Sprintf("context %d's ", i)
					same(what+"Err", c.ours.Err(), c.theirs.Err())
					if rng.IntN(3) == 0 {
						same(what+"end", ended(c.ours), ended(c.theirs))
					}
					ours, ok := c.ours.Deadline()
					theirs, isSet := c.theirs.Deadline()
					same(what+"Deadline", fmt.Sprint(ours, ok), fmt.Sprint(theirs, isSet))
					same(what+"Value", c.ours.Value(key{}), "value")
				}
			}
		})
	}
}

// A context without a wait has no timer.
func TestBoundedCostsNothing(t *testing.T) {
	n := testing.AllocsPerRun(100, func() {
		ctx, cancel := WithTimeout(t.Context(), time.Minute)
		if ctx.Err() != nil {
			t.Error(ctx.Err())
		}
		inner, cancelInner := WithTimeout(ctx, time.Second)
		if inner.Err() != nil {
			t.Error(inner.Err())
		}
		cancelInner()
		cancel()
	})
	if n > 4 {
		t.Errorf("%.0f allocations for two contexts, want one and a function each", n)
	}
}
