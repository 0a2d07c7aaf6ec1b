package l4

import (
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"ambassador/l4/relay"
	"ambassador/policy"
)

// Seconds is a duration that is a number of seconds in JSON, to the microsecond.
type Seconds time.Duration

// MarshalJSON writes seconds with at most six decimals.
func (d Seconds) MarshalJSON() ([]byte, error) { return d.AppendJSON(nil), nil }

// AppendJSON appends what MarshalJSON writes.
func (d Seconds) AppendJSON(b []byte) []byte {
	us := time.Duration(d).Round(time.Microsecond).Microseconds()
	return strconv.AppendFloat(b, float64(us)/1e6, 'f', -1, 64)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (d *Seconds) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	*d = Seconds(f * float64(time.Second))
	return err
}

// String is the form of time.Duration, rounded for a reader.
func (d Seconds) String() string {
	v := time.Duration(d)
	switch {
	case v > 10*time.Second:
		return v.Round(10 * time.Millisecond).String()
	case v > 10*time.Millisecond:
		return v.Round(100 * time.Microsecond).String()
	}
	return v.Round(time.Microsecond).String()
}

// Record is the one account of a session: in the log, in /v1/sessions, among
// the recent ones, and in `ambassador why`. Of a live session Reason is empty
// and Stage is where it is now.
type Record struct {
	ID          string    `json:"id"`
	Start       time.Time `json:"start"`
	Listener    string    `json:"listener"`
	Client      string    `json:"client"`
	User        string    `json:"user,omitempty"`
	Principal   string    `json:"principal,omitempty"`
	Rule        string    `json:"rule,omitempty"`
	Destination string    `json:"destination,omitempty"`
	// SNI is the name in the client's ClientHello, where the listener reads it; with
	// ECH it is that of the outer one, whether there is an inner one or not.
	SNI      string `json:"sni,omitempty"`
	ECH      bool   `json:"ech,omitempty"`
	Upstream string `json:"upstream,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Address  string `json:"address,omitempty"`
	Stage    Stage  `json:"stage"`
	Reason   Reason `json:"reason,omitempty"`
	// Cause says in words what was seen. Empty where Reason says it all.
	Cause    string `json:"cause,omitempty"`
	Attempts int    `json:"attempts"`
	// BytesUp went from downstream to upstream, BytesDown the other way.
	BytesUp   int64 `json:"bytes_up"`
	BytesDown int64 `json:"bytes_down"`
	// Establish is the time from accept to the relay; zero if it was not reached.
	Establish Seconds `json:"establish"`
	Duration  Seconds `json:"duration"`
	// FirstClose is the side that ended first: downstream or upstream.
	FirstClose string `json:"first_close,omitempty"`
	// Limit is the key of the limit that was met.
	Limit string `json:"limit,omitempty"`
	// RetryIn is how long after the end a breaker let the next attempt through.
	RetryIn Seconds `json:"retry_in,omitempty"`
	// Truncated: a TLS peer ended without close_notify.
	Truncated bool   `json:"truncated,omitempty"`
	Tag       string `json:"tag,omitempty"`
}

// LogAttrs are the record's fields for slog, in the order of the type; empty
// ones that only some sessions have are left out.
func (r *Record) LogAttrs() []slog.Attr {
	a := make([]slog.Attr, 0, 26)
	str := func(k, v string) {
		if v != "" {
			a = append(a, slog.String(k, v))
		}
	}
	str("id", r.ID)
	a = append(a, slog.Time("start", r.Start))
	str("listener", r.Listener)
	str("client", r.Client)
	str("user", r.User)
	str("principal", r.Principal)
	str("rule", r.Rule)
	str("destination", r.Destination)
	str("sni", r.SNI)
	if r.ECH {
		a = append(a, slog.Bool("ech", true))
	}
	str("upstream", r.Upstream)
	str("endpoint", r.Endpoint)
	str("address", r.Address)
	str("stage", string(r.Stage))
	str("reason", string(r.Reason))
	str("cause", r.Cause)
	a = append(a, slog.Int("attempts", r.Attempts),
		slog.Int64("bytes_up", r.BytesUp), slog.Int64("bytes_down", r.BytesDown),
		slog.Duration("establish", time.Duration(r.Establish)),
		slog.Duration("duration", time.Duration(r.Duration)))
	str("first_close", r.FirstClose)
	str("limit", r.Limit)
	if r.RetryIn != 0 {
		a = append(a, slog.Duration("retry_in", time.Duration(r.RetryIn)))
	}
	if r.Truncated {
		a = append(a, slog.Bool("truncated", true))
	}
	str("tag", r.Tag)
	return a
}

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
	Ended func(*Record)
	// Ruled: a rule of the listener has decided; of none that did, rule is empty.
	Ruled func(listener, rule string, verdict policy.Verdict)
	// Attempt: an attempt to reach the upstream settled; ReasonOK is success.
	Attempt func(upstream string, reason Reason)
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
// own, strings included: where they are made, each would keep a page from being given
// back that is else full of what its session has left behind.
type recent struct {
	mu     sync.Mutex
	blocks []*[recordBlock]Record // guarded by mu; as many as there were sessions for
	count  int                    // guarded by mu; of records in blocks
	next   int                    // guarded by mu; where the next goes, over the oldest once count is full
	text   strings.Builder        // guarded by mu; the strings of the newest, never grown once some refer to it
}

func (r *recent) add(rec *Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next/recordBlock == len(r.blocks) {
		r.blocks = append(r.blocks, new([recordBlock]Record))
	}
	kept := r.at(r.next)
	*kept = *rec
	for _, s := range []*string{&kept.ID, &kept.Client, &kept.User, &kept.Principal, &kept.Destination, &kept.SNI,
		&kept.Endpoint, &kept.Address, &kept.Cause, &kept.Tag} { // the others are constants or the configuration's
		*s = r.keep(*s)
	}
	r.next = (r.next + 1) % recentRecords
	r.count = min(r.count+1, recentRecords)
}

// at is a place of the ring, with mu held.
func (r *recent) at(i int) *Record { return &r.blocks[i/recordBlock][i%recordBlock] }

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
func (r *recent) list() []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Record, 0, r.count)
	for i := range r.count {
		out = append(out, *r.at((r.next + recentRecords - 1 - i) % recentRecords))
	}
	return out
}
