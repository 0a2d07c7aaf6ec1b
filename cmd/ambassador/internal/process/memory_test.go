package process

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// Memory is returned once after each busy period, not during it, and not repeatedly.
func TestMemoryIsTidiedWhenQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var m memory
		var at []time.Duration
		start := time.Now()
		go m.watch(ctx, func() { at = append(at, time.Since(start)) }) // ends with ctx
		for range 10 {
			m.happened()
			<-time.After(quietAfter / 2)
		}
		<-time.After(time.Hour)
		m.happened()
		<-time.After(time.Hour)
		cancel()
		synctest.Wait()
		if len(at) != 2 || at[0] <= 5*quietAfter || at[0] > 7*quietAfter {
			t.Errorf("tidied at %v", at)
		}
	})
}

// After a takeover the sessions go first: memory is returned later.
func TestMemorySettlesLater(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		forced := func() uint32 {
			var s runtime.MemStats
			runtime.ReadMemStats(&s)
			return s.NumForcedGC
		}
		before := forced()
		m := memory{wait: quietAfter}
		go m.run(ctx) // ends with ctx
		<-time.After(quietAfter - 1)
		if n := forced(); n != before {
			t.Errorf("%d collections before its time", n-before)
		}
		<-time.After(2)
		synctest.Wait()
		if n := forced(); n == before {
			t.Error("no collection afterwards")
		}
		cancel()
		synctest.Wait()
	})
}

// Garbage of a busy period does not stay in the process.
func TestTidyGivesMemoryBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for range 64 {
		garbage = make([]byte, 1<<20)
	}
	garbage = nil
	before := resident()
	tidy()
	if after := resident(); after > before-32<<20 {
		t.Errorf("%d MiB in use of the system's memory, %d before", after>>20, before>>20)
	}
}

var garbage []byte

// resident is how much of the system's memory the heap holds.
func resident() int {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int(s.HeapSys - s.HeapReleased)
}
