package l4

import (
	"math/rand/v2"

	"ambassador/l4/outcome"
	"ambassador/l4/preface"
)

// Tracing says which sessions are sent to a collector as spans.
type Tracing struct {
	// On means that there is a collector for spans. Without one, no session is sampled.
	On bool
	// Sample is the share of sessions that are sampled, from 0 to 1. A session whose client
	// names a trace is sampled if that trace is.
	Sample float64
}

// joinTrace gives the session its place in a trace: that which the client has named, or a
// new one if the session is sampled. It is called once, as soon as it is known what the
// client has said. A session that is in no trace pays an atomic load.
func (s *session) joinTrace(given preface.Traceparent) {
	t := s.server.tracing.Load()
	switch {
	case given.IsValid():
	case !t.On || t.Sample == 0 || t.Sample <= rand.Float64():
		return
	}
	trace := outcome.NewTrace(s.rec.Start(), outcome.TraceID(given.TraceID), outcome.SpanID(given.ParentID), t.On && (given.Sampled || !given.IsValid()))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Join(trace)
}

// joinTraceLate is joinTrace for a session that ended before its greeting was over.
func (s *session) joinTraceLate(stage outcome.Stage) {
	if s.rec.Trace() == nil && (stage == outcome.StageAdmit || stage == outcome.StageGreet) {
		s.joinTrace(preface.Traceparent{})
	}
}
