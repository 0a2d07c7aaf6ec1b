package logs

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
	"ambassador/policy"
)

// This is the log for people at a terminal: a time, a sign, a subject, words.

// sessionLine is the line of an ended session. With why it ends with what to ask
// `ambassador why` for.
func sessionLine(t terminal, now time.Time, r *outcome.Record, why bool) []byte {
	sign, level := noted, Level(r)
	switch {
	case level > slog.LevelInfo:
		sign = bad
	case r.Reason == outcome.Closed:
		sign = good
	}
	l := newLine(t, now, sign)
	l.addf(" %s %s", r.Listener, r.Client)
	if r.User != "" {
		l.addf(" (%s)", r.User)
	}
	if to := target(r); to != "" {
		l.addf(" → %s", to)
	}
	l.add("  ")
	if sign == good {
		l.add(amounts(r))
	} else {
		l.paint(sign.color, string(r.Reason))
		l.add(ending(r, level))
	}
	l.add(remarks(r))
	if ref := refOf(r); why && sign == bad {
		l.paint(faint, "  (why "+ref+")")
	}
	return l.end()
}

// target is where a session went, or wanted to go. It is empty if the listener's name says
// it.
func target(r *outcome.Record) string {
	if to := cmp.Or(r.Destination, r.Endpoint); to != "" {
		return to
	}
	if r.Upstream == r.Listener {
		return ""
	}
	return r.Upstream
}

// amounts are the bytes and the time of a session.
func amounts(r *outcome.Record) string {
	return fmt.Sprintf("%s up, %s down, %s", output.Bytes(r.BytesUp), output.Bytes(r.BytesDown), r.Duration)
}

// ending follows the reason of a session that did not just close.
func ending(r *outcome.Record, level slog.Level) string {
	text := ""
	if r.Cause != "" {
		text = ": " + r.Cause
	}
	switch {
	case r.Reason == outcome.Probe:
		return text + ": the client sent nothing and left"
	case level > slog.LevelInfo && r.BytesUp+r.BytesDown == 0:
		return text
	}
	return text + "  " + amounts(r)
}

// remarks are what some sessions have in addition.
func remarks(r *outcome.Record) string {
	var b strings.Builder
	if r.KilledBy != "" {
		fmt.Fprintf(&b, ", killed by %s", r.KilledBy)
	}
	if r.Truncated {
		b.WriteString(", TLS ended without close_notify")
	}
	if r.Verdict == string(policy.WouldDeny) {
		fmt.Fprintf(&b, ", would be denied: %s", r.VerdictReason)
	}
	return b.String()
}

// refOf is what to ask `ambassador why` for: the port of a client that has one, else the
// session's id.
func refOf(r *outcome.Record) string {
	if a, err := netip.ParseAddrPort(r.Client); err == nil {
		return strconv.Itoa(int(a.Port()))
	}
	return r.ID
}

// failureText says which failure was repeated, where other lines stand between.
func failureText(r *outcome.Record) string {
	text := r.Listener
	if r.User != "" {
		text += " (" + headOf(r.User) + ")"
	}
	if to := target(r); to != "" {
		text += " → " + headOf(to)
	}
	text += "  " + string(r.Reason)
	if r.Cause != "" {
		text += ": " + headOf(r.Cause)
	}
	return text
}

// repeatedLine says how often a failure was repeated. With named it says which failure.
func repeatedLine(t terminal, now time.Time, k repeated, named, why bool) []byte {
	l := newLine(t, now, again)
	l.addf(" %d more", k.times)
	if !named {
		l.add(" of these")
	}
	l.addf(" in %d s", max(1, now.Sub(k.since).Round(time.Second)/time.Second))
	if why && k.ref != "" {
		l.addf(" (last: why %s)", k.ref)
	}
	if named {
		l.add(": " + k.what)
	}
	return l.end()
}

