package page

import "time"

const (
	// historyStep is the time between two samples, historySize their number: 15 minutes.
	historyStep = 10 * time.Second
	historySize = 91
)

// history is a ring of samples.
type history struct {
	ring [historySize]sample
	n    int // samples ever added
}

type sample struct {
	at     time.Time
	counts Counts
}

func (h *history) add(at time.Time, c Counts) {
	h.ring[h.n%historySize] = sample{at, c}
	h.n++
}

// samples returns the samples, the oldest first.
func (h *history) samples() (out []sample) {
	for i := max(0, h.n-historySize); i < h.n; i++ {
		out = append(out, h.ring[i%historySize])
	}
	return out
}

// Plot is what the plots show: one value for each pair of neighbouring samples.
type Plot struct {
	Time   []int64   `json:"time"` // seconds since 1970
	Up     []float64 `json:"up"`   // bytes a second
	Down   []float64 `json:"down"`
	Ended  []int64   `json:"ended"` // sessions in this step
	Failed []int64   `json:"failed"`
}

func plotOf(all []sample) Plot {
	p := Plot{Time: []int64{}, Up: []float64{}, Down: []float64{}, Ended: []int64{}, Failed: []int64{}}
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		seconds := max(b.at.Sub(a.at).Seconds(), 0.001)
		p.Time = append(p.Time, b.at.Unix())
		p.Up = append(p.Up, float64(max(0, b.counts.Up-a.counts.Up))/seconds)
		p.Down = append(p.Down, float64(max(0, b.counts.Down-a.counts.Down))/seconds)
		p.Ended = append(p.Ended, max(0, b.counts.Ended-a.counts.Ended))
		p.Failed = append(p.Failed, max(0, b.counts.Failed-a.counts.Failed))
	}
	return p
}
