package otlp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"

	"ambassador/l4/outcome"
)

// tracedRecord is a session with two attempts: the first dial is refused. It ends for
// reason, after a relay or while TLS begins.
func tracedRecord(reason outcome.Reason, relayed bool) *outcome.Record {
	r := someRecord("A-1")
	r.Reason, r.Cause, r.Stage = reason, "it was seen", outcome.StageTLS
	if relayed {
		r.Stage, r.Establish = outcome.StageRelay, outcome.Seconds(300*time.Millisecond)
	}
	r.Trace = outcome.NewTrace(r.Start, outcome.TraceID{1, 2}, outcome.SpanID{3, 4}, true)
	ms := time.Millisecond
	r.Trace.Phases = []outcome.Phase{
		{Name: outcome.PhaseDNS, Address: "db", From: 1 * ms, To: 2 * ms},
		{Name: "dial", Address: "10.0.0.7:5432", Attempt: 1, From: 2 * ms, To: 50 * ms, Reason: outcome.Refused, Cause: "connection refused"},
		{Name: "dial", Address: "10.0.0.8:5432", Attempt: 2, From: 100 * ms, To: 150 * ms},
		{Name: "starttls", Address: "10.0.0.8:5432", Attempt: 2, From: 150 * ms, To: 200 * ms},
		{Name: "tls", Address: "10.0.0.8:5432", Attempt: 2, From: 200 * ms, To: 290 * ms},
	}
	if !relayed {
		last := &r.Trace.Phases[4]
		last.Reason, last.Cause = reason, "it was seen"
	}
	return r
}

// decodedSpans are the spans of a session as the official decoder reads them.
func decodedSpans(t *testing.T, r *outcome.Record) ptrace.SpanSlice {
	t.Helper()
	b, err := json.Marshal(origin{"v1", "host-1"}.traces([]*outcome.Record{r}))
	if err != nil {
		t.Fatal(err)
	}
	q := ptraceotlp.NewExportRequest()
	if err := q.UnmarshalJSON(b); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	all := q.Traces().ResourceSpans().At(0)
	if name, _ := all.Resource().Attributes().Get("service.name"); name.AsString() != "ambassador" {
		t.Errorf("service.name is %q", name.AsString())
	}
	return all.ScopeSpans().At(0).Spans()
}

func has(t *testing.T, where string, a pcommon.Map, key, want string) {
	t.Helper()
	if v, ok := a.Get(key); !ok || v.AsString() != want {
		t.Errorf("%s: %s is %q, want %q", where, key, v.AsString(), want)
	}
}

// TestSpans: the official decoder reads a session and its phases, with their times.
func TestSpans(t *testing.T) {
	r := tracedRecord(outcome.Closed, true)
	spans := decodedSpans(t, r)
	whole := spans.At(0)
	if whole.Name() != "session pg" || whole.Kind() != ptrace.SpanKindServer || whole.TraceID().String() != r.Trace.TraceID.String() || whole.SpanID().String() != r.SpanID.String() ||
		whole.ParentSpanID().String() != "0304000000000000" || whole.Flags() != 0x301 || whole.Status().Code() != ptrace.StatusCodeUnset {
		t.Errorf("%s %v %s %s %s %x %v", whole.Name(), whole.Kind(), whole.TraceID(), whole.SpanID(), whole.ParentSpanID(), whole.Flags(), whole.Status().Code())
	}
	for key, want := range map[string]string{"id": "A-1", "listener": "pg", "upstream": "db", "reason": "closed", "bytes_up": "1099511627776", "duration": "1.5"} {
		has(t, "session", whole.Attributes(), "ambassador."+key, want)
	}
	if _, ok := whole.Attributes().Get("ambassador.trace_id"); ok {
		t.Error("the ID of the trace is an attribute, too")
	}
	names, ids := "", map[string]bool{}
	for i := 1; i < spans.Len(); i++ {
		s := spans.At(i)
		names += s.Name() + " "
		ids[s.SpanID().String()] = true
		if s.ParentSpanID() != whole.SpanID() || s.TraceID() != whole.TraceID() || s.StartTimestamp() < whole.StartTimestamp() || s.EndTimestamp() > whole.EndTimestamp() || s.EndTimestamp() < s.StartTimestamp() {
			t.Errorf("%s does not nest: parent %s, %v to %v", s.Name(), s.ParentSpanID(), s.StartTimestamp(), s.EndTimestamp())
		}
	}
	if names != "dns dial dial starttls tls relay " || len(ids) != 6 {
		t.Errorf("phases %s, %d IDs", names, len(ids))
	}
	if refused := spans.At(2); refused.Status().Code() != ptrace.StatusCodeError || refused.Status().Message() != "refused: connection refused" || refused.Kind() != ptrace.SpanKindClient {
		t.Errorf("the refused dial has status %v %q", refused.Status().Code(), refused.Status().Message())
	}
	has(t, "refused dial", spans.At(2).Attributes(), "ambassador.reason", "refused")
	has(t, "refused dial", spans.At(2).Attributes(), "ambassador.address", "10.0.0.7:5432")
	has(t, "second dial", spans.At(3).Attributes(), "ambassador.attempt", "2")
	if d := spans.At(3).EndTimestamp() - spans.At(3).StartTimestamp(); d != 50e6 || spans.At(3).StartTimestamp() != 1700000000100000000 {
		t.Errorf("the second dial takes %d ns from %d", d, spans.At(3).StartTimestamp())
	}
	if relayed := spans.At(6); relayed.StartTimestamp() != 1700000000300000000 || relayed.EndTimestamp() != whole.EndTimestamp() || relayed.Status().Code() != ptrace.StatusCodeUnset {
		t.Errorf("relay from %d to %d, %v", relayed.StartTimestamp(), relayed.EndTimestamp(), relayed.Status().Code())
	}
}