// eventLine is the line of anything that is no session. Its attributes have their place by
// their keys, so that a new event needs no code here.
func eventLine(t terminal, now time.Time, level slog.Level, text string, attrs []slog.Attr) []byte {
	e := event{attrs: attrs}
	from, to := e.take("from"), e.take("to")
	l := newLine(t, now, signOf(level, to))
	if subject := e.subject(); subject != "" {
		l.add(" " + subject + " ")
	}
	l.add(" " + text)
	if to != "" {
		l.addf(" %s → %s", from, to)
	}
	for _, key := range []string{"setting", "state", "cause", "panic"} {
		if value := e.take(key); value != "" {
			l.add(": " + value)
		}
	}
	hint, stack := e.take("hint"), e.take("stack")
	l.add(e.rest())
	if hint != "" {
		l.add("; fix: " + hint)
	}
	for part := range strings.Lines(stack) {
		l.WriteString("\n    ")
		l.add(strings.TrimSuffix(part, "\n"))
	}
	return l.end()
}

func signOf(level slog.Level, to string) sign {
	switch {
	case level >= slog.LevelError:
		return bad
	case level >= slog.LevelWarn:
		return doubtful
	case to == "healthy" || to == "closed": // of health and breakers
		return good
	}
	return noted
}

// event has the attributes of an event that were not taken yet.
type event struct{ attrs []slog.Attr }

// take removes an attribute and returns its value in words; empty if there is none.
func (e *event) take(key string) string {
	i := slices.IndexFunc(e.attrs, func(a slog.Attr) bool { return a.Key == key })
	if i < 0 {
		return ""
	}
	value := inWords(e.attrs[i].Value)
	e.attrs = slices.Delete(slices.Clone(e.attrs), i, i+1)
	return value
}

// subject says what the event is about.
func (e *event) subject() string {
	var parts []string
	for _, key := range []string{"listener", "upstream", "identity", "what", "endpoint", "address"} {
		if value := e.take(key); value != "" && !slices.Contains(parts, value) {
			parts = append(parts, value)
		}
	}
	return strings.Join(parts, " ")
}

// rest are the attributes that have no place of their own, in brackets.
func (e *event) rest() string {
	var parts []string
	for _, a := range e.attrs {
		if value := inWords(a.Value); value != "" {
			parts = append(parts, strings.ReplaceAll(a.Key, "_", " ")+" "+value)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// inWords writes a value for people; empty for a zero one, which says nothing.
func inWords(v slog.Value) string {
	v = v.Resolve()
	switch v.Kind() {
	case slog.KindDuration:
		if v.Duration() == 0 {
			return ""
		}
		return outcome.Seconds(v.Duration()).String()
	case slog.KindTime:
		if v.Time().IsZero() {
			return ""
		}
		return v.Time().Local().Format("2006-01-02 15:04:05")
	case slog.KindInt64:
		if v.Int64() == 0 {
			return ""
		}
	case slog.KindAny:
		if list, ok := v.Any().([]string); ok {
			return strings.Join(list, ", ")
		}
	}
	return v.String()
}

// peopleHandler writes events.
type peopleHandler struct {
	log   *Log
	attrs []slog.Attr
	group string // with a dot behind it
}

// Enabled implements slog.Handler.
func (h *peopleHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.log.level.Level()
}

// Handle implements slog.Handler.
func (h *peopleHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = h.with(attrs, a)
		return true
	})
	if isTrial(r.Message, attrs) {
		return nil
	}
	h.log.print(eventLine(h.log.terminal, r.Time, r.Level, r.Message, attrs))
	return nil
}

// isTrial reports whether an event is a trial of an open breaker that begins or failed. With
// clients there are some every second for each address, which would bury the lines of their
// sessions.
func isTrial(text string, attrs []slog.Attr) bool {
	if text != "breaker" {
		return false
	}
	e := event{attrs: attrs}
	from, to := e.take("from"), e.take("to")
	return to == "half_open" || from == "half_open" && to == "open"
}

// with appends an attribute under its group's name.
func (h *peopleHandler) with(attrs []slog.Attr, a slog.Attr) []slog.Attr {
	if a.Equal(slog.Attr{}) {
		return attrs
	}
	a.Key = h.group + a.Key
	return append(attrs, a)
}

// WithAttrs implements slog.Handler.
func (h *peopleHandler) WithAttrs(more []slog.Attr) slog.Handler {
	attrs := slices.Clone(h.attrs)
	for _, a := range more {
		attrs = h.with(attrs, a)
	}
	return &peopleHandler{h.log, attrs, h.group}
}

// WithGroup implements slog.Handler.
func (h *peopleHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &peopleHandler{h.log, h.attrs, h.group + name + "."}
}
