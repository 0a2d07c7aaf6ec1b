package limits

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"ambassador/policy"
)

func testSource(last byte) policy.Source {
	return policy.SourceOf(netip.AddrFrom4([4]byte{10, 0, 0, last}))
}

func TestTurnsGoRoundTheSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewTurns(1)
		q.Take(t.Context(), testSource(9))
		var got []byte
		for _, from := range []byte{1, 1, 1, 1, 2, 3, 2} {
			go func() { // ends with its turn
				if q.Take(t.Context(), testSource(from)) == nil {
					got = append(got, from)
				}
			}()
			synctest.Wait() // the goroutines ask in this order
		}
		for range 8 {
			q.GiveBack()
			synctest.Wait()
		}
		if want := []byte{1, 2, 3, 1, 2, 1, 1}; !slices.Equal(got, want) || q.running != 0 || len(q.order)+len(q.waiting) != 0 {
			t.Errorf("turns %v, want %v; %d in use, %v wait", got, want, q.InUse(), q.order)
		}
	})
}

func TestTurnsOfThoseThatLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewTurns(1)
		q.Take(t.Context(), testSource(1))
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 3)
		for range 3 {
			go func() { left <- q.Take(ctx, testSource(2)) }() // ends with ctx
		}
		stays := make(chan error, 1)
		go func() { stays <- q.Take(t.Context(), testSource(2)) }() // ends with its turn
		synctest.Wait()
		cancel()
		for range 3 {
			if err := <-left; err != context.Canceled {
				t.Errorf("left with %v", err)
			}
		}
		q.GiveBack()
		if err := <-stays; err != nil {
			t.Error(err)
		}
		q.GiveBack()
		// A caller whose turn begins while it withdraws gives the turn back.
		q.Take(t.Context(), testSource(1))
		mine := q.ask(testSource(2))
		q.GiveBack()
		q.withdraw(testSource(2), mine)
		if q.running != 0 || len(q.order)+len(q.waiting) != 0 {
			t.Errorf("%d in use, %v wait", q.InUse(), q.order)
		}
	})
}
