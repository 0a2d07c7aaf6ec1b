package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ambassador/l4"
)

// State is the state of the process, which is read when metrics are asked for.
type State struct {
	Ready bool
	// Hash identifies the configuration in use without its secrets; Source is "file" or
	// "flags". Hash is empty before the first configuration.
	Hash, Source string
	// ReloadOK is the result of the last reload or of the start; LoadedAt is when the
	// configuration in use came into use.
	ReloadOK bool
	LoadedAt time.Time
	Limits   []l4.LimitUse
	// DroppedLines counts log lines since the start.
	DroppedLines int64
	// DroppedOTLP counts sessions that no collector took, by signal: logs, traces.
	DroppedOTLP map[string]int64
}

// Watch adds the series of the process. It is called once.
func (m *Metrics) Watch(state func() State) {
	m.registry.MustRegister(&processCollector{version: m.version, state: state})
}

type processCollector struct {
	version string
	state   func() State
}

type processDescs struct {
	ready, reloaded, loaded, config, limit, used, dropped, unsent *prometheus.Desc
}

func newProcessDescs() processDescs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return processDescs{
		ready:    desc("ambassador_ready", "1 if the process is ready, as /readyz says it; else 0."),
		reloaded: desc("ambassador_config_last_reload_successful", "1 if the last reload, or the start where there was none, applied the configuration; 0 if the reload failed and the old configuration stays in use."),
		loaded:   desc("ambassador_config_last_reload_success_timestamp_seconds", "When the configuration in use came into use, in seconds since 1970."),
		config:   desc("ambassador_config_info", "The configuration in use; always 1. version is that of the program; hash is of the configuration without its secrets; source is file or flags.", "version", "hash", "source"),
		limit:    desc("ambassador_limit", "The limits of the process, by their key: limits.connections in sessions, limits.memory in bytes.", "limit"),
		used:     desc("ambassador_limit_used", "How much of each limit of the process is in use.", "limit"),
		unsent:   desc("ambassador_otlp_dropped_total", "Sessions dropped because the collector of tracing.otlp did not take them. signal is logs or traces.", "signal"),
		dropped:  desc("ambassador_log_lines_dropped_total", "Log lines dropped because the log was not read fast enough."),
	}
}

func (c *processCollector) Describe(ch chan<- *prometheus.Desc) {
	d := newProcessDescs()
	for _, desc := range []*prometheus.Desc{d.ready, d.reloaded, d.loaded, d.config, d.limit, d.used, d.dropped, d.unsent} {
		ch <- desc
	}
}

func (c *processCollector) Collect(ch chan<- prometheus.Metric) {
	d, s := newProcessDescs(), c.state()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	gauge(d.ready, number(s.Ready))
	ch <- prometheus.MustNewConstMetric(d.dropped, prometheus.CounterValue, float64(s.DroppedLines))
	for signal, n := range s.DroppedOTLP {
		ch <- prometheus.MustNewConstMetric(d.unsent, prometheus.CounterValue, float64(n), signal)
	}
	for _, l := range s.Limits {
		gauge(d.limit, float64(l.Max), l.Key)
		gauge(d.used, float64(l.Used), l.Key)
	}
	if s.Hash == "" {
		return
	}
	gauge(d.reloaded, number(s.ReloadOK))
	gauge(d.loaded, float64(s.LoadedAt.UnixMilli())/1e3)
	gauge(d.config, 1, c.version, s.Hash, s.Source)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
