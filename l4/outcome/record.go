package outcome

import (
	"iter"
	"log/slog"
	"strconv"
	"strings"
	"time"
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
// and Stage is where it is now. Each field has its line in recordFields; Trace has two.
type Record struct {
	ID       string    `json:"id"`
	Start    time.Time `json:"start"`
	Listener string    `json:"listener"`
	Client   string    `json:"client"`
	User     string    `json:"user,omitempty"`
	// UID, PID and Process are the user id, the process id and the name of the client's
	// process, if it is on this host and they are known.
	UID       UserID `json:"uid,omitzero"`
	PID       int    `json:"pid,omitempty"`
	Process   string `json:"process,omitempty"`
	Principal string `json:"principal,omitempty"`
	Rule      string `json:"rule,omitempty"`
	// Verdict is what the listener's rules decided: allow, deny, would_deny or none. It is
	// empty if they were not asked. VerdictReason is the text of deny or report of the rule.
	Verdict       string `json:"verdict,omitempty"`
	VerdictReason string `json:"verdict_reason,omitempty"`
	Destination   string `json:"destination,omitempty"`
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
	Cause string `json:"cause,omitempty"`
	// Hint is how to fix the cause, where the cause has a fix of its own; it replaces
	// Advice.
	Hint     string `json:"hint,omitempty"`
	Attempts int    `json:"attempts"`
	// BytesUp went from downstream to upstream, BytesDown the other way.
	BytesUp   int64 `json:"bytes_up"`
	BytesDown int64 `json:"bytes_down"`
	// Establish is the time from accept to the relay; zero if it was not reached.
	Establish Seconds `json:"establish"`
	Duration  Seconds `json:"duration"`
	// FirstClose is the side that ended first: downstream or upstream.
	FirstClose string `json:"first_close,omitempty"`
	// Limit is the key of the limit that was exceeded.
	Limit string `json:"limit,omitempty"`
	// RetryIn is how long after the end a breaker let the next attempt through.
	RetryIn Seconds `json:"retry_in,omitempty"`
	// Truncated: a TLS peer ended without close_notify.
	Truncated bool `json:"truncated,omitempty"`
	// KilledBy is the user, the address or the key that killed it: "uid 1000",
	// "127.0.0.1:51234", "health.kill_on_down".
	KilledBy string `json:"killed_by,omitempty"`
	Tag      string `json:"tag,omitempty"`
	// Trace has the fields trace_id and span_id. It is nil if the session belongs to no
	// trace. A pointer, so that other sessions pay nothing for it.
	*Trace
}

// recordField is how a field of a Record is logged and packed. It has a text or a value.
type recordField struct {
	key string
	// text is not logged where it is empty.
	text func(r *Record) *string
	// value is not logged where ok is false.
	value func(r *Record) (v slog.Value, ok bool)
}

// recordFields has each field of a Record, in the order of the type, with its key in
// JSON. A test asserts that.
var recordFields = []recordField{
	{key: "id", text: func(r *Record) *string { return &r.ID }},
	{key: "start", value: func(r *Record) (slog.Value, bool) { return slog.TimeValue(r.Start), true }},
	{key: "listener", text: func(r *Record) *string { return &r.Listener }},
	{key: "client", text: func(r *Record) *string { return &r.Client }},
	{key: "user", text: func(r *Record) *string { return &r.User }},
	{key: "uid", value: func(r *Record) (slog.Value, bool) { return slog.Int64Value(int64(r.UID) - 1), r.UID != 0 }},
	{key: "pid", value: func(r *Record) (slog.Value, bool) { return slog.IntValue(r.PID), r.PID != 0 }},
	{key: "process", text: func(r *Record) *string { return &r.Process }},
	{key: "principal", text: func(r *Record) *string { return &r.Principal }},
	{key: "rule", text: func(r *Record) *string { return &r.Rule }},
	{key: "verdict", text: func(r *Record) *string { return &r.Verdict }},
	{key: "verdict_reason", text: func(r *Record) *string { return &r.VerdictReason }},
	{key: "destination", text: func(r *Record) *string { return &r.Destination }},
	{key: "sni", text: func(r *Record) *string { return &r.SNI }},
	{key: "ech", value: func(r *Record) (slog.Value, bool) { return slog.BoolValue(r.ECH), r.ECH }},
	{key: "upstream", text: func(r *Record) *string { return &r.Upstream }},
	{key: "endpoint", text: func(r *Record) *string { return &r.Endpoint }},
	{key: "address", text: func(r *Record) *string { return &r.Address }},
	{key: "stage", text: func(r *Record) *string { return (*string)(&r.Stage) }},
	{key: "reason", text: func(r *Record) *string { return (*string)(&r.Reason) }},
	{key: "cause", text: func(r *Record) *string { return &r.Cause }},
	{key: "hint", text: func(r *Record) *string { return &r.Hint }},
	{key: "attempts", value: func(r *Record) (slog.Value, bool) { return slog.IntValue(r.Attempts), true }},
	{key: "bytes_up", value: func(r *Record) (slog.Value, bool) { return slog.Int64Value(r.BytesUp), true }},
	{key: "bytes_down", value: func(r *Record) (slog.Value, bool) { return slog.Int64Value(r.BytesDown), true }},
	{key: "establish", value: func(r *Record) (slog.Value, bool) { return r.Establish.value(), true }},
	{key: "duration", value: func(r *Record) (slog.Value, bool) { return r.Duration.value(), true }},
	{key: "first_close", text: func(r *Record) *string { return &r.FirstClose }},
	{key: "limit", text: func(r *Record) *string { return &r.Limit }},
	{key: "retry_in", value: func(r *Record) (slog.Value, bool) { return r.RetryIn.value(), r.RetryIn != 0 }},
	{key: "truncated", value: func(r *Record) (slog.Value, bool) { return slog.BoolValue(r.Truncated), r.Truncated }},
	{key: "killed_by", text: func(r *Record) *string { return &r.KilledBy }},
	{key: "tag", text: func(r *Record) *string { return &r.Tag }},
	{key: "trace_id", value: func(r *Record) (v slog.Value, ok bool) {
		if r.Trace != nil {
			v = slog.StringValue(r.Trace.TraceID.String())
		}
		return v, r.Trace != nil
	}},
	{key: "span_id", value: func(r *Record) (v slog.Value, ok bool) {
		if r.Trace != nil {
			v = slog.StringValue(r.Trace.SpanID.String())
		}
		return v, r.Trace != nil
	}},
}

func (d Seconds) value() slog.Value { return slog.DurationValue(time.Duration(d)) }

// ClientProcess describes the client's process on this host: "uid 1000, psql, pid 4711".
// It is empty if nothing is known.
func (r *Record) ClientProcess() string {
	pid := ""
	if r.PID != 0 {
		pid = strconv.Itoa(r.PID)
	}
	var parts []string
	for _, p := range [][2]string{{"uid ", r.UID.String()}, {"", r.Process}, {"pid ", pid}} {
		if p[1] != "" {
			parts = append(parts, p[0]+p[1])
		}
	}
	return strings.Join(parts, ", ")
}

// Attrs are the record's fields for slog, in the order of the type; empty ones that only
// some sessions have are left out.
func (r *Record) Attrs() iter.Seq[slog.Attr] {
	return func(yield func(slog.Attr) bool) {
		for i := range recordFields {
			f := &recordFields[i]
			var v slog.Value
			var ok bool
			if f.text == nil {
				v, ok = f.value(r)
			} else if text := *f.text(r); text != "" {
				v, ok = slog.StringValue(text), true
			}
			if ok && !yield(slog.Attr{Key: f.key, Value: v}) {
				return
			}
		}
	}
}
