package l4

import (
	"strings"
	"sync"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/policy"
)

// Phase is a part of establishing a connection that is timed on its own.
type Phase string

// The phases of one connection to an upstream.
const (
	PhaseDNS      Phase = "dns"
	PhaseDial     Phase = "dial"
	PhaseProxy    Phase = "proxy"
	PhaseStartTLS Phase = "starttls"
	PhaseTLS      Phase = "tls"
	PhaseTotal    Phase = "total"
)

// Observer is told of what happens, for metrics. A nil field is not called. Its
// functions are called from many goroutines and must not block.
type Observer struct {
	// Opened: a connection was accepted.
	Opened func(listener string)
	// Ended: a session is over; the record is final and not changed any more.
	Ended func(*outcome.Record)
	// Ruled: a rule of the listener has decided; of none that did, rule is empty.
	Ruled func(listener, rule string, verdict policy.Verdict)
	// Attempt: an attempt to reach the upstream settled; outcome.OK is success.
	Attempt func(upstream string, reason outcome.Reason)
	// Phase: a phase that went well took so long.
	Phase func(upstream string, phase Phase, d time.Duration)
	// Preconnect: a session asked for a ready connection, where the upstream keeps
	// some, and got one or not.
	Preconnect func(upstream string, result PreconnectResult)
	// AcceptPaused: accepting pauses because descriptors or memory ran out.
	AcceptPaused func(listener string)
	// Panicked: a part, one of Parts, has survived a panic.
	Panicked func(part string)
}

// Traffic is what one listener and upstream have moved, live sessions included.
// The byte counts never go down while the process lives.
type Traffic struct {
	Listener, Upstream string
	Active             int
	Up, Down           int64
}

// Stalls is how long single events have kept other sessions waiting; see relay.Stalls.
type Stalls = relay.Stalls

// StallBounds are the upper bounds of Stalls.Counts.
var StallBounds = relay.StallBounds

// Stalls is how long the events of the engine's loops have taken since the start.
func (s *Server) Stalls() Stalls { return s.engine.Stalls() }

// recentRecords is how many ended sessions are kept for `why`: at about 600
// bytes each they cost 2.5 MB.
const recentRecords = 4096

const (
	recordBlock = 64       // records; recentRecords is a multiple
	recordText  = 16 << 10 // bytes; the strings of about as many
)

// recent is a ring of the last ended sessions. They are copied into memory of their
// own, strings included: each string would otherwise keep the page where it was made,
// which is full of what its session has left behind.
type recent struct {
	mu     sync.Mutex
	blocks []*[recordBlock]outcome.Record // guarded by mu; as many as there were sessions for
	count  int                            // guarded by mu; of records in blocks
	next   int                            // guarded by mu; where the next goes, over the oldest once count is full
	text   strings.Builder                // guarded by mu; the strings of the newest, never grown once some refer to it
}

func (r *recent) add(rec *outcome.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next/recordBlock == len(r.blocks) {
		r.blocks = append(r.blocks, new([recordBlock]outcome.Record))
	}
	kept := r.at(r.next)
	*kept = *rec
	kept.CopyTexts(r.keep)
	r.next = (r.next + 1) % recentRecords
	r.count = min(r.count+1, recentRecords)
}

// at is a place of the ring, with mu held.
func (r *recent) at(i int) *outcome.Record { return &r.blocks[i/recordBlock][i%recordBlock] }

// keep is the same string in the ring's memory, with mu held.
func (r *recent) keep(s string) string {
	if s == "" {
		return ""
	}
	if r.text.Cap()-r.text.Len() < len(s) {
		r.text.Reset() // the old text lives as long as its records
		r.text.Grow(max(recordText, len(s)))
	}
	from := r.text.Len()
	r.text.WriteString(s)
	return r.text.String()[from:]
}

// list returns the records, the newest first.
func (r *recent) list() []outcome.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]outcome.Record, 0, r.count)
	for i := range r.count {
		out = append(out, *r.at((r.next + recentRecords - 1 - i) % recentRecords))
	}
	return out
}
