package policy

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

func TestBreakersForgetTheLeastRecentlyUsed(t *testing.T) {
	table := NewBreakers(BreakerConfig{Failures: 1, Open: time.Minute}, 2)
	trip := func(key string) *Breaker {
		b := table.For(key)
		ticket, _, _ := b.Permit(epoch)
		b.Settle(ticket, Failure, epoch, 0)
		return b
	}
	a, b := trip("a"), trip("b")
	if table.For("a") != a {
		t.Error("another breaker for the same destination")
	}
	table.For("c") // b is the one that goes
	if got := table.Counts(); got != [3]int{Closed: 1, Open: 1} {
		t.Errorf("counts %v", got)
	}
	if table.For("b") == b || table.For("b").State() != Closed {
		t.Error("the forgotten one is remembered")
	}
	b.Settle(Ticket{}, Success, epoch, 0)
}

// TestBreakersFlood sends 100,000 distinct destinations, each of which fails, to
// the table, and holds it to 10 MiB.
func TestBreakersFlood(t *testing.T) {
	table := NewBreakers(BreakerConfig{Failures: 5, Open: time.Second}, MaxBreakers)
	before := heap()
	for i := range 100_000 {
		b := table.For(fmt.Sprintf("host-%d.partner.example:5432", i))
		ticket, _, _ := b.Permit(epoch)
		b.Settle(ticket, Failure, epoch, 0)
	}
	grown := int64(heap()) - int64(before)
	n := table.Counts()
	t.Logf("after 100,000 destinations: %d breakers, the heap has grown by %d KiB", n[Closed]+n[HalfOpen]+n[Open], grown>>10)
	if grown > 10<<20 || n[Closed] != MaxBreakers {
		t.Errorf("grown by %d bytes, counts %v", grown, n)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
