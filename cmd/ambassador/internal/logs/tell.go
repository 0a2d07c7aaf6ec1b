package logs

import (
	"log/slog"
	"time"

	"ambassador/l4/outcome"
)

// tell writes a session for people, or counts it if it is a failure that was just written.
func (l *Log) tell(now time.Time, r *outcome.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if Level(r) <= slog.LevelInfo {
		l.last = nil
		l.out.Write(sessionLine(l.terminal, now, r, !l.noWhy))
		return
	}
	what := failureOf(r)
	first, forgotten := l.fold.add(now, what, refOf(r))
	l.writeCounts(now, forgotten)
	if !first {
		l.arm(now)
		return
	}
	l.fold.describe(failureText(r))
	l.last = &what
	l.out.Write(sessionLine(l.terminal, now, r, !l.noWhy))
}

// print writes the line of an event.
func (l *Log) print(text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = nil
	l.out.Write(text)
}

// writeCounts writes how often failures were repeated. The caller holds mu.
func (l *Log) writeCounts(now time.Time, all []repeated) {
	for _, k := range all {
		named := l.last == nil || *l.last != k.failure
		l.out.Write(repeatedLine(l.terminal, now, k, named, !l.noWhy))
		l.last = &k.failure
	}
}

// arm lets repeat run when a count is due. The caller holds mu.
func (l *Log) arm(now time.Time) {
	at := l.fold.next()
	switch {
	case at.IsZero():
	case l.timer == nil:
		l.timer = time.AfterFunc(at.Sub(now), l.repeat) // flush stops it
	default:
		l.timer.Reset(at.Sub(now))
	}
}

// repeat writes the counts that are due. It is the timer's.
func (l *Log) repeat() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.writeCounts(now, l.fold.due(now))
	l.arm(now)
}

// flush writes all counts.
func (l *Log) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.writeCounts(time.Now(), l.fold.flush())
}
