package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/term"

	"ambassador/l4"
)

// newLog writes to w: text for a person, that is on a terminal, else JSON, in
// which durations are seconds. Format overrules if it is not empty.
func newLog(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	if format == "" && isTerminal(w) {
		format = "text"
	}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: readable}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: inSeconds}))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// inSeconds writes durations as l4.Seconds does.
func inSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.AnyValue(l4.Seconds(a.Value.Duration()))
	}
	return a
}

// readable rounds durations and leaves out what the line's own time says.
func readable(_ []string, a slog.Attr) slog.Attr {
	switch {
	case a.Value.Kind() == slog.KindDuration:
		a.Value = slog.StringValue(l4.Seconds(a.Value.Duration()).String())
	case a.Key == slog.TimeKey:
		a.Value = slog.StringValue(a.Value.Time().Format("15:04:05.000"))
	case a.Key == "start" && a.Value.Kind() == slog.KindTime:
		a.Value = slog.StringValue(a.Value.Time().Format(time.RFC3339))
	}
	return a
}

// logSession writes the one line of a session.
func logSession(log *slog.Logger, r *l4.Record) {
	log.LogAttrs(context.Background(), sessionLevel(r.Reason), "session", r.LogAttrs()...)
}

// sessionLevel: what is normal is info, trouble with others is a warning, and
// our own faults are errors.
func sessionLevel(r l4.Reason) slog.Level {
	switch r {
	case l4.ReasonClosed, l4.ReasonProbe, l4.ReasonIdle, l4.ReasonHalfCloseIdle, l4.ReasonLifetime, l4.ReasonDrained,
		l4.ReasonShutdown, l4.ReasonKilled, l4.ReasonDownstreamReset, l4.ReasonDownstreamLost:
		return slog.LevelInfo
	case l4.ReasonInternal, l4.ReasonNoIdentity, l4.ReasonLocalExhausted:
		return slog.LevelError
	}
	return slog.LevelWarn
}
