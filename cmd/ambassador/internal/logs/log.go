package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/term"

	"ambassador/cmd/ambassador/internal/output"
	"ambassador/l4/outcome"
)

// Log is the log of a process, whose level and format a reload may change.
type Log struct {
	*slog.Logger
	level    slog.LevelVar
	form     atomic.Int32 // a form
	person   bool         // a person reads the log at a terminal, as it is written
	terminal terminal     // if person
	out      *logWriter
	lines    sync.Pool // of *[]byte, for session

	mu    sync.Mutex  // held while a line for people is made and written
	noWhy bool        // guarded by mu; `ambassador why` cannot ask this process
	fold  fold        // guarded by mu
	last  *failure    // guarded by mu; what the last line was about; nil: no failure of a session
	timer *time.Timer // guarded by mu; runs repeat; nil before the first
}

// form is how lines are written.
type form int32

const (
	asJSON form = iota
	asText
	forPeople
)

// New logs to w. On a terminal it writes for people, and otherwise JSON, in which durations
// are seconds; env has the variables that describe the terminal. What is logged waits for no
// reader; Close writes the last of it.
func New(w io.Writer, env func(string) (string, bool)) *Log {
	l := newLog(w, IsTerminal(w))
	l.terminal = terminalOf(env)
	return l
}

func newLog(w io.Writer, person bool) *Log {
	l := &Log{person: person, out: newLogWriter(w)}
	w = l.out
	l.Set(slog.LevelInfo, "")
	text := readable
	if person {
		text = brief
	}
	l.out.lost = func(n int) []byte { return l.line("log lines dropped: nobody reads the log fast enough", "lines", n) }
	l.Logger = slog.New(&formatHandler{form: &l.form,
		people: &peopleHandler{log: l},
		text:   slog.NewTextHandler(w, &slog.HandlerOptions{Level: &l.level, ReplaceAttr: text}),
		json:   slog.NewJSONHandler(output.JSONWriter{W: w}, &slog.HandlerOptions{Level: &l.level, ReplaceAttr: inSeconds})})
	return l
}

// line is a line of the log in the format of the moment.
func (l *Log) line(text, key string, value int) []byte {
	var b bytes.Buffer
	h := slog.Handler(slog.NewJSONHandler(&b, nil))
	switch form(l.form.Load()) {
	case forPeople:
		return eventLine(l.terminal, time.Now(), slog.LevelError, text, []slog.Attr{slog.Int(key, value)})
	case asText:
		h = slog.NewTextHandler(&b, nil)
	}
	slog.New(h).Error(text, key, value)
	return b.Bytes()
}

// Dropped is how many lines were dropped since the start because nobody read the log
// fast enough.
func (l *Log) Dropped() int64 {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	return l.out.total
}

// Close writes what has been logged, at most lastLogTimeout long. The log can be used after it.
func (l *Log) Close() { l.Flush(lastLogTimeout) }

// Flush writes what has been logged, as far as its reader takes it in a time.
func (l *Log) Flush(atMost time.Duration) {
	l.flush()
	l.out.drain(atMost)
}

// Set takes up the log section of a configuration: format is text, json, or auto (or
// empty) for what suits the place.
func (l *Log) Set(level slog.Level, format string) {
	l.level.Set(level)
	to := asJSON
	switch {
	case format == "text":
		to = asText
	case format != "json" && l.person:
		to = forPeople
	}
	if before := form(l.form.Swap(int32(to))); before == forPeople && to != forPeople {
		l.flush()
	}
}

// SetWhy says whether `ambassador why` can ask this process. At first it can.
func (l *Log) SetWhy(can bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noWhy = !can
}

// formatHandler writes each record with one of its handlers.
type formatHandler struct {
	form               *atomic.Int32
	people, text, json slog.Handler
}

func (h *formatHandler) now() slog.Handler {
	switch form(h.form.Load()) {
	case forPeople:
		return h.people
	case asText:
		return h.text
	}
	return h.json
}

