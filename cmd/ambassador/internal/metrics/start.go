package metrics

import (
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
)

// stagesOf are the stages at which sessions usually end for each reason. Their series
// start at zero, so that the first failure is a rise for rate(). A reason may end a
// session at another stage too, and that series begins with its first event.
var stagesOf = map[outcome.Reason][]outcome.Stage{
	outcome.Closed:              {outcome.StageRelay},
	outcome.DownstreamReset:     {outcome.StageRelay},
	outcome.UpstreamReset:       {outcome.StageRelay},
	outcome.DownstreamLost:      {outcome.StageRelay},
	outcome.UpstreamLost:        {outcome.StageRelay},
	outcome.Idle:                {outcome.StageRelay},
	outcome.HalfCloseIdle:       {outcome.StageRelay},
	outcome.Lifetime:            {outcome.StageRelay},
	outcome.Drained:             {outcome.StageRelay},
	outcome.Shutdown:            {outcome.StageRelay},
	outcome.Killed:              {outcome.StageRelay},
	outcome.Limit:               {outcome.StageAdmit},
	outcome.LocalExhausted:      {outcome.StageDial},
	outcome.Denied:              {outcome.StageRoute},
	outcome.NoRoute:             {outcome.StageRoute},
	outcome.AuthFailed:          {outcome.StageGreet},
	outcome.SpecialAddress:      {outcome.StageRoute, outcome.StageDial},
	outcome.Loop:                {outcome.StageRoute},
	outcome.BadGreeting:         {outcome.StageGreet},
	outcome.HandshakeTimeout:    {outcome.StageGreet},
	outcome.DownstreamTLS:       {outcome.StageGreet},
	outcome.NoIdentity:          {outcome.StagePermit},
	outcome.NoEndpoint:          {outcome.StagePermit},
	outcome.BreakerOpen:         {outcome.StagePermit},
	outcome.DNS:                 {outcome.StageDial},
	outcome.Refused:             {outcome.StageDial},
	outcome.Timeout:             {outcome.StageDial, outcome.StageTLS},
	outcome.Unreachable:         {outcome.StageDial},
	outcome.StartTLSRefused:     {outcome.StageStartTLS},
	outcome.UpstreamTLS:         {outcome.StageTLS},
	outcome.UpstreamTLSRejected: {outcome.StageTLS},
	outcome.UpstreamEarlyClose:  {outcome.StageRelay},
	outcome.Probe:               {outcome.StageGreet, outcome.StageRelay},
	outcome.Internal:            {outcome.StageGreet, outcome.StageRelay},
}

// beforeRoute reports whether a session that ends at the stage has no upstream yet.
func beforeRoute(s outcome.Stage) bool {
	return s == outcome.StageAdmit || s == outcome.StageGreet || s == outcome.StageRoute
}

// startBefore starts the series of the listener's sessions that get no upstream.
func (m *Metrics) startBefore(listener string) {
	m.duration.WithLabelValues(listener, "")
	for reason, stages := range stagesOf {
		for _, stage := range stages {
			if beforeRoute(stage) {
				m.ended.WithLabelValues(listener, "", string(stage), string(reason))
			}
		}
	}
}

// startPair starts the series of a listener's sessions with an upstream.
func (m *Metrics) startPair(p listenerUpstream) {
	if p.upstream == "" { // only rules choose one
		return
	}
	m.duration.WithLabelValues(p.listener, p.upstream)
	for reason, stages := range stagesOf {
		for _, stage := range stages {
			if !beforeRoute(stage) {
				m.ended.WithLabelValues(p.listener, p.upstream, string(stage), string(reason))
			}
		}
	}
}

// startUpstream starts the series of an upstream, for what its configuration can do.
func (m *Metrics) startUpstream(u upstream.Config) {
	phases := []upstream.Phase{upstream.PhaseDNS, upstream.PhaseDial, upstream.PhaseTotal}
	reasons := []outcome.Reason{outcome.OK, outcome.DNS, outcome.Refused, outcome.Timeout, outcome.Unreachable, outcome.UpstreamEarlyClose, outcome.LocalExhausted}
	if u.StartTLS != "" {
		phases, reasons = append(phases, upstream.PhaseStartTLS), append(reasons, outcome.StartTLSRefused)
	}
	if u.TLS != nil {
		phases, reasons = append(phases, upstream.PhaseTLS), append(reasons, outcome.UpstreamTLS, outcome.UpstreamTLSRejected, outcome.NoIdentity)
	}
	for _, p := range phases {
		m.establish.WithLabelValues(u.Name, string(p))
	}
	for _, r := range reasons {
		m.attempts.WithLabelValues(u.Name, string(r))
	}
	for _, ok := range []bool{true, false} {
		m.probes.WithLabelValues(u.Name, resultOf(ok))
	}
	if u.Preconnect.Connections == 0 {
		return
	}
	for _, r := range []upstream.PreconnectResult{upstream.PreconnectHit, upstream.PreconnectMiss, upstream.PreconnectStale} {
		m.preconnects.WithLabelValues(u.Name, string(r))
	}
}
