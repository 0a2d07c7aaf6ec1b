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
	"ambassador/policy"
)

// usedMetrics has had one event of every kind.
func usedMetrics(t *testing.T, traffic []l4.Traffic) *Metrics {
	t.Helper()
	m := New("v0.1.0", "admin", "reload")
	m.registry.MustRegister(&stateCollector{metrics: m, traffic: func() []l4.Traffic { return traffic },
		upstreams:  func() []l4.UpstreamStatus { return cmdtest.NewFakeServer().Upstreams },
		identities: func() []certs.Status { return cmdtest.NewFakeServer().Identities }})
	m.Applied(twoListeners(), someRules())
	o := m.Observer()
	o.Opened("postgres")
	o.AcceptPaused("postgres")
	o.Panicked(l4.PartProber)
	o.Preconnect("orders_db", l4.PreconnectHit)
	o.Attempt("orders_db", outcome.Refused)
	o.Ruled("smtp", "#2", policy.Deny)
	for _, p := range []l4.Phase{l4.PhaseDNS, l4.PhaseDial, l4.PhaseProxy, l4.PhaseStartTLS, l4.PhaseTLS, l4.PhaseTotal} {
		o.Phase("orders_db", p, 3*time.Millisecond)
	}
	o.Ended(&cmdtest.NewFakeServer().Over[0])
	m.Reloaded(true)
	return m
}

func twoListeners() l4.Config {
	return l4.Config{
		Listeners: []l4.ListenerConfig{{Name: "postgres", Upstream: "orders_db"}, {Name: "smtp", Upstream: "mail"}},
		Upstreams: []l4.UpstreamConfig{{Name: "orders_db", Preconnect: l4.PreconnectConfig{Connections: 2}}, {Name: "mail"}},
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
ambassador_addresses gauge
  Addresses that an endpoint resolves to, by their health.
  endpoint: db1.internal:5432 db2.internal:5432 mail.internal:25
  health: healthy unhealthy unknown
  upstream: orders_db mail
ambassador_attempts_total counter
  Attempts to connect to the upstream, health probes not among them, by how they went; ok is success.
  reason: ok refused
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
ambassador_establish_seconds histogram
  Time that a phase of connecting to the upstream took, where it went well and was not a health probe's, in seconds; total is that of a session.
  phase: dial dns proxy starttls tls total
  upstream: orders_db
ambassador_identity_not_after_timestamp_seconds gauge
  When the certificate in use expires, in seconds since 1970.
  identity: orders
ambassador_identity_renewals_total counter
  Certificates loaded or renewed; error is one that could not be used.
  identity: orders
  result: error ok
ambassador_panics_total counter
  Panics that the process has survived, by the part that they were in. Each is a bug; the log has its stack.
  part: admin files issuer preconnect prober relay reload resolver roots session source upstream
ambassador_preconnect_total counter
  Sessions that asked for a ready connection: hit is one that got it, miss one that did not; stale is one that was found dead.
  result: hit miss stale
  upstream: orders_db
ambassador_preconnected gauge
  Connections that are ready for a session.
  upstream: mail orders_db
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
  listener: postgres
  upstream: orders_db
ambassador_sessions_active gauge
  Sessions that are open.
  listener: postgres smtp
  upstream: orders_db mail
ambassador_sessions_opened_total counter
  Connections accepted.
  listener: postgres smtp
ambassador_sessions_total counter
  Sessions ended, by the stage they reached and the reason they ended for.
  listener: postgres
  reason: upstream_tls_rejected
  stage: tls
  upstream: orders_db
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
	dynamic := l4.UpstreamStatus{Name: "net", Dynamic: true, Destinations: 3, Breakers: map[string]int{"closed": 2, "open": 1},
		Endpoints: []l4.EndpointStatus{{Endpoint: "evil.example:443", Addresses: []l4.AddressStatus{{Address: "192.0.2.1:443", Breaker: "open"}}}}}
	m.registry.MustRegister(&stateCollector{metrics: m, traffic: func() []l4.Traffic { return nil }, upstreams: func() []l4.UpstreamStatus { return []l4.UpstreamStatus{dynamic} }})
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
		if h := f.GetMetric()[0].GetHistogram(); len(h.GetPositiveSpan()) == 0 || len(h.GetBucket()) == 0 {
			t.Errorf("%s: %d native spans, %d classic buckets", f.GetName(), len(h.GetPositiveSpan()), len(h.GetBucket()))
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
