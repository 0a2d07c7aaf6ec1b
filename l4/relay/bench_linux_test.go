package relay

import (
	"crypto/tls"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"
)

// BenchmarkFairness measures the round trip of a small message: alone; beside
// bulk sessions on another loop, which shows the load of the machine; and beside
// bulk sessions on its own loop. The difference of the last two is their cost.
func BenchmarkFairness(b *testing.B) {
	for _, k := range []kind{{}, {tls: tls.VersionTLS13}} {
		for _, bulk := range []int{1, 8} {
			b.Run(fmt.Sprintf("tls %x/%d bulk", k.tls, bulk), func(b *testing.B) {
				alone := pingBeside(b, k, 0, true)
				other := pingBeside(b, k, bulk, false)
				same := pingBeside(b, k, bulk, true)
				b.ReportMetric(float64(alone.Microseconds()), "µs/alone")
				b.ReportMetric(float64(other.Microseconds()), "µs/other-loop")
				b.ReportMetric(float64(same.Microseconds()), "µs/same-loop")
				b.ReportMetric(float64((same - other).Microseconds()), "µs/added")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// pingBeside is the median of pings beside bulk sessions.
func pingBeside(b *testing.B, k kind, bulk int, sameLoop bool) time.Duration {
	e := New()
	defer e.Close()
	allInUse(e)
	down, up, close := benchSession(b, e, kind{})
	defer close()
	go io.Copy(up, up) // close ends it
	if sameLoop {
		aroundLoops(e)
	}
	for range bulk {
		from, to, close := benchSession(b, e, k)
		defer close()
		go io.Copy(from, endless{}) // close ends both
		go io.Copy(io.Discard, to)
		aroundLoops(e)
	}
	took := make([]time.Duration, 0, 2000)
	buf := make([]byte, 64)
	for range cap(took) {
		start := time.Now()
		ping(b, down, buf)
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// aroundLoops makes the next session go to the loop of the last one.
func aroundLoops(e *Engine) {
	for range len(*e.loops.Load()) - 1 {
		e.loop()
	}
}