func (h *formatHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.now().Enabled(ctx, l)
}
func (h *formatHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.now().Handle(ctx, r)
}
func (h *formatHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return &formatHandler{h.form, h.people.WithAttrs(a), h.text.WithAttrs(a), h.json.WithAttrs(a)}
}
func (h *formatHandler) WithGroup(name string) slog.Handler {
	return &formatHandler{h.form, h.people.WithGroup(name), h.text.WithGroup(name), h.json.WithGroup(name)}
}

// IsTerminal says whether a file is a terminal.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// inSeconds writes durations as outcome.Seconds does.
func inSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.AnyValue(outcome.Seconds(a.Value.Duration()))
	}
	return a
}

// readable rounds durations, and the start of a session to the second.
func readable(_ []string, a slog.Attr) slog.Attr {
	switch {
	case a.Value.Kind() == slog.KindDuration:
		a.Value = slog.StringValue(outcome.Seconds(a.Value.Duration()).String())
	case a.Key == "start" && a.Value.Kind() == slog.KindTime:
		a.Value = slog.StringValue(a.Value.Time().Format(time.RFC3339))
	}
	return a
}

// brief is readable without the date.
func brief(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindTime && (a.Key == slog.TimeKey || a.Key == "start") {
		a.Value = slog.StringValue(a.Value.Time().Format("15:04:05.000"))
	}
	return readable(groups, a)
}

// ParseLevel reads a log level; empty is info.
func ParseLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is no level; use debug, info, warn or error", s)
}

// Session writes the one line of a session. In JSON it does without the handler,
// whose generality costs a busy process more than anything else in the log.
func (l *Log) Session(r *outcome.Record) {
	level := Level(r)
	if level < l.level.Level() {
		return
	}
	switch form(l.form.Load()) {
	case forPeople:
		l.tell(time.Now(), r)
		return
	case asText:
		l.LogAttrs(context.Background(), level, "session", slices.Collect(r.Attrs())...)
		return
	}
	line, _ := l.lines.Get().(*[]byte)
	if line == nil {
		line = new([]byte)
	}
	*line = appendSession((*line)[:0], time.Now(), level, r)
	l.out.Write(*line)
	l.lines.Put(line)
}

// appendSession appends the line that the JSON handler would write.
func appendSession(b []byte, now time.Time, level slog.Level, r *outcome.Record) []byte {
	b = append(b, `{"time":"`...)
	b = now.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","level":"`...)
	b = append(b, level.String()...)
	b = append(b, `","msg":"session"`...)
	for a := range r.Attrs() {
		b = append(append(append(b, `,"`...), a.Key...), `":`...)
		b = appendValue(b, a.Value)
	}
	return append(b, "}\n"...)
}

// appendValue appends what records are made of; anything else as its text.
func appendValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindDuration:
		return outcome.Seconds(v.Duration()).AppendJSON(b)
	case slog.KindTime:
		b = v.Time().AppendFormat(append(b, '"'), time.RFC3339Nano)
		return append(b, '"')
	}
	return appendString(b, v.String())
}

// appendString appends a JSON string.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // of a string: no error
			return output.AppendJSON(b, quoted)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// Level is the level of a session's line. A server that resets what its client
// has ended is no trouble: one that closes without waiting for close_notify answers it
// so.
func Level(r *outcome.Record) slog.Level {
	if r.Reason == outcome.UpstreamReset && r.FirstClose == "downstream" {
		return slog.LevelInfo
	}
	return sessionLevel(r.Reason)
}

// sessionLevel is info for what is normal, warn for trouble with others and for
// limits that were set on purpose, error for what is ours to fix.
func sessionLevel(r outcome.Reason) slog.Level {
	switch r {
	case outcome.Closed, outcome.Probe, outcome.Idle, outcome.HalfCloseIdle, outcome.Lifetime, outcome.Drained,
		outcome.Shutdown, outcome.Killed, outcome.DownstreamReset, outcome.DownstreamLost:
		return slog.LevelInfo
	case outcome.Internal, outcome.NoIdentity, outcome.LocalExhausted:
		return slog.LevelError
	}
	return slog.LevelWarn
}
