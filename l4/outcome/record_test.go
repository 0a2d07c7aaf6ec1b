package outcome

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSecondsInJSON(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", 1500 * time.Millisecond: "1.5", 2 * time.Microsecond: "0.000002", 90 * time.Second: "90"} {
		b, err := json.Marshal(Seconds(d))
		if err != nil || string(b) != want {
			t.Errorf("%v in JSON is %s, %v; want %s", d, b, err, want)
		}
		var back Seconds
		if err := json.Unmarshal(b, &back); err != nil || time.Duration(back) != d {
			t.Errorf("%s reads back as %v, %v", b, back, err)
		}
	}
	var bad Seconds
	if err := json.Unmarshal([]byte(`"1s"`), &bad); err == nil {
		t.Error("a string passes as seconds")
	}
}

// fill sets each field of a record to something that is not zero, texts to their own.
func fill(t *testing.T) (r Record, texts []string) {
	t.Helper()
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("the " + v.Type().Field(i).Name)
			texts = append(texts, f.String())
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(1000 + i))
		case reflect.Pointer:
			f.Set(reflect.ValueOf(NewTrace(time.Time{}, TraceID{}, SpanID{}, true)))
		default:
			if f.Type() != reflect.TypeFor[time.Time]() {
				t.Fatalf("a field of kind %v", f.Kind())
			}
			f.Set(reflect.ValueOf(time.Unix(1e9, 0)))
		}
	}
	return r, texts
}

// Each field has its line in recordFields, which is about that field and has its key.
func TestRecordFields(t *testing.T) {
	r, _ := fill(t)
	v := reflect.ValueOf(&r).Elem()
	attrs := slices.Collect(r.Attrs())
	last := v.NumField() - 1 // Trace, with trace_id and span_id
	if len(recordFields) != last+2 || len(attrs) != last+2 || v.Field(last).Kind() != reflect.Pointer {
		t.Fatalf("%d fields, %d in recordFields, %d logged", v.NumField(), len(recordFields), len(attrs))
	}
	if id, span := attrs[last], attrs[last+1]; id.Key+id.Value.String()+span.Key+span.Value.String() != "trace_id"+r.TraceID.String()+"span_id"+r.SpanID.String() {
		t.Errorf("the trace is logged as %v %v", id, span)
	}
	for i, f := range recordFields[:last] {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if f.key != key || attrs[i].Key != key {
			t.Errorf("field %d is %s in recordFields and %s in the log, want %s", i, f.key, attrs[i].Key, key)
		}
		switch field := v.Field(i); {
		case (field.Kind() == reflect.String) != (f.text != nil) || (f.text != nil) == (f.value != nil):
			t.Errorf("%s has not the one of text and value that its type wants", key)
		case f.text != nil:
			if reflect.ValueOf(f.text(&r)).Pointer() != field.Addr().Pointer() {
				t.Errorf("%s is the text of another field", key)
			}
		default:
			before := attrs[i].Value
			field.SetZero()
			if now, ok := f.value(&r); ok && now.Equal(before) {
				t.Errorf("%s is the value of another field", key)
			}
		}
	}
	if got := slices.Collect((&Record{}).Attrs()); len(got) != 6 {
		t.Errorf("an empty record has %v", got)
	}
}

// A packed record has each field.
func TestPack(t *testing.T) {
	r, texts := fill(t)
	p := r.Pack()
	trace := r.Trace
	got := p.Unpack()
	if got.TraceID != trace.TraceID || got.SpanID != trace.SpanID || got.Sampled {
		t.Errorf("%+v was packed and came back as %+v", trace, got.Trace)
	}
	if got.Trace, r.Trace = nil, nil; got != r {
		t.Errorf("%+v was packed and came back as %+v", r, got)
	}
	if up, down := p.bytes(); up != r.BytesUp || down != r.BytesDown {
		t.Errorf("%d and %d bytes, want %d and %d", up, down, r.BytesUp, r.BytesDown)
	}
	few := Record{Start: time.Unix(1e9, 0), BytesUp: 1 << 60, Duration: -1}
	if got := few.Pack().Unpack(); got != few {
		t.Errorf("%+v came back as %+v", few, got)
	}
	r.Cause = strings.Repeat("c", 1000)
	if got := r.Pack().Unpack(); got != r {
		t.Error("a long cause did not come back")
	}
	session := Record{Start: time.Unix(1764400000, 123456789), Listener: "orders", Client: "127.0.0.1:51234", Upstream: "orders_db",
		Endpoint: "db.internal:5432", Address: "10.0.0.1:5432", Stage: StageRelay, Attempts: 1, Establish: Seconds(3 * time.Millisecond)}
	if n := len(session.Pack()); n > 112 {
		t.Errorf("a session at the relay takes %d bytes", n)
	}
	if len(texts) > 127 {
		t.Error("the index of a text is a byte")
	}
}

// A packed account has its record, and takes changes.
func TestAccount(t *testing.T) {
	start := time.Now()
	a := NewAccount(Record{Start: start, Listener: "orders", BytesUp: 7})
	a.Record().Stage = StageRelay
	trace := NewTrace(start, TraceID{}, SpanID{}, true)
	a.Join(trace)
	for range 2 {
		a.Pack()
		up, down := a.Bytes()
		if got := a.Copy(); got.Start != start || got.Listener != "orders" || got.Stage != StageRelay || got.Trace != trace || up != 7 || down != 0 {
			t.Errorf("packed: %+v, %d, %d bytes", got, up, down)
		}
	}
	a.Record().BytesUp = 8
	if up, _ := a.Bytes(); up != 8 || a.Copy().BytesUp != 8 || a.Start() != start || a.Record().Start != start {
		t.Errorf("changed: %+v", a.Copy())
	}
}

// fixable is an error that knows its fix.
type fixable struct {
	fix string
	err error
}

func (e *fixable) Error() string {
	text := "it happened"
	if e.err != nil {
		text += ": " + e.err.Error()
	}
	if e.fix == "" {
		return text
	}
	return text + "; " + e.fix
}
func (e *fixable) Fix() string   { return e.fix }
func (e *fixable) Unwrap() error { return e.err }

func TestCauseAndFix(t *testing.T) {
	known := &fixable{fix: "restart it"}
	for _, tt := range []struct {
		name       string
		err        error
		cause, fix string
	}{
		{"no fix", errors.New("it happened"), "it happened", ""},
		{"a fix", known, "it happened", "restart it"},
		{"wrapped", fmt.Errorf("tls: %w", known), "tls: it happened", "restart it"},
		{"below one that knows none", &fixable{err: known}, "it happened: it happened", "restart it"},
		{"the outer one counts", &fixable{fix: "look", err: &fixable{}}, "it happened: it happened", "look"},
		{"an outcome", &Error{Stage: StageTLS, Upstream: "db", Err: known}, "tls db: it happened", "restart it"},
	} {
		if cause, fix := CauseAndFix(tt.err); cause != tt.cause || fix != tt.fix {
			t.Errorf("%s: cause %q, fix %q; want %q, %q", tt.name, cause, fix, tt.cause, tt.fix)
		}
	}
}

func TestClientProcess(t *testing.T) {
	for want, r := range map[string]Record{
		"":                        {},
		"uid 0":                   {UID: UserIDOf(0)},
		"uid 1000, psql, pid 471": {UID: UserIDOf(1000), PID: 471, Process: "psql"},
		"pid 471":                 {PID: 471},
	} {
		if got := r.ClientProcess(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
