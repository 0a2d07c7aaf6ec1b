package l4

import (
	"strings"
	"sync"
	"time"

	"ambassador/l4/outcome"
	"ambassador/l4/relay"
	"ambassador/policy"
)

// Phase is a part of establishing a connection that is timed separately.
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

// Observer receives events, for metrics. A nil field is not called. Its functions are
// called from many goroutines and must not block.
type Observer struct {
	// Opened is called when a connection was accepted.
	Opened func(listener string)
	// Ended is called when a session is over. The record is final and does not change.
	Ended func(*outcome.Record)
	// Ruled is called when a listener's rules have decided. rule is empty if no rule
	// matched.
	Ruled func(listener, rule string, verdict policy.Verdict)
	// Attempt is called when an attempt to reach the upstream has settled; outcome.OK
	// is success.
	Attempt func(upstream string, reason outcome.Reason)
	// Phase is called after a phase that succeeded, with its duration.
	Phase func(upstream string, phase Phase, d time.Duration)
	// Preconnect is called when a session asks an upstream that has preconnected
	// connections for one, with the result.
	Preconnect func(upstream string, result PreconnectResult)
	// AcceptPaused is called when accepting pauses because descriptors or memory ran
	// out.
	AcceptPaused func(listener string)
	// Panicked is called when a part, one of Parts, has recovered from a panic.
	Panicked func(part string)
}

// Traffic is what one listener has moved for one upstream, live sessions included. The
// byte counts never decrease while the process lives.
type Traffic struct {
	Listener, Upstream string
	Active             int
	Up, Down           int64
}

// Stalls is how long single events delayed other sessions; see relay.Stalls.
type Stalls = relay.Stalls

// StallBounds are the upper bounds of Stalls.Counts.
var StallBounds = relay.StallBounds

// Stalls returns how long events on the engine's loops have taken since the start.
func (s *Server) Stalls() Stalls { return s.engine.Stalls() }

// recentRecords is how many ended sessions are kept for the command why. At about 600
// bytes each they take 2.5 MB.
const recentRecords = 4096

const (
	recordBlock = 64       // records; recentRecords is a multiple of it
	recordText  = 16 << 10 // bytes; about the strings of recordBlock records
)

// recent is a ring of the last ended sessions. Records are copied into memory of their
// own, strings included. Otherwise each string would keep its page in use, and that
// page is full of what the session has left behind.
type recent struct {
	mu     sync.Mutex
	blocks []*[recordBlock]outcome.Record // guarded by mu; allocated as sessions end
	count  int                            // guarded by mu; number of records in blocks
	next   int                            // guarded by mu; index for the next record, the oldest one once the ring is full
	text   strings.Builder                // guarded by mu; the strings of the newest records; never grown while records refer to it
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

// at returns the record at index i of the ring. mu is held.
func (r *recent) at(i int) *outcome.Record { return &r.blocks[i/recordBlock][i%recordBlock] }

// keep copies s into the ring's memory. mu is held.
func (r *recent) keep(s string) string {
	if s == "" {
		return ""
	}
	if r.text.Cap()-r.text.Len() < len(s) {
		r.text.Reset() // the old text stays as long as records refer to it
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
