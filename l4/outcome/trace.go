package outcome

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"
)

// TraceID identifies a trace, and SpanID a span of it (W3C Trace Context). Their texts are
// lowercase hex.
type (
	TraceID [16]byte
	SpanID  [8]byte
)

// NewSpanID makes an ID that is not zero. It is no secret.
func NewSpanID() (id SpanID) {
	for id == (SpanID{}) {
		randomize(id[:])
	}
	return id
}

// newTraceID makes an ID that is not zero. It is no secret.
func newTraceID() (id TraceID) {
	for id == (TraceID{}) {
		randomize(id[:])
	}
	return id
}

func randomize(to []byte) {
	for i := range to {
		to[i] = byte(rand.Uint32())
	}
}

func (id TraceID) String() string { return hex.EncodeToString(id[:]) }
func (id SpanID) String() string  { return hex.EncodeToString(id[:]) }

// MarshalText returns the text of the ID. The error is nil.
func (id TraceID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText returns the text of the ID. The error is nil.
func (id SpanID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *TraceID) UnmarshalText(text []byte) error { return readID(id[:], text) }

// UnmarshalText reads what MarshalText writes.
func (id *SpanID) UnmarshalText(text []byte) error { return readID(id[:], text) }

func readID(to, text []byte) error {
	if len(text) != 2*len(to) {
		return fmt.Errorf("%.40q has not %d digits", text, 2*len(to))
	}
	_, err := hex.Decode(to, text)
	return err
}

// Trace is the place of a session in a trace. Its exported fields do not change while the
// session lives, but for Phases and Omitted, which the session's goroutine owns until the
// record is final. A nil Trace is a session that belongs to no trace; its methods may be
// called and do nothing.
type Trace struct {
	TraceID TraceID `json:"trace_id"`
	// SpanID is the span of the session itself.
	SpanID SpanID `json:"span_id"`
	// Parent is the client's span; zero if the session begins the trace.
	Parent SpanID `json:"-"`
	// Sampled sessions are sent to the collector as spans. Only they have Phases.
	Sampled bool    `json:"-"`
	Phases  []Phase `json:"-"`
	// Omitted is how many phases there were beyond maxPhases.
	Omitted int `json:"-"`

	start time.Time // of the session
	open  bool      // the last phase has not ended
}

// maxPhases bounds Trace.Phases: an upstream may have hundreds of addresses to try.
const maxPhases = 64

// PhaseDNS is the phase of a lookup that a session waits for. Other phases have the name
// of their stage.
const PhaseDNS = "dns"

// Phase is a part of establishing a session.
type Phase struct {
	Name string // PhaseDNS, or the stage: dial, proxy, starttls, tls
	// Address is what was tried, or the name that was looked up; Attempt counts from 1.
	Address string
	Attempt int
	// From and To are the times after the start of the session.
	From, To time.Duration
	// Reason is why the phase failed, Cause what was seen; empty if it did not fail.
	Reason Reason
	Cause  string
}

// NewTrace makes the trace of a session that began at start. Id and parent are the
// client's; with zero ones the session begins a trace.
func NewTrace(start time.Time, id TraceID, parent SpanID, sampled bool) *Trace {
	if id == (TraceID{}) {
		id = newTraceID()
	}
	return &Trace{TraceID: id, SpanID: NewSpanID(), Parent: parent, Sampled: sampled, start: start}
}

// Begin begins a phase, and ends the one before as a success.
func (t *Trace) Begin(name, address string, attempt int) {
	if t == nil || !t.Sampled {
		return
	}
	t.End("", nil)
	if len(t.Phases) == maxPhases {
		t.Omitted++
		return
	}
	t.Phases = append(t.Phases, Phase{Name: name, Address: address, Attempt: attempt, From: time.Since(t.start)})
	t.open = true
}

// End ends the phase that is open, if there is one. An empty reason is success.
func (t *Trace) End(reason Reason, err error) {
	if t == nil || !t.open {
		return
	}
	p := &t.Phases[len(t.Phases)-1]
	p.To, t.open = time.Since(t.start), false
	if p.Reason = reason; reason != "" && err != nil {
		p.Cause, _ = CauseAndFix(err)
	}
}
