package logs

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowReader takes a write only when it is let.
type slowReader struct {
	let chan struct{}
	got bytes.Buffer
}

func (r *slowReader) Write(b []byte) (int, error) {
	<-r.let
	return r.got.Write(b)
}

func (r *slowReader) open() { close(r.let) }

func lineOf(n int) []byte { return append(bytes.Repeat([]byte("x"), n-1), '\n') }

// Nobody who logs waits for who reads, and no line is lost that there was room for.
func TestLogWaitsForNoReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{let: make(chan struct{})}
		l := newLogWriter(r)
		for range 1000 {
			l.Write([]byte("line\n")) // does not return in a test that fails
		}
		synctest.Wait()
		r.open()
		l.drain(lastLogTimeout)
		if n := strings.Count(r.got.String(), "line\n"); n != 1000 || r.got.Len() != 5000 {
			t.Errorf("%d lines, %d bytes of 1000 lines", n, r.got.Len())
		}
	})
}

// A log that nobody reads costs a bound of memory, and says what is missing.
func TestLogSaysWhatItDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{let: make(chan struct{})}
		l := newLogWriter(r)
		l.lost = func(n int) []byte { return []byte("lost " + strings.Repeat("i", n) + "\n") }
		l.Write([]byte("first\n"))
		synctest.Wait() // it waits in r
		half := lineOf(maxLogBacklog / 2)
		for range 5 {
			l.Write(half)
		}
		r.open()
		l.drain(lastLogTimeout)
		if got := r.got.String(); !strings.HasPrefix(got, "first\n") || !strings.HasSuffix(got, "lost iii\n") || len(got) != 6+2*len(half)+9 {
			t.Errorf("%d bytes: %.20q … %q", len(got), got, got[max(0, len(got)-20):])
		}
	})
}

// The first line is written at once, those of a busy moment together.
func TestLogIsWrittenInStrides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		l := newLogWriter(writerFunc(func(b []byte) (int, error) {
			at = append(at, time.Since(start))
			return len(b), nil
		}))
		for range 50 {
			l.Write([]byte("line\n"))
			<-time.After(time.Millisecond)
		}
		l.drain(lastLogTimeout)
		if len(at) < 2 || at[0] != 0 || at[1] != logPace || len(at) > 4 {
			t.Errorf("written at %v", at)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A reader that never reads holds up the end of the process for a bounded time.
func TestLogEndsThoughNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowReader{let: make(chan struct{})}
		l := newLogWriter(r)
		l.Write([]byte("line\n"))
		start := time.Now()
		l.drain(lastLogTimeout)
		if d := time.Since(start); d != lastLogTimeout {
			t.Errorf("closed after %v", d)
		}
		r.open()
	})
}

func BenchmarkLogSession(b *testing.B) {
	l := New(io.Discard, nil)
	r := someRecord()
	b.ReportAllocs()
	for b.Loop() {
		l.Session(r)
	}
}
