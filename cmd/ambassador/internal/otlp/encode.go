package otlp

import (
	"log/slog"
	"strconv"
	"time"

	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/l4/outcome"
)

// The types of an OTLP request in the JSON form of protobuf: 64-bit integers are strings.
type (
	logsRequest struct {
		ResourceLogs []resourceLogs `json:"resourceLogs"`
	}
	resourceLogs struct {
		Resource  resource    `json:"resource"`
		ScopeLogs []scopeLogs `json:"scopeLogs"`
	}
	resource struct {
		Attributes []attribute `json:"attributes"`
	}
	scopeLogs struct {
		Scope      scope       `json:"scope"`
		LogRecords []logRecord `json:"logRecords"`
	}
	scope struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	logRecord struct {
		TimeUnixNano         string      `json:"timeUnixNano"`
		ObservedTimeUnixNano string      `json:"observedTimeUnixNano"`
		SeverityNumber       int         `json:"severityNumber"`
		SeverityText         string      `json:"severityText"`
		Body                 value       `json:"body"`
		Attributes           []attribute `json:"attributes"`
		TraceID              string      `json:"traceId,omitempty"`
		SpanID               string      `json:"spanId,omitempty"`
		Flags                int         `json:"flags,omitempty"`
	}
	attribute struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	value struct {
		String *string  `json:"stringValue,omitempty"`
		Int    *string  `json:"intValue,omitempty"`
		Double *float64 `json:"doubleValue,omitempty"`
		Bool   *bool    `json:"boolValue,omitempty"`
	}
)

func text(s string) value { return value{String: &s} }

func number(n int64) value {
	s := strconv.FormatInt(n, 10)
	return value{Int: &s}
}

// valueOf is a value of a record: durations are seconds, as in the JSON log.
func valueOf(v slog.Value) value {
	switch v = v.Resolve(); v.Kind() {
	case slog.KindInt64:
		return number(v.Int64())
	case slog.KindBool:
		b := v.Bool()
		return value{Bool: &b}
	case slog.KindDuration:
		f := v.Duration().Seconds()
		return value{Double: &f}
	case slog.KindTime:
		return text(v.Time().UTC().Format(time.RFC3339Nano))
	}
	if d, ok := v.Any().(outcome.Seconds); ok {
		f := time.Duration(d).Seconds()
		return value{Double: &f}
	}
	return text(v.String())
}

// recordOf is the log record of a session. Its time is the session's end, and its
// attributes are the fields of the record.
func recordOf(r *outcome.Record) logRecord {
	end := at(r, time.Duration(r.Duration))
	level := logs.Level(r)
	out := logRecord{TimeUnixNano: end, ObservedTimeUnixNano: end, SeverityNumber: severity(level), SeverityText: level.String(), Body: text("session")}
	out.Attributes = attributesOf(r)
	if t := r.Trace; t != nil {
		out.TraceID, out.SpanID, out.Flags = t.TraceID.String(), t.SpanID.String(), flagsOf(t)
	}
	return out
}

// at is a time after the start of a session, in nanoseconds since 1970.
func at(r *outcome.Record, after time.Duration) string {
	return strconv.FormatInt(r.Start.UnixNano()+int64(after), 10)
}

// attributesOf are the fields of a record. The IDs of its trace are not among them: OTLP
// has fields of its own for those.
func attributesOf(r *outcome.Record) (out []attribute) {
	without := *r
	without.Trace = nil
	for a := range without.Attrs() {
		out = append(out, attribute{"ambassador." + a.Key, valueOf(a.Value)})
	}
	return out
}

// severity is OTLP's number of a level.
func severity(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 17
	case l >= slog.LevelWarn:
		return 13
	}
	return 9
}

// origin is what sends sessions.
type origin struct{ version, host string }

func (o origin) resource() resource {
	return resource{[]attribute{{"service.name", text("ambassador")}, {"service.version", text(o.version)}, {"host.name", text(o.host)}}}
}

func (o origin) scope() scope { return scope{"ambassador", o.version} }

// logs is the request that sends the records of sessions.
func (o origin) logs(sessions []*outcome.Record) logsRequest {
	records := make([]logRecord, 0, len(sessions))
	for _, r := range sessions {
		records = append(records, recordOf(r))
	}
	return logsRequest{[]resourceLogs{{o.resource(), []scopeLogs{{o.scope(), records}}}}}
}
