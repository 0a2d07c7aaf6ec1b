package outcome

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The times of phases are those of the session's clock, and no two phases overlap.
func TestPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace := NewTrace(time.Now(), TraceID{}, SpanID{}, true)
		pause := func(d time.Duration) { time.Sleep(d) }
		pause(time.Second)
		trace.Begin("dial", "a:1", 1)
		pause(time.Second)
		trace.End(Refused, &fixable{fix: "start it"})
		trace.End(Timeout, errors.New("ended before"))
		pause(time.Second)
		trace.Begin("dial", "b:1", 2)
		pause(time.Second)
		trace.Begin("tls", "b:1", 2)
		pause(time.Second)
		trace.End("", nil)
		want := []Phase{{"dial", "a:1", 1, 1 * time.Second, 2 * time.Second, Refused, "it happened"},
			{"dial", "b:1", 2, 3 * time.Second, 4 * time.Second, "", ""}, {"tls", "b:1", 2, 4 * time.Second, 5 * time.Second, "", ""}}
		for i, p := range want {
			if len(trace.Phases) != len(want) || trace.Phases[i] != p {
				t.Fatalf("%+v, want %+v", trace.Phases, want)
			}
		}
	})
}

// What a session may keep is bounded, and one that is not sampled keeps nothing.
func TestPhasesAreBounded(t *testing.T) {
	trace := NewTrace(time.Now(), TraceID{}, SpanID{}, true)
	for range maxPhases + 3 {
		trace.Begin("dial", "a:1", 1)
		trace.End(Refused, nil)
	}
	if len(trace.Phases) != maxPhases || trace.Omitted != 3 {
		t.Errorf("%d phases, %d omitted", len(trace.Phases), trace.Omitted)
	}
	for _, none := range []*Trace{nil, NewTrace(time.Now(), TraceID{}, SpanID{}, false)} {
		none.Begin("dial", "a:1", 1)
		if none.End("", nil); none != nil && none.Phases != nil {
			t.Errorf("%+v", none)
		}
	}
}

// A record has the IDs as two fields of its own, and only if there is a trace.
func TestTraceInJSON(t *testing.T) {
	r := Record{Tag: "x", Trace: NewTrace(time.Time{}, TraceID{1, 0xab}, SpanID{}, true)}
	b, err := json.Marshal(&r)
	if err != nil || !strings.Contains(string(b), `"tag":"x","trace_id":"01ab0000000000000000000000000000","span_id":"`+r.SpanID.String()+`"}`) {
		t.Errorf("%s, %v", b, err)
	}
	var back Record
	if err := json.Unmarshal(b, &back); err != nil || back.TraceID != r.TraceID || back.SpanID != r.SpanID {
		t.Errorf("%+v, %v", back, err)
	}
	for _, bad := range []string{`{"trace_id":"01"}`, `{"span_id":"0x00000000000000"}`} {
		if err := json.Unmarshal([]byte(bad), &Record{}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	if b, err = json.Marshal(&Record{}); err != nil || strings.Contains(string(b), "_id") {
		t.Errorf("%s, %v", b, err)
	}
}
