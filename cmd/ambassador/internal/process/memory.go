package process

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	rtm "runtime/metrics"
	"sync/atomic"
	"time"
)

// memory reduces garbage collection while the process is busy, and returns free memory
// to the system once it is quiet. Handshakes make garbage, and idle sessions should
// cost only their own memory.
type memory struct {
	busy atomic.Bool // sessions began or ended since the last check
	// Static once run begins.
	code []mapping     // of the program
	wait time.Duration // until settle: sessions of the program before go first
}

const (
	// maxPercent is how much a small heap may grow, in percent, before it is collected,
	// unless GOGC in the environment sets another value. It reduces the cost of a
	// handshake by a tenth.
	maxPercent = 400
	// headroom is how much garbage, in bytes, a larger heap may have: in a container of
	// 128 MiB, four times the live heap would be too much. From 64 MiB on, the garbage
	// may be minPercent of the live heap.
	headroom   = 32 << 20
	minPercent = 50
	// quietAfter is how long no session must have begun or ended before memory is
	// returned.
	quietAfter = 2 * time.Second
	// worthTidying is how much garbage, in bytes, is not worth collecting.
	worthTidying = 2 << 20
)

// happened records that a session has begun or ended.
func (m *memory) happened() {
	if !m.busy.Load() {
		m.busy.Store(true)
	}
}

// run tidies up after each busy period, until ctx ends.
func (m *memory) run(ctx context.Context) {
	if _, set := os.LookupEnv("GOGC"); !set {
		old := debug.SetGCPercent(maxPercent)
		defer debug.SetGCPercent(old)
		p := &pacer{percent: maxPercent}
		p.arm()
		defer p.stopped.Store(true)
	}
	select {
	case <-time.After(m.wait):
	case <-ctx.Done():
		return
	}
	m.settle()
	m.watch(ctx, tidy)
}

// settle returns what only the start needed: its garbage, and the pages of the program.
// Each library prepares its tables at start, those of the embedded CA too, and nearly
// all of them never run again. A page that is needed again is mapped again, in about a
// microsecond.
func (m *memory) settle() {
	debug.FreeOSMemory()
	dropPages(m.code)
}

// pacer sets, after each collection, how much the heap may grow until the next one.
type pacer struct {
	percent int // owned by the finalizer, which runs once per collection
	stopped atomic.Bool
}

// arm arranges for adjust to run after the next collection.
func (p *pacer) arm() {
	runtime.SetFinalizer(&struct{ at *pacer }{p}, func(*struct{ at *pacer }) { p.adjust() })
}

func (p *pacer) adjust() {
	if p.stopped.Load() {
		return
	}
	s := []rtm.Sample{{Name: "/gc/heap/live:bytes"}}
	rtm.Read(s)
	if want := percentFor(s[0].Value.Uint64()); want > p.percent+p.percent/8 || want < p.percent-p.percent/8 {
		p.percent = want
		debug.SetGCPercent(want)
	}
	p.arm()
}

// percentFor is how much a heap with that many live bytes may grow, in percent.
func percentFor(live uint64) int {
	return int(min(max(headroom*100/max(live, 1), minPercent), maxPercent))
}

// watch calls tidy once after each busy period, until ctx ends.
func (m *memory) watch(ctx context.Context, tidy func()) {
	tick := time.NewTicker(quietAfter)
	defer tick.Stop()
	untidy := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		switch {
		case m.busy.Swap(false):
			untidy = true
		case untidy:
			untidy = false
			tidy()
		}
	}
}

// tidy collects garbage and returns its memory to the system, if there is enough of it.
func tidy() {
	s := []rtm.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}}
	rtm.Read(s)
	if s[0].Value.Uint64()-min(s[1].Value.Uint64(), s[0].Value.Uint64())+s[2].Value.Uint64() > worthTidying {
		debug.FreeOSMemory()
	}
}
