package config

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
)

// TracingSection is tracing.
type TracingSection struct {
	OTLP   string // the base URL of a collector; empty: none
	Sample float64
	Logs   bool
}

func (t *TracingSection) fields() []field {
	return []field{
		textField("otlp", "The base URL of an OpenTelemetry collector that speaks OTLP/HTTP: http://127.0.0.1:4318. The variable OTEL_EXPORTER_OTLP_HEADERS adds headers.", &t.OTLP, checkCollector),
		shareField("sample", "The share of sessions that are sent as spans to URL/v1/traces, from 0 to 1. With context: true of the listener a client may name a trace (traceparent): then the trace decides.", &t.Sample).or(0.0),
		boolField("logs", "Send the record of each session, as a log record, to URL/v1/logs.", &t.Logs),
	}
}

// signalPath is what is added to the base URL.
var signalPath = regexp.MustCompile(`/v1/(traces|logs|metrics)/*$`)

func checkCollector(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || signalPath.MatchString(u.Path) {
		return errors.New("not a URL of a collector; use http://HOST:4318 or https://HOST:4318, without /v1/traces or /v1/logs")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("a URL without user, query and fragment is needed; OTEL_EXPORTER_OTLP_HEADERS passes credentials")
	}
	return nil
}

func (t *TracingSection) validate(d *decoder) {
	if t.OTLP != "" || d.at["tracing.otlp"] != nil { // a wrong one is told already
		return
	}
	if t.Logs {
		d.failAt("tracing.logs", "there is no collector; give otlp: http://127.0.0.1:4318, or remove logs")
	}
	if t.Sample > 0 {
		d.failAt("tracing.sample", "there is no collector; give otlp: http://127.0.0.1:4318, or remove sample")
	}
}

// doubts are about a collector that gets nothing, or does not understand what it gets.
func (t *TracingSection) doubts(f *File) (out []string) {
	if t.OTLP == "" {
		return nil
	}
	if u, err := url.Parse(t.OTLP); err == nil && u.Port() == "4317" {
		out = append(out, "tracing.otlp: collectors speak gRPC at port 4317, and OTLP/HTTP is sent; the port for that is 4318")
	}
	switch asked := slices.ContainsFunc(f.Listeners, func(l *ListenerSection) bool { return l.Context }); {
	case t.Sample > 0 || t.Logs:
	case asked:
		out = append(out, "tracing.otlp: only sessions whose client names a trace are sent; set sample: 0.01 or logs: true for others")
	default:
		out = append(out, "tracing.otlp: nothing is sent; set sample: 0.01 or logs: true, or context: true of a listener whose clients name a trace")
	}
	return out
}
