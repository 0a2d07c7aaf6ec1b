package logs

import (
	"io"
	"sync"
	"time"
)

// logWriter writes log lines in the background, so that a slow reader of the log never
// delays a connection. A line is written at once if none was for a while; in a busy
// moment lines are written together.
//
// Lines that the reader does not take in time are kept, maxLogBacklog bytes of
// them; beyond that they are counted and dropped, and a line says how many.
type logWriter struct {
	w    io.Writer          // written to by one flush at a time
	lost func(n int) []byte // the line that says how many lines were dropped
	tail tail               // what was written last

	mu      sync.Mutex
	buf     []byte      // guarded by mu, like all below
	spare   []byte      // the buffer of the flush before
	dropped int         // lines that no line has reported yet
	total   int64       // lines dropped since the start
	timer   *time.Timer // runs flush; nil before the first line
	armed   bool        // the timer is to fire, or flush runs and looks again
	last    time.Time   // when a flush last began
	idle    chan struct{}
}

const (
	// logPace is the shortest time between two writes.
	logPace = 20 * time.Millisecond
	// maxLogBacklog is about 10,000 sessions.
	maxLogBacklog = 4 << 20
	// lastLogTimeout bounds the wait for the last lines at the end of the process.
	lastLogTimeout = 2 * time.Second
)

func newLogWriter(w io.Writer) *logWriter { return &logWriter{w: w} }

// Write takes whole lines. It never waits and never fails.
func (l *logWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf)+len(b) > maxLogBacklog {
		l.dropped++
		l.total++
	} else {
		l.buf = append(l.buf, b...)
	}
	if !l.armed {
		l.armed = true
		wait := max(0, logPace-time.Since(l.last))
		if l.timer == nil {
			l.timer = time.AfterFunc(wait, l.flush) // close waits for it
		} else {
			l.timer.Reset(wait)
		}
	}
	return len(b), nil
}

// flush writes what there is. It is the timer's, and runs once at a time.
func (l *logWriter) flush() {
	l.mu.Lock()
	l.last = time.Now()
	if l.dropped > 0 {
		l.buf = append(l.buf, l.lost(l.dropped)...)
		l.dropped = 0
	}
	out := l.buf
	l.buf = l.spare[:0]
	l.mu.Unlock()
	l.tail.add(out)
	l.w.Write(out) // an error can be told nowhere
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare = out[:0]
	l.armed = len(l.buf) > 0 || l.dropped > 0
	if l.armed {
		l.timer.Reset(max(0, logPace-time.Since(l.last)))
	} else if l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
}

// drain waits until all has been written, at most so long.
func (l *logWriter) drain(atMost time.Duration) {
	l.mu.Lock()
	if !l.armed {
		l.mu.Unlock()
		return
	}
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(atMost):
	}
}
