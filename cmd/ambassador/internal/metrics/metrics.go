package metrics

import (
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"ambassador/certs"
	"ambassador/l4"
	"ambassador/l4/outcome"
	"ambassador/l4/upstream"
	"ambassador/policy"
)

// Metrics are the series of /metrics, in a registry of their own. Label values
// come from the configuration and from closed lists, so that their number is
// bounded whatever clients do.
type Metrics struct {
	// Static after construction.
	version     string
	registry    *prometheus.Registry
	opened      *prometheus.CounterVec
	ended       *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	establish   *prometheus.HistogramVec
	attempts    *prometheus.CounterVec
	reloads     *prometheus.CounterVec
	pauses      *prometheus.CounterVec
	preconnects *prometheus.CounterVec
	rules       *prometheus.CounterVec
	panics      *prometheus.CounterVec
	probes      *prometheus.CounterVec
	peers       *prometheus.GaugeVec
	upgraded    *prometheus.CounterVec

	before    atomic.Pointer[map[string]map[string]*dto.Metric] // what the program before has counted and only it can; nil: nothing
	serving   atomic.Pointer[servingNames]                      // nil before the first applied
	exemplars exemplars
}

// servingNames are the label values of the configuration in use.
type servingNames struct {
	listeners []string
	upstreams map[string]bool
	pairs     []listenerUpstream
	rules     map[Rule]bool
}

type listenerUpstream struct{ listener, upstream string }

// Rule is a rule of a listener, or, without a name, its sessions that no rule
// matches.
type Rule struct {
	Listener, Rule string
	Verdict        policy.Verdict
}

// New makes the series that follow from events, and those of Go and the
// process. Parts are those of this program that survive a panic, beside those of l4 and
// certs. Attach adds the series that are read from a server.
func New(version string, parts ...string) *Metrics {
	m := &Metrics{
		version:     version,
		registry:    prometheus.NewRegistry(),
		opened:      newCounter("ambassador_sessions_opened_total", "Connections accepted.", "listener"),
		ended:       newCounter("ambassador_sessions_total", "Sessions ended, by the stage they reached and the reason they ended for.", "listener", "upstream", "stage", "reason"),
		duration:    newHistogram("ambassador_session_duration_seconds", "Time from accept to the end of a session, in seconds.", sessionBuckets(), "listener", "upstream"),
		establish:   newHistogram("ambassador_establish_seconds", "Time that a phase of connecting to the upstream took, where it went well and was not a health probe's, in seconds; total is that of a session.", establishBuckets(), "upstream", "phase"),
		attempts:    newCounter("ambassador_attempts_total", "Attempts to connect to the upstream, health probes not among them, by how they went; ok is success.", "upstream", "reason"),
		reloads:     newCounter("ambassador_reloads_total", "Reloads of the configuration.", "result"),
		preconnects: newCounter("ambassador_preconnect_total", "Sessions that asked for a ready connection: hit is one that got it, miss one that did not; stale is one that was found dead.", "upstream", "result"),
		rules:       newCounter("ambassador_rules_total", "Sessions that a rule of the listener has decided: allow, deny, or would_deny, which is allowed and reported; none, without a rule, is that none matched.", "listener", "rule", "verdict"),
		panics:      newCounter("ambassador_panics_total", "Panics that the process has survived, by the part that they were in. Each is a bug; the log has its stack.", "part"),
		probes:      newCounter("ambassador_probes_total", "Health probes, by their result; one that our own side prevented is not counted.", "upstream", "result"),
		peers:       newGauge("ambassador_peer_certificate_not_after_timestamp_seconds", "When the certificate expires that a server of the upstream showed last, in seconds since 1970; dynamic upstreams have none.", "upstream"),
		upgraded:    newCounter("ambassador_upgrade_sessions_total", "Sessions that were open at an upgrade in place: carried ones go on, ended ones could not be carried over.", "result"),
		pauses:      newCounter("ambassador_accept_pauses_total", "Pauses in accepting because descriptors or memory ran out.", "listener"),
	}
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ambassador_build_info", Help: "The version that runs; always 1."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	m.reloads.WithLabelValues("ok")
	m.reloads.WithLabelValues("error")
	m.Upgraded(0, 0)
	for _, part := range slices.Concat(l4.Parts(), certs.Parts(), parts) {
		m.panics.WithLabelValues(part)
	}
	m.registry.MustRegister(info, m.opened, m.ended, m.duration, m.establish, m.attempts, m.reloads, m.pauses, m.preconnects, m.rules, m.panics, m.probes, m.peers, m.upgraded,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func newCounter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func newGauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

// newHistogram is a native histogram with classic buckets beside it: only the
// protobuf format carries native ones. A factor of 1.1 is a resolution of 10 %,
// 160 buckets bound its size, and it is reset at most once an hour to keep to
// that.
func newHistogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour}, labels)
}

// establishBuckets span a connection on the same host to a connect.timeout.
func establishBuckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

// sessionBuckets span a single query to a connection that lives for days.
func sessionBuckets() []float64 {
	return []float64{.01, .1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600}
}

