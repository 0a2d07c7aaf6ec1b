package otlp

import (
	"log/slog"
	"time"

	"ambassador/cmd/ambassador/internal/logs"
	"ambassador/l4/outcome"
)

type (
	tracesRequest struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	scopeSpans struct {
		Scope scope  `json:"scope"`
		Spans []span `json:"spans"`
	}
	span struct {
		TraceID           string      `json:"traceId"`
		SpanID            string      `json:"spanId"`
		ParentSpanID      string      `json:"parentSpanId,omitempty"`
		Flags             int         `json:"flags"`
		Name              string      `json:"name"`
		Kind              int         `json:"kind"`
		StartTimeUnixNano string      `json:"startTimeUnixNano"`
		EndTimeUnixNano   string      `json:"endTimeUnixNano"`
		Attributes        []attribute `json:"attributes"`
		Status            status      `json:"status"`
	}
	status struct {
		Message string `json:"message,omitempty"`
		Code    int    `json:"code,omitempty"`
	}
)

// Numbers of OTLP.
const (
	kindInternal = 1
	kindServer   = 2
	kindClient   = 3

	statusError = 2

	flagSampled        = 0x001
	flagKnowsRemote    = 0x100 // the next flag is set where it applies
	flagParentIsRemote = 0x200
)

// phaseRelay is the span from the end of establishing to the end of the session.
const phaseRelay = "relay"

// flagsOf are the flags of W3C Trace Context.
func flagsOf(t *outcome.Trace) int {
	if t.Sampled {
		return flagSampled
	}
	return 0
}

// traces is the request that sends sessions as spans.
func (o origin) traces(sessions []*outcome.Record) tracesRequest {
	var spans []span
	for _, r := range sessions {
		spans = append(spans, spansOf(r)...)
	}
	return tracesRequest{[]resourceSpans{{o.resource(), []scopeSpans{{o.scope(), spans}}}}}
}

// spansOf are the span of a session, and one below it for each of its phases.
func spansOf(r *outcome.Record) []span {
	t := r.Trace
	end := time.Duration(r.Duration)
	whole := span{TraceID: t.TraceID.String(), SpanID: t.SpanID.String(), Flags: flagsOf(t) | flagKnowsRemote, Name: "session " + r.Listener, Kind: kindServer,
		StartTimeUnixNano: at(r, 0), EndTimeUnixNano: at(r, end), Attributes: attributesOf(r)}
	if t.Parent != (outcome.SpanID{}) {
		whole.ParentSpanID, whole.Flags = t.Parent.String(), whole.Flags|flagParentIsRemote
	}
	if t.Omitted > 0 {
		whole.Attributes = append(whole.Attributes, attribute{"ambassador.phases_omitted", number(int64(t.Omitted))})
	}
	failed := logs.Level(r) >= slog.LevelWarn
	if failed {
		whole.fail(r.Reason, r.Cause)
	}
	out := []span{whole}
	for i := range t.Phases {
		out = append(out, phaseOf(r, &t.Phases[i]))
	}
	if r.Establish > 0 {
		relayed := outcome.Phase{Name: phaseRelay, Address: r.Address, From: time.Duration(r.Establish), To: end}
		if failed {
			relayed.Reason, relayed.Cause = r.Reason, r.Cause
		}
		out = append(out, phaseOf(r, &relayed))
	}
	return out
}

// phaseOf is the span of a phase.
func phaseOf(r *outcome.Record, p *outcome.Phase) span {
	s := span{TraceID: r.TraceID.String(), SpanID: outcome.NewSpanID().String(), ParentSpanID: r.SpanID.String(), Flags: flagsOf(r.Trace) | flagKnowsRemote,
		Name: p.Name, Kind: kindOf(p), StartTimeUnixNano: at(r, p.From), EndTimeUnixNano: at(r, p.To)}
	s.Attributes = []attribute{{"ambassador.id", text(r.ID)}, {"ambassador.address", text(p.Address)}}
	if r.Upstream != "" {
		s.Attributes = append(s.Attributes, attribute{"ambassador.upstream", text(r.Upstream)})
	}
	if p.Attempt > 0 {
		s.Attributes = append(s.Attributes, attribute{"ambassador.attempt", number(int64(p.Attempt))})
	}
	if p.Reason != "" {
		s.Attributes = append(s.Attributes, attribute{"ambassador.reason", text(string(p.Reason))})
		s.fail(p.Reason, p.Cause)
	}
	return s
}

// kindOf is the kind of a phase: the relay asks nobody.
func kindOf(p *outcome.Phase) int {
	if p.Name == phaseRelay {
		return kindInternal
	}
	return kindClient
}

// fail gives the span the status of a failure.
func (s *span) fail(reason outcome.Reason, cause string) {
	s.Status = status{Code: statusError, Message: string(reason)}
	if cause != "" {
		s.Status.Message += ": " + cause
	}
}
