package limits

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Values are due in the order of their deadlines, with one timer, and those that were
// removed are not.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type value struct {
			name string
			by   time.Time
		}
		start := time.Now()
		var mu sync.Mutex
		var got []string
		d := &Deadlines[value]{By: func(v value) time.Time { return v.by }, Expired: func(due []value) {
			mu.Lock()
			defer mu.Unlock()
			for _, v := range due {
				got = append(got, v.name+time.Since(start).String())
			}
		}}
		add := func(name string, after time.Duration) func() {
			at := d.Add(value{name, start.Add(after)})
			return func() { d.Remove(at) }
		}
		leave := add("a", time.Second)
		add("b", 2*time.Second)
		gone := add("c", 3*time.Second)
		add("d", 3*time.Second)
		leave()
		gone()
		if n := d.Len(); n != 2 {
			t.Errorf("%d values", n)
		}
		time.Sleep(5 * time.Second)
		add("e", 6*time.Second)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"b2s", "d3s", "e6s"}; !slices.Equal(got, want) || d.Len() != 0 {
			t.Errorf("due: %v, %d left; want %v", got, d.Len(), want)
		}
	})
}
