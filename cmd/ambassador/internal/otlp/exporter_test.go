package otlp

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/l4/outcome"
)

func someRecord(id string) *outcome.Record {
	return &outcome.Record{ID: id, Start: time.Unix(1700000000, 0), Listener: "pg", Upstream: "db", Stage: outcome.StageDial, Reason: outcome.Refused,
		BytesUp: 1 << 40, Truncated: true, Duration: outcome.Seconds(1500 * time.Millisecond)}
}

// TestRecord is the form that a collector gets.
func TestRecord(t *testing.T) {
	b, err := json.Marshal(origin{"v1", "host-1"}.logs([]*outcome.Record{someRecord("A-1")}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"ambassador"}}`,
		`"timeUnixNano":"1700000001500000000"`, `"severityNumber":13,"severityText":"WARN","body":{"stringValue":"session"}`,
		`{"key":"ambassador.id","value":{"stringValue":"A-1"}}`,
		`{"key":"ambassador.reason","value":{"stringValue":"refused"}}`,
		`{"key":"ambassador.bytes_up","value":{"intValue":"1099511627776"}}`,
		`{"key":"ambassador.duration","value":{"doubleValue":1.5}}`,
		`{"key":"ambassador.truncated","value":{"boolValue":true}}`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("lacks %s:\n%s", want, b)
		}
	}
}

// collector answers with the codes in turn, and the last one from then on.
type collector struct {
	codes []int
	got   []string // bodies
	auth  string
}

func (c *collector) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	c.got, c.auth = append(c.got, r.URL.String()+" "+string(body)), r.Header.Get("Authorization")
	code := c.codes[0]
	if len(c.codes) > 1 {
		c.codes = c.codes[1:]
	}
	if code == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	w := httptest.NewRecorder()
	w.WriteHeader(code)
	return w.Result(), nil
}

func TestExporter(t *testing.T) {
	for name, c := range map[string]struct {
		codes             []int
		requests, dropped int
	}{
		"taken":             {[]int{200}, 1, 0},
		"repeated":          {[]int{503, 0, 429, 200}, 4, 0},
		"refused for good":  {[]int{400}, 1, 3},
		"away for a minute": {[]int{503}, 8, 3}, // after 0, 1, 3, 7, 15, 30, 45 and 60 s
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := &collector{codes: c.codes}
				e := New(slog.New(slog.DiscardHandler), "v1", "authorization=Bearer%20x")
				e.client = &http.Client{Transport: to}
				e.Session(someRecord("A-0")) // before Set: not sent
				e.Set("http://collector:4318/", true)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); e.Run(ctx) }()
				for i := range 3 {
					e.Session(someRecord(fmt.Sprint("A-", i+1)))
				}
				synctest.Wait()
				wait := time.NewTimer(2 * time.Minute)
				<-wait.C
				synctest.Wait()
				if len(to.got) != c.requests || e.Dropped()[Logs] != int64(c.dropped) {
					t.Errorf("%d requests, %d dropped, want %d, %d", len(to.got), e.Dropped()[Logs], c.requests, c.dropped)
				}
				if first := to.got[0]; !strings.HasPrefix(first, "http://collector:4318/v1/logs {") || strings.Count(first, `"A-`) != 3 || to.auth != "Bearer x" {
					t.Errorf("%q: %s", to.auth, first)
				}
				cancel()
				<-done
			})
		})
	}
}

// TestFlush: the last records are sent at the end, and the wait for a collector that is
// away is bounded.
func TestFlush(t *testing.T) {
	for code, dropped := range map[int]int64{200: 0, 503: maxQueue} {
		synctest.Test(t, func(t *testing.T) {
			to := &collector{codes: []int{code}}
			e := New(slog.New(slog.DiscardHandler), "v1", "")
			e.client = &http.Client{Transport: to}
			e.Set("http://collector:4318", true)
			for range maxQueue {
				e.Session(someRecord("A-1"))
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			began := time.Now()
			e.Run(ctx)
			if took := time.Since(began); took > FlushTimeout || e.Dropped()[Logs] != dropped || len(e.signals[0].queue) > 0 {
				t.Errorf("code %d: %d dropped, want %d, %d left, after %v", code, e.Dropped()[Logs], dropped, len(e.signals[0].queue), took)
			}
		})
	}
}

// TestFlushBeforeAnUpgrade: Flush waits for what is queued, within its bound, and what is
// left can be counted.
func TestFlushBeforeAnUpgrade(t *testing.T) {
	for code, lost := range map[int]int64{200: 0, 503: 3} {
		synctest.Test(t, func(t *testing.T) {
			e := New(slog.New(slog.DiscardHandler), "v1", "")
			e.client = &http.Client{Transport: &collector{codes: []int{code}}}
			e.Set("http://collector:4318", true)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); e.Run(ctx) }()
			for range 3 {
				e.Session(someRecord("A-1"))
			}
			began := time.Now()
			e.Flush(ctx)
			if took := time.Since(began); took > FlushTimeout || took < batchTime {
				t.Errorf("code %d: Flush takes %v", code, took)
			}
			if n := e.Dropped()[Logs]; n != 0 {
				t.Errorf("code %d: %d dropped, want 0", code, n)
			}
			e.CountUnsent(true)
			if n := e.Dropped()[Logs]; n != lost {
				t.Errorf("code %d: %d not sent, want %d", code, n, lost)
			}
			cancel()
			<-done
		})
	}
}

