package metrics

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ambassador/certs"
	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// usedMetrics has had one event of every kind.
func usedMetrics(t *testing.T, traffic []l4.Traffic) *Metrics {
	t.Helper()
	m := New("v0.1.0", "admin", "reload")
	m.registry.MustRegister(&stateCollector{metrics: m, traffic: func() []l4.Traffic { return traffic },
		upstreams:  func() []upstream.Status { return cmdtest.NewFakeServer().Upstreams },
		identities: func() []certs.Status { return cmdtest.NewFakeServer().Identities }})
	m.Watch(someState)
	m.Applied(twoListeners(), someRules())
	o := m.Observer()
	o.Opened("postgres")
	o.AcceptPaused("postgres")
	o.Panicked(upstream.PartProber)
	o.Upstream.Preconnect("orders_db", upstream.PreconnectHit)
	o.Upstream.Attempt("orders_db", outcome.Refused)
	o.Upstream.Probe("orders_db", true)
	o.Upstream.Certificate("orders_db", cmdtest.Noon())
	o.Ruled("smtp", "#2", policy.Deny)
	for _, p := range []upstream.Phase{upstream.PhaseDNS, upstream.PhaseDial, upstream.PhaseProxy, upstream.PhaseStartTLS, upstream.PhaseTLS, upstream.PhaseTotal} {
		o.Upstream.Phase("orders_db", "K7QX-39", p, 3*time.Millisecond)
	}
	o.Ended(&cmdtest.NewFakeServer().Over[0])
	m.Reloaded(true)
	return m
}

func someState() State {
	return State{Ready: true, Hash: "c0ffee", Source: "file", LoadedAt: cmdtest.Noon(), DroppedLines: 7, DroppedOTLP: map[string]int64{"logs": 5, "traces": 6},
		Limits: []l4.LimitUse{{Key: "limits.connections", Max: 100, Used: 3}, {Key: "limits.memory", Max: 1 << 20, Used: 4096}}}
}

func twoListeners() l4.Config {
	return l4.Config{
		Listeners: []l4.ListenerConfig{{Name: "postgres", Upstream: "orders_db"}, {Name: "smtp", Upstream: "mail"}},
		Upstreams: []upstream.Config{{Name: "orders_db", Preconnect: upstream.PreconnectConfig{Connections: 2}}, {Name: "mail"}},
	}
}

func someRules() []Rule {
	return []Rule{{"smtp", "api", policy.Allow}, {"smtp", "#2", policy.Deny}, {"smtp", "", policy.NoRule}}
}

func someTraffic() []l4.Traffic {
	return []l4.Traffic{{Listener: "postgres", Upstream: "orders_db", Active: 1, Up: 12, Down: 1023}, {Listener: "smtp", Upstream: "mail"}}
}

// scrape gives the page as Prometheus' text format has it.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestMetricsAreClean(t *testing.T) {
	m := usedMetrics(t, someTraffic())
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "ambassador_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if n, err := testutil.GatherAndCount(m.registry, name); err != nil || n == 0 && name == "go_goroutines" {
			t.Errorf("%s: %d series, %v", name, n, err)
		}
	}
}