// Observer feeds the metrics. It sets every field.
func (m *Metrics) Observer() l4.Observer {
	return l4.Observer{
		Opened: func(listener string) { m.opened.WithLabelValues(listener).Inc() },
		Ended: func(r *outcome.Record) {
			m.ended.WithLabelValues(r.Listener, r.Upstream, string(r.Stage), string(r.Reason)).Inc()
			m.exemplars.observe(m.duration.WithLabelValues(r.Listener, r.Upstream), time.Now(), time.Duration(r.Duration), r.ID)
		},
		Upstream: upstream.Observer{
			Attempt: func(upstream string, reason outcome.Reason) {
				m.attempts.WithLabelValues(upstream, string(reason)).Inc()
			},
			Phase: func(upstream, session string, p upstream.Phase, d time.Duration) {
				m.exemplars.observe(m.establish.WithLabelValues(upstream, string(p)), time.Now(), d, session)
			},
			Preconnect: func(upstream string, result upstream.PreconnectResult) {
				m.preconnects.WithLabelValues(upstream, string(result)).Inc()
			},
			Probe: func(upstream string, ok bool) {
				m.probes.WithLabelValues(upstream, resultOf(ok)).Inc()
				m.unlessServed(upstream, m.probes.MetricVec)
			},
			Certificate: func(upstream string, notAfter time.Time) {
				m.peers.WithLabelValues(upstream).Set(float64(notAfter.Unix()))
				m.unlessServed(upstream, m.peers.MetricVec)
			},
		},
		Ruled: func(listener, rule string, verdict policy.Verdict) {
			m.rules.WithLabelValues(listener, rule, string(verdict)).Inc()
		},
		AcceptPaused: func(listener string) { m.pauses.WithLabelValues(listener).Inc() },
		Panicked:     m.Panicked,
	}
}

// Attach adds the series that are read from the server and from the identities
// when they are asked for. It is called once. identities may be nil.
func (m *Metrics) Attach(server *l4.Server, identities func() []certs.Status) {
	m.registry.MustRegister(&stateCollector{metrics: m, traffic: server.Traffic, upstreams: server.Upstreams, identities: identities},
		&engineCollector{server})
}

// Applied says that cfg is in use now: series of its listeners, rules and upstreams
// start at zero, so that the first event is a rise, and those of others go.
func (m *Metrics) Applied(cfg l4.Config, rules []Rule) {
	names := &servingNames{upstreams: map[string]bool{}, rules: map[Rule]bool{}}
	for _, l := range cfg.Listeners {
		names.listeners = append(names.listeners, l.Name)
		names.pairs = append(names.pairs, listenerUpstream{l.Name, l.Upstream})
		m.startBefore(l.Name)
		if l.Rules != nil {
			for _, upstream := range l.Rules.Upstreams() {
				names.pairs = append(names.pairs, listenerUpstream{l.Name, upstream})
			}
		}
		m.opened.WithLabelValues(l.Name)
		m.pauses.WithLabelValues(l.Name)
	}
	for _, r := range rules {
		names.rules[r] = true
		m.rules.WithLabelValues(r.Listener, r.Rule, string(r.Verdict))
	}
	for _, u := range cfg.Upstreams {
		names.upstreams[u.Name] = true
		m.startUpstream(u)
	}
	for _, p := range names.pairs {
		m.startPair(p)
	}
	old := m.serving.Swap(names)
	if old == nil {
		return
	}
	for _, name := range old.listeners {
		if !slices.Contains(names.listeners, name) {
			m.forget("listener", name)
		}
	}
	for name := range old.upstreams {
		if !names.upstreams[name] {
			m.forget("upstream", name)
		}
	}
	for r := range old.rules {
		if !names.rules[r] {
			m.rules.DeleteLabelValues(r.Listener, r.Rule, string(r.Verdict))
		}
	}
}

// forget deletes the series of a listener or an upstream that is gone. Sessions
// that outlive it bring some back when they end: not more than there were names.
func (m *Metrics) forget(label, name string) {
	m.exemplars.forget()
	match := prometheus.Labels{label: name}
	m.opened.DeletePartialMatch(match)
	m.ended.DeletePartialMatch(match)
	m.duration.DeletePartialMatch(match)
	m.establish.DeletePartialMatch(match)
	m.attempts.DeletePartialMatch(match)
	m.pauses.DeletePartialMatch(match)
	m.preconnects.DeletePartialMatch(match)
	m.probes.DeletePartialMatch(match)
	m.peers.DeletePartialMatch(match)
}

// unlessServed deletes the series that an event has just brought back, if the upstream is
// gone: a probe may end after the reload, and no later one would ever change its series.
func (m *Metrics) unlessServed(upstream string, vec *prometheus.MetricVec) {
	if !m.serves(upstream) {
		vec.DeletePartialMatch(prometheus.Labels{"upstream": upstream})
	}
}

// served says whether the pair is worth a series: it is configured, or has
// sessions that outlived a reload.
func (m *Metrics) served(t l4.Traffic) bool {
	names := m.serving.Load()
	return names == nil || t.Active > 0 || slices.Contains(names.pairs, listenerUpstream{t.Listener, t.Upstream})
}