// TestSessionDoesNotWait: the queue is bounded.
func TestSessionDoesNotWait(t *testing.T) {
	e := New(slog.New(slog.DiscardHandler), "v1", "")
	e.Set("http://collector:4318", true)
	for range maxQueue + 3 {
		e.Session(someRecord("A-1"))
	}
	if got := e.Dropped()[Logs]; got != 3 {
		t.Errorf("%d dropped, want 3", got)
	}
}

// largeRecord is a session with many failed attempts to connect.
func largeRecord(id string) *outcome.Record {
	r := someRecord(id)
	r.Trace = outcome.NewTrace(r.Start, outcome.TraceID{1}, outcome.SpanID{}, true)
	for i := range 64 {
		r.Phases = append(r.Phases, outcome.Phase{Name: "dial", Address: "10.0.0.7:5432", Attempt: i, Reason: outcome.Refused, Cause: strings.Repeat("<", 200)})
	}
	return r
}

// limited is a collector that refuses requests above a size.
type limited struct {
	limit, largest int
	takes          time.Duration // for each answer
	taken          strings.Builder
}

func (c *limited) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	c.largest = max(c.largest, len(body))
	time.Sleep(c.takes)
	w := httptest.NewRecorder()
	if len(body) > c.limit {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	} else {
		c.taken.Write(body)
	}
	return w.Result(), nil
}

// TestRequestsAreBounded: requests have a bound in bytes, those that a collector calls too
// large are sent in halves, and only what is too large alone is dropped.
func TestRequestsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		limit, dropped int
	}{
		"any size":       {1 << 30, 0},
		"a small limit":  {300 << 10, 0},
		"less than each": {1 << 10, 100},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testBounds(t, c.limit, c.dropped) }) // no time passes while it encodes
		})
	}
}

func testBounds(t *testing.T, limit, dropped int) {
	to := &limited{limit: limit}
	e := New(slog.New(slog.DiscardHandler), "v1", "")
	e.client = &http.Client{Transport: to}
	e.Set("http://collector:4318", false)
	for i := range 100 {
		e.Session(largeRecord(fmt.Sprintf("A-%03d", i)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e.Run(ctx)
	if got := e.Dropped()[Traces]; got != int64(dropped) || to.largest > maxBody {
		t.Errorf("%d dropped, want %d; the largest request has %d bytes", got, dropped, to.largest)
	}
	for i := range 100 - dropped {
		if id := fmt.Sprintf(`{"key":"ambassador.id","value":{"stringValue":"A-%03d"}}`, i); strings.Count(to.taken.String(), id) != 1+64 {
			t.Errorf("session %d arrived in %d spans", i, strings.Count(to.taken.String(), id))
		}
	}
	if left := e.signals[1].queued.Load(); left != 0 {
		t.Errorf("%d bytes are counted for an empty queue", left)
	}
}

// TestHalvesAreBoundedInTime: a collector that calls each request too large, slowly, holds
// the queue up no longer than one that does not answer.
func TestHalvesAreBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(slog.New(slog.DiscardHandler), "v1", "")
		e.client = &http.Client{Transport: &limited{limit: 1, takes: postTimeout - time.Second}}
		e.Set("http://collector:4318", false)
		records := make([]*outcome.Record, 64)
		for i := range records {
			records[i] = largeRecord("A-1")
		}
		traces := e.signals[1]
		traces.unsent.Add(int64(len(records)))
		began := time.Now()
		traces.send(t.Context(), records)
		if took, dropped := time.Since(began), e.Dropped()[Traces]; took > giveUp+postTimeout || dropped != int64(len(records)) {
			t.Errorf("%d dropped after %v, want %d after %v at most", dropped, took, len(records), giveUp+postTimeout)
		}
	})
}

// TestQueueIsBoundedInBytes: a few large sessions are bounded as many small ones.
func TestQueueIsBoundedInBytes(t *testing.T) {
	e := New(slog.New(slog.DiscardHandler), "v1", "")
	e.Set("http://collector:4318", false)
	r := largeRecord("A-1")
	for range maxQueue {
		e.Session(r)
	}
	s := e.signals[1]
	if n := int64(len(s.queue)); n != maxQueueBytes/sizeOf(r) || s.queued.Load() != n*sizeOf(r) || s.dropped.Load() != maxQueue-n {
		t.Errorf("%d sessions of %d bytes wait, %d bytes are counted, %d dropped", n, sizeOf(r), s.queued.Load(), s.dropped.Load())
	}
}
