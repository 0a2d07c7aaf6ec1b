package process

import (
	"log/slog"

	"ambassador/cmd/ambassador/internal/config"
	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/l4/outcome"
)

// logs reports whether the log has a line for the session: its listener decides
// (log.sessions). The record is kept and counted nevertheless.
func (p *Process) logs(r *outcome.Record) bool {
	all := p.logSessions.Load()
	if all == nil {
		return true
	}
	switch (*all)[r.Listener] {
	case config.LogNone:
		return false
	case config.LogFailures:
		return logs.Level(r) > slog.LevelInfo
	case config.LogNoProbes:
		return r.Reason != outcome.Probe
	}
	return true
}

// logSessionsOf returns log.sessions of each listener that does not log all.
func logSessionsOf(f *config.File) *map[string]string {
	out := map[string]string{}
	for _, l := range f.Listeners {
		if l.LogSessions != config.LogAll {
			out[l.Name] = l.LogSessions
		}
	}
	return &out
}