// The names, helps and labels that dashboards rely on.
func TestMetricsContract(t *testing.T) {
	families, err := usedMetrics(t, someTraffic()).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "ambassador_") {
			continue
		}
		labels := map[string][]string{}
		var names []string
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				if labels[l.GetName()] == nil {
					names = append(names, l.GetName())
				}
				if !slices.Contains(labels[l.GetName()], l.GetValue()) {
					labels[l.GetName()] = append(labels[l.GetName()], l.GetValue())
				}
			}
		}
		fmt.Fprintf(&got, "%s %s\n  %s\n", f.GetName(), strings.ToLower(f.GetType().String()), f.GetHelp())
		for _, n := range names {
			fmt.Fprintf(&got, "  %s: %s\n", n, strings.Join(labels[n], " "))
		}
	}
	want := `ambassador_accept_pauses_total counter
  Pauses in accepting because descriptors or memory ran out.
  listener: postgres smtp
ambassador_address_sessions gauge
  Connections to the addresses of an endpoint that are open or being made; preconnected ones are not among them.
  endpoint: db1.internal:5432 db2.internal:5432 mail.internal:25
  upstream: orders_db mail
ambassador_addresses gauge
  Addresses that an endpoint resolves to, by their health.
  endpoint: db1.internal:5432 db2.internal:5432 mail.internal:25
  health: healthy unhealthy unknown
  upstream: orders_db mail
ambassador_attempts_total counter
  Attempts to connect to the upstream, health probes not among them, by how they went; ok is success.
  reason: dns local_exhausted ok refused timeout unreachable upstream_early_close
  upstream: mail orders_db
ambassador_breakers gauge
  Breakers of an endpoint's addresses, or of a dynamic upstream's destinations (endpoint dynamic), by their state; closed lets traffic pass.
  endpoint: db1.internal:5432 db2.internal:5432 mail.internal:25
  state: closed half_open open
  upstream: orders_db mail
ambassador_build_info gauge
  The version that runs; always 1.
  version: v0.1.0
ambassador_bytes_total counter
  Bytes of the application that were passed on, those of open sessions included; up is towards the upstream.
  direction: down up
  listener: postgres smtp
  upstream: orders_db mail
ambassador_config_info gauge
  The configuration in use; always 1. version is that of the program; hash is of the configuration without its secrets; source is file or flags.
  hash: c0ffee
  source: file
  version: v0.1.0
ambassador_config_last_reload_success_timestamp_seconds gauge
  When the configuration in use came into use, in seconds since 1970.
ambassador_config_last_reload_successful gauge
  1 if the last reload, or the start where there was none, applied the configuration; 0 if the reload failed and the old configuration stays in use.
ambassador_establish_seconds histogram
  Time that a phase of connecting to the upstream took, where it went well and was not a health probe's, in seconds; total is that of a session.
  phase: dial dns proxy starttls tls total
  upstream: mail orders_db
ambassador_identity_not_after_timestamp_seconds gauge
  When the certificate in use expires, in seconds since 1970.
  identity: orders
ambassador_identity_renewals_total counter
  Certificates loaded or renewed; error is one that could not be used.
  identity: orders
  result: error ok
ambassador_limit gauge
  The limits of the process, by their key: limits.connections in sessions, limits.memory in bytes.
  limit: limits.connections limits.memory
ambassador_limit_used gauge
  How much of each limit of the process is in use.
  limit: limits.connections limits.memory
ambassador_log_lines_dropped_total counter
  Log lines dropped because the log was not read fast enough.
ambassador_otlp_dropped_total counter
  Sessions dropped because the collector of tracing.otlp did not take them. signal is logs or traces.
  signal: logs traces
ambassador_panics_total counter
  Panics that the process has survived, by the part that they were in. Each is a bug; the log has its stack.
  part: admin files issuer preconnect prober relay reload resolver roots session source upstream
ambassador_peer_certificate_not_after_timestamp_seconds gauge
  When the certificate expires that a server of the upstream showed last, in seconds since 1970; dynamic upstreams have none.
  upstream: orders_db
ambassador_preconnect_total counter
  Sessions that asked for a ready connection: hit is one that got it, miss one that did not; stale is one that was found dead.
  result: hit miss stale
  upstream: orders_db
ambassador_preconnected gauge
  Connections that are ready for a session.
  upstream: mail orders_db
ambassador_probes_total counter
  Health probes, by their result; one that our own side prevented is not counted.
  result: error ok
  upstream: mail orders_db
ambassador_ready gauge
  1 if the process is ready, as /readyz says it; else 0.
ambassador_reloads_total counter
  Reloads of the configuration.
  result: error ok
ambassador_rules_total counter
  Sessions that a rule of the listener has decided: allow, deny, or would_deny, which is allowed and reported; none, without a rule, is that none matched.
  listener: smtp
  rule:  #2 api
  verdict: none deny allow
ambassador_session_duration_seconds histogram
  Time from accept to the end of a session, in seconds.
  listener: postgres smtp
  upstream:  orders_db mail
ambassador_sessions_active gauge
  Sessions that are open.
  listener: postgres smtp
  upstream: orders_db mail
ambassador_sessions_opened_total counter
  Connections accepted.
  listener: postgres smtp
ambassador_sessions_total counter
  Sessions ended, by the stage they reached and the reason they ended for.
  listener: postgres smtp
  reason: auth_failed bad_greeting breaker_open closed denied dns downstream_lost downstream_reset downstream_tls drained half_close_idle handshake_timeout idle internal killed lifetime limit local_exhausted loop no_endpoint no_identity no_route probe refused shutdown special_address starttls_refused timeout unreachable upstream_early_close upstream_lost upstream_reset upstream_tls upstream_tls_rejected
  stage: greet permit relay route dial admit starttls tls
  upstream:  orders_db mail
ambassador_upgrade_sessions_total counter
  Sessions that were open at an upgrade in place: carried ones go on, ended ones could not be carried over.
  result: carried ended
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestMetricsValues(t *testing.T) {
	page := scrape(t, usedMetrics(t, someTraffic()))
	for _, line := range []string{
		`ambassador_sessions_opened_total{listener="postgres"} 1`,
		`ambassador_sessions_opened_total{listener="smtp"} 0`,
		`ambassador_accept_pauses_total{listener="postgres"} 1`,
		`ambassador_accept_pauses_total{listener="smtp"} 0`,
		`ambassador_panics_total{part="prober"} 1`,
		`ambassador_panics_total{part="issuer"} 0`,
		`ambassador_attempts_total{reason="ok",upstream="orders_db"} 0`,
		`ambassador_attempts_total{reason="refused",upstream="orders_db"} 1`,
		`ambassador_bytes_total{direction="up",listener="postgres",upstream="orders_db"} 12`,
		`ambassador_bytes_total{direction="down",listener="postgres",upstream="orders_db"} 1023`,
		`ambassador_sessions_active{listener="postgres",upstream="orders_db"} 1`,
		`ambassador_sessions_total{listener="postgres",reason="upstream_tls_rejected",stage="tls",upstream="orders_db"} 1`,
		`ambassador_session_duration_seconds_sum{listener="postgres",upstream="orders_db"} 1.2345`,
		`ambassador_session_duration_seconds_bucket{listener="postgres",upstream="orders_db",le="10"} 1`,
		`ambassador_establish_seconds_bucket{phase="tls",upstream="orders_db",le="0.005"} 1`,
		`ambassador_identity_not_after_timestamp_seconds{identity="orders"} 1.7960976e+09`,
		`ambassador_identity_renewals_total{identity="orders",result="ok"} 2`,
		`ambassador_identity_renewals_total{identity="orders",result="error"} 1`,
		`ambassador_reloads_total{result="ok"} 1`,
		`ambassador_reloads_total{result="error"} 0`,
		`ambassador_sessions_total{listener="smtp",reason="closed",stage="relay",upstream="mail"} 0`,
		`ambassador_sessions_total{listener="smtp",reason="limit",stage="admit",upstream=""} 0`,
		`ambassador_session_duration_seconds_count{listener="smtp",upstream="mail"} 0`,
		`ambassador_establish_seconds_count{phase="total",upstream="mail"} 0`,
		`ambassador_probes_total{result="ok",upstream="orders_db"} 1`,
		`ambassador_probes_total{result="error",upstream="orders_db"} 0`,
		`ambassador_address_sessions{endpoint="db1.internal:5432",upstream="orders_db"} 1`,
		`ambassador_peer_certificate_not_after_timestamp_seconds{upstream="orders_db"} 1.7954352e+09`,
		`ambassador_ready 1`,
		`ambassador_config_info{hash="c0ffee",source="file",version="v0.1.0"} 1`,
		`ambassador_config_last_reload_successful 0`,
		`ambassador_config_last_reload_success_timestamp_seconds 1.7954352e+09`,
		`ambassador_limit{limit="limits.connections"} 100`,
		`ambassador_limit_used{limit="limits.memory"} 4096`,
		`ambassador_log_lines_dropped_total 7`,
		`ambassador_otlp_dropped_total{signal="logs"} 5`,
		`ambassador_otlp_dropped_total{signal="traces"} 6`,
		`ambassador_build_info{version="v0.1.0"} 1`,
		`ambassador_addresses{endpoint="db1.internal:5432",health="healthy",upstream="orders_db"} 1`,
		`ambassador_addresses{endpoint="db2.internal:5432",health="healthy",upstream="orders_db"} 0`,
		`ambassador_breakers{endpoint="db2.internal:5432",state="open",upstream="orders_db"} 1`,
		`ambassador_preconnected{upstream="orders_db"} 2`,
		`ambassador_preconnect_total{result="hit",upstream="orders_db"} 1`,
		`ambassador_preconnect_total{result="stale",upstream="orders_db"} 0`,
		`ambassador_rules_total{listener="smtp",rule="#2",verdict="deny"} 1`,
		`ambassador_rules_total{listener="smtp",rule="api",verdict="allow"} 0`,
		`ambassador_rules_total{listener="smtp",rule="",verdict="none"} 0`,
	} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
}

// Clients choose the destinations of a dynamic upstream: they are no labels.
func TestDestinationsAreNoLabels(t *testing.T) {
	m := New("v0.1.0", "admin", "reload")
	dynamic := upstream.Status{Name: "net", Dynamic: true, Destinations: 3, Breakers: map[string]int{"closed": 2, "open": 1},
		Endpoints: []upstream.EndpointStatus{{Endpoint: "evil.example:443", Addresses: []upstream.AddressStatus{{Address: "192.0.2.1:443", Breaker: "open"}}}}}
	m.registry.MustRegister(&stateCollector{metrics: m, traffic: func() []l4.Traffic { return nil }, upstreams: func() []upstream.Status { return []upstream.Status{dynamic} }})
	page := cmdtest.OurLines(scrape(t, m))
	for _, line := range []string{`{endpoint="dynamic",state="closed",upstream="net"} 2`, `{endpoint="dynamic",state="half_open",upstream="net"} 0`, `{endpoint="dynamic",state="open",upstream="net"} 1`} {
		if !strings.Contains(page, "ambassador_breakers"+line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
	if strings.Contains(page, "evil") {
		t.Errorf("a destination is a label:\n%s", page)
	}
}

func TestHistogramsAreNativeToo(t *testing.T) {
	families, err := usedMetrics(t, nil).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range families {
		if f.GetName() != "ambassador_session_duration_seconds" && f.GetName() != "ambassador_establish_seconds" {
			continue
		}
		n++
		for _, series := range f.GetMetric() {
			if h := series.GetHistogram(); h.GetSampleCount() > 0 && len(h.GetPositiveSpan()) == 0 || len(h.GetBucket()) == 0 {
				t.Errorf("%s: %d native spans, %d classic buckets", f.GetName(), len(h.GetPositiveSpan()), len(h.GetBucket()))
			}
		}
	}
	if n != 2 {
		t.Errorf("%d histograms", n)
	}
}

func TestSeriesOfWhatIsGoneAreForgotten(t *testing.T) {
	traffic := someTraffic()
	m := usedMetrics(t, traffic)
	cfg := twoListeners()
	cfg.Listeners, cfg.Upstreams = cfg.Listeners[1:], cfg.Upstreams[1:]
	m.Applied(cfg, []Rule{{"smtp", "api", policy.Allow}, {"smtp", "#2", policy.Allow}})
	page := cmdtest.OurLines(scrape(t, m))
	for line := range strings.Lines(page) {
		live := strings.HasPrefix(line, "ambassador_bytes_total") || strings.HasPrefix(line, "ambassador_sessions_active")
		if strings.Contains(line, "orders_db") || strings.Contains(line, `"postgres"`) {
			if live {
				continue
			}
			t.Errorf("still there: %s", line)
		}
	}
	if !strings.Contains(page, `ambassador_sessions_active{listener="postgres",upstream="orders_db"} 1`) {
		t.Error("sessions that outlive the reload are not shown")
	}
	for _, line := range []string{`{listener="smtp",rule="api",verdict="allow"} 0`, `{listener="smtp",rule="#2",verdict="allow"} 0`} {
		if !strings.Contains(page, "ambassador_rules_total"+line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
	if strings.Contains(page, `verdict="deny"`) || strings.Contains(page, `rule=""`) {
		t.Errorf("rules that are gone are still there:\n%s", page)
	}
	traffic[0].Active = 0
	if page := cmdtest.OurLines(scrape(t, m)); strings.Contains(page, "orders_db") || !strings.Contains(page, `listener="smtp"`) {
		t.Errorf("after its last session:\n%s", page)
	}
}

// TestLateProbesBringNothingBack asserts that a probe which ends after its upstream was
// removed leaves no series: nothing would ever change or delete it.
func TestLateProbesBringNothingBack(t *testing.T) {
	m := usedMetrics(t, nil)
	cfg := twoListeners()
	cfg.Listeners, cfg.Upstreams = cfg.Listeners[1:], cfg.Upstreams[1:]
	m.Applied(cfg, nil)
	late := m.Observer().Upstream
	late.Probe("orders_db", true)
	late.Certificate("orders_db", cmdtest.Noon())
	late.Certificate("mail", cmdtest.Noon())
	page := cmdtest.OurLines(scrape(t, m))
	for _, name := range []string{"ambassador_probes_total", "ambassador_peer_certificate_not_after_timestamp_seconds"} {
		if strings.Contains(page, name+`{result="ok",upstream="orders_db"}`) || strings.Contains(page, name+`{upstream="orders_db"}`) || !strings.Contains(page, name+"{") {
			t.Errorf("%s after a late probe:\n%s", name, page)
		}
	}
}

// A reload that changes nothing resets no counter.
func TestReloadKeepsCounters(t *testing.T) {
	m := usedMetrics(t, someTraffic())
	m.Applied(twoListeners(), someRules())
	for _, line := range []string{`ambassador_sessions_opened_total{listener="postgres"} 1`, `ambassador_rules_total{listener="smtp",rule="#2",verdict="deny"} 1`, `ambassador_attempts_total{reason="refused",upstream="orders_db"} 1`} {
		if page := scrape(t, m); !strings.Contains(page, line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
}

// TestEveryReasonHasASeriesFromTheStart: rate() does not see the first event of a series
// that begins with it.
func TestEveryReasonHasASeriesFromTheStart(t *testing.T) {
	for _, r := range outcome.Reasons() {
		if len(stagesOf[r]) == 0 {
			t.Errorf("no series of the reason %s starts at zero: add its usual stage to stagesOf", r)
		}
	}
}

func TestExemplarsNameTheSession(t *testing.T) {
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	usedMetrics(t, nil).Handler().ServeHTTP(w, r)
	page := w.Body.String()
	for _, want := range []string{`upstream="orders_db",le="10.0"} 1 # {session_id="K7QX-40"} 1.2345`, `phase="tls",upstream="orders_db",le="0.005"} 1 # {session_id="K7QX-39"} 0.003`} {
		if !strings.Contains(page, want) || !strings.HasSuffix(page, "# EOF\n") {
			t.Errorf("lacks %s:\n%s", want, page)
		}
	}
}