// TestSpansOfFailures: a failed session's span, and that of the phase that failed, say why.
func TestSpansOfFailures(t *testing.T) {
	for _, relayed := range []bool{true, false} {
		spans := decodedSpans(t, tracedRecord(outcome.UpstreamTLS, relayed))
		last := spans.At(spans.Len() - 1)
		if want := map[bool]string{true: "relay", false: "tls"}[relayed]; last.Name() != want {
			t.Errorf("the last phase is %s, want %s", last.Name(), want)
		}
		for _, s := range []ptrace.Span{spans.At(0), last} {
			if s.Status().Code() != ptrace.StatusCodeError || s.Status().Message() != "upstream_tls: it was seen" {
				t.Errorf("%s has status %v %q", s.Name(), s.Status().Code(), s.Status().Message())
			}
			has(t, s.Name(), s.Attributes(), "ambassador.reason", "upstream_tls")
		}
	}
	r := tracedRecord(outcome.Closed, true)
	r.Trace.Parent, r.Trace.Omitted = outcome.SpanID{}, 7
	whole := decodedSpans(t, r).At(0)
	has(t, "session", whole.Attributes(), "ambassador.phases_omitted", "7")
	if !whole.ParentSpanID().IsEmpty() || whole.Flags() != 0x101 {
		t.Errorf("parent %s, flags %x of a session that begins the trace", whole.ParentSpanID(), whole.Flags())
	}
}

// TestLogOfTracedSession: the official decoder reads log records, and finds the IDs of the
// session's span.
func TestLogOfTracedSession(t *testing.T) {
	r := tracedRecord(outcome.Closed, true)
	b, err := json.Marshal(origin{"v1", "host-1"}.logs([]*outcome.Record{r, someRecord("A-2")}))
	if err != nil {
		t.Fatal(err)
	}
	q := plogotlp.NewExportRequest()
	if err := q.UnmarshalJSON(b); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	records := q.Logs().ResourceLogs().At(0).ScopeLogs().At(0).LogRecords()
	traced, other := records.At(0), records.At(1)
	if traced.TraceID().String() != r.Trace.TraceID.String() || traced.SpanID().String() != r.SpanID.String() || !traced.Flags().IsSampled() {
		t.Errorf("%s %s %v", traced.TraceID(), traced.SpanID(), traced.Flags())
	}
	if !other.TraceID().IsEmpty() || other.Body().AsString() != "session" || other.SeverityText() != "WARN" || other.Timestamp() != 1700000001500000000 {
		t.Errorf("%s %q %s %d", other.TraceID(), other.Body().AsString(), other.SeverityText(), other.Timestamp())
	}
	has(t, "record", other.Attributes(), "ambassador.reason", "refused")
}

// byPath answers each signal with its own code.
type byPath map[string]*collector

func (c byPath) RoundTrip(r *http.Request) (*http.Response, error) {
	if to := c[r.URL.Path]; to != nil {
		return to.RoundTrip(r)
	}
	return nil, errors.New("no such path")
}

// TestSignals: only sampled sessions become spans, and a collector that does not take the
// spans gets the records, and the reverse.
func TestSignals(t *testing.T) {
	unsampled := tracedRecord(outcome.Closed, true)
	unsampled.Sampled = false
	for name, c := range map[string]struct {
		logs, traces               int // codes
		withLogs                   bool
		gotLogs, gotTraces         int // requests
		droppedLogs, droppedTraces int64
	}{
		"both":           {200, 200, true, 1, 1, 0, 0},
		"no logs wanted": {200, 200, false, 0, 1, 0, 0},
		"spans refused":  {200, 404, true, 1, 1, 0, 1},
		"logs are away":  {503, 200, true, 8, 1, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := byPath{"/v1/logs": {codes: []int{c.logs}}, "/v1/traces": {codes: []int{c.traces}}}
				e := New(slog.New(slog.DiscardHandler), "v1", "")
				e.client = &http.Client{Transport: to}
				e.Set("http://collector:4318", c.withLogs)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); e.Run(ctx) }()
				for _, r := range []*outcome.Record{someRecord("A-0"), tracedRecord(outcome.Closed, true), unsampled} {
					e.Session(r)
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				logs, traces := to["/v1/logs"].got, to["/v1/traces"].got
				if len(logs) != c.gotLogs || len(traces) != c.gotTraces || e.Dropped()[Logs] != c.droppedLogs || e.Dropped()[Traces] != c.droppedTraces {
					t.Errorf("%d requests with logs, %d with traces, dropped %v", len(logs), len(traces), e.Dropped())
				}
				if strings.Count(strings.Join(traces, ""), `"name":"session pg"`) != 1 {
					t.Errorf("%q", traces)
				}
				cancel()
				<-done
			})
		})
	}
}