// serves says whether the upstream is configured.
func (m *Metrics) serves(upstream string) bool {
	names := m.serving.Load()
	return names == nil || names.upstreams[upstream]
}

// Reloaded counts a reload.
func (m *Metrics) Reloaded(ok bool) {
	m.reloads.WithLabelValues(resultOf(ok)).Inc()
}

func resultOf(ok bool) string {
	if ok {
		return "ok"
	}
	return "error"
}

// Panicked counts a panic of a part: one of l4, of certs or of those given to New.
func (m *Metrics) Panicked(part string) { m.panics.WithLabelValues(part).Inc() }

// Handler serves the metrics in the format that the scraper asks for. The caller
// bounds how many scrapes there are at a time.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(prometheus.GathererFunc(m.gather), promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// stateCollector reads what others count anyway.
type stateCollector struct {
	metrics    *Metrics
	traffic    func() []l4.Traffic
	upstreams  func() []upstream.Status
	identities func() []certs.Status
}

// stateDescs are the series of stateCollector.
type stateDescs struct {
	active, bytes, addresses, sessions, breakers, preconnected, notAfter, renewals *prometheus.Desc
}

func newStateDescs() stateDescs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return stateDescs{
		active:       desc("ambassador_sessions_active", "Sessions that are open.", "listener", "upstream"),
		bytes:        desc("ambassador_bytes_total", "Bytes of the application that were passed on, those of open sessions included; up is towards the upstream.", "listener", "upstream", "direction"),
		addresses:    desc("ambassador_addresses", "Addresses that an endpoint resolves to, by their health.", "upstream", "endpoint", "health"),
		sessions:     desc("ambassador_address_sessions", "Connections to the addresses of an endpoint that are open or being made; preconnected ones are not among them.", "upstream", "endpoint"),
		breakers:     desc("ambassador_breakers", "Breakers of an endpoint's addresses, or of a dynamic upstream's destinations (endpoint dynamic), by their state; closed lets traffic pass.", "upstream", "endpoint", "state"),
		preconnected: desc("ambassador_preconnected", "Connections that are ready for a session.", "upstream"),
		notAfter:     desc("ambassador_identity_not_after_timestamp_seconds", "When the certificate in use expires, in seconds since 1970.", "identity"),
		renewals:     desc("ambassador_identity_renewals_total", "Certificates loaded or renewed; error is one that could not be used.", "identity", "result"),
	}
}

func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	d := newStateDescs()
	ch <- d.active
	ch <- d.bytes
	ch <- d.addresses
	ch <- d.sessions
	ch <- d.breakers
	ch <- d.preconnected
	ch <- d.notAfter
	ch <- d.renewals
}

func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	d := newStateDescs()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	count := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, labels...)
	}
	for _, t := range c.traffic() {
		if !c.metrics.served(t) {
			continue
		}
		gauge(d.active, float64(t.Active), t.Listener, t.Upstream)
		count(d.bytes, float64(t.Up), t.Listener, t.Upstream, "up")
		count(d.bytes, float64(t.Down), t.Listener, t.Upstream, "down")
	}
	for _, u := range c.upstreams() {
		if c.metrics.serves(u.Name) {
			collectAddresses(d, u, gauge)
		}
	}
	if c.identities == nil {
		return
	}
	for _, id := range c.identities() {
		if !id.NotAfter.IsZero() {
			gauge(d.notAfter, float64(id.NotAfter.Unix()), id.Name)
		}
		count(d.renewals, float64(id.Loads), id.Name, "ok")
		count(d.renewals, float64(id.Failures), id.Name, "error")
	}
}

// collectAddresses tells of an upstream's addresses. Every state has a series, so
// that an empty one is zero and not missing.
func collectAddresses(d stateDescs, u upstream.Status, gauge func(*prometheus.Desc, float64, ...string)) {
	if u.Dynamic { // its destinations are the clients', and have no bound
		for _, s := range []policy.BreakerState{policy.Closed, policy.HalfOpen, policy.Open} {
			gauge(d.breakers, float64(u.Breakers[s.String()]), u.Name, "dynamic", s.String())
		}
		return
	}
	preconnects := 0
	for _, e := range u.Endpoints {
		health, breaker, sessions := map[policy.Health]int{}, map[string]int{}, 0
		for _, a := range e.Addresses {
			health[a.Health]++
			breaker[a.Breaker]++
			preconnects += a.Preconnected
			sessions += a.Sessions
		}
		gauge(d.sessions, float64(sessions), u.Name, e.Endpoint)
		for _, h := range []policy.Health{policy.Healthy, policy.Unhealthy, policy.Unknown} {
			gauge(d.addresses, float64(health[h]), u.Name, e.Endpoint, string(h))
		}
		for _, s := range []policy.BreakerState{policy.Closed, policy.HalfOpen, policy.Open} {
			gauge(d.breakers, float64(breaker[s.String()]), u.Name, e.Endpoint, s.String())
		}
	}
	gauge(d.preconnected, float64(preconnects), u.Name)
}
