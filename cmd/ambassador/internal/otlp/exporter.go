package otlp

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ambassador/certs"
	"ambassador/l4/outcome"
)

const (
	// maxQueue and maxQueueBytes bound the sessions that wait. A record takes about 2 KiB,
	// and one with many attempts to connect more than 50.
	maxQueue      = 2048
	maxQueueBytes = 16 << 20
	// maxBatch and maxBody bound a request, in sessions and in bytes: proxies before a
	// collector often take a few MiB. batchTime is how long a session waits for others.
	maxBatch  = 512
	maxBody   = 2 << 20
	batchTime = time.Second
	// postTimeout bounds one request, giveUp all repetitions of it.
	postTimeout = 10 * time.Second
	// pingAfter is how long a connection is silent before it is asked whether it lives: a
	// collector may have gone without a word.
	pingAfter = 15 * time.Second
	giveUp    = time.Minute
	// The back-off doubles from firstBackoff to maxBackoff.
	firstBackoff = time.Second
	maxBackoff   = 15 * time.Second
	// FlushTimeout bounds what the end of the process waits for the last sessions.
	FlushTimeout = 2 * time.Second
	// flushTick is how often Flush checks.
	flushTick = 10 * time.Millisecond
)

// The signals, as metrics name them.
const (
	Logs   = "logs"
	Traces = "traces"
)

// Exporter sends sessions. Set tells it where to.
type Exporter struct {
	client  *http.Client
	signals []*signal // of Logs and of Traces

	countUnsent atomic.Bool
}

// New makes an exporter that sends nothing before Set. headers is the value of
// OTEL_EXPORTER_OTLP_HEADERS: "KEY=VALUE,…", values percent-encoded.
func New(log *slog.Logger, version, headers string) *Exporter {
	host, _ := os.Hostname() // an empty name is sent as such
	dialer := net.Dialer{Timeout: postTimeout}
	dialer.SetMultipathTCP(false)
	e := &Exporter{client: &http.Client{Timeout: postTimeout, Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConns: 2, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: postTimeout}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	from := origin{version: version, host: host}
	add := func(name string, encode func([]*outcome.Record) any) {
		e.signals = append(e.signals, &signal{name: name, log: log, exporter: e, headers: headersOf(headers, version), queue: make(chan *outcome.Record, maxQueue), encode: encode})
	}
	add(Logs, func(sessions []*outcome.Record) any { return from.logs(sessions) })
	add(Traces, func(sessions []*outcome.Record) any { return from.traces(sessions) })
	return e
}

// headersOf returns the headers of requests.
func headersOf(given, version string) http.Header {
	out := http.Header{}
	for pair := range strings.SplitSeq(given, ",") {
		key, v, ok := strings.Cut(pair, "=")
		if v, err := url.PathUnescape(strings.TrimSpace(v)); ok && err == nil {
			out.Set(strings.TrimSpace(key), v)
		}
	}
	out.Set("Content-Type", "application/json")
	out.Set("User-Agent", "ambassador/"+version)
	return out
}

// Set says where sessions go from now on: spans to base/v1/traces and, if logs is true,
// records to base/v1/logs. Base is the URL of a collector; an empty one ends it.
func (e *Exporter) Set(base string, logs bool) {
	for _, s := range e.signals {
		to, err := url.JoinPath(base, "v1", s.name)
		if base == "" || err != nil || s.name == Logs && !logs { // the configuration was checked
			s.url.Store(nil)
			continue
		}
		s.url.Store(&to)
	}
}

// Session sends an ended session, later. It does not wait: the session is dropped if too
// many wait already.
func (e *Exporter) Session(r *outcome.Record) {
	for _, s := range e.signals {
		if s.url.Load() != nil && (s.name == Logs || r.Trace != nil && r.Sampled) {
			s.add(r)
		}
	}
}

// Dropped is how many sessions of a signal were dropped since the start.
func (e *Exporter) Dropped() map[string]int64 {
	out := map[string]int64{}
	for _, s := range e.signals {
		out[s.name] = s.dropped.Load()
		if e.countUnsent.Load() {
			out[s.name] += s.unsent.Load()
		}
	}
	return out
}

// CountUnsent says whether Dropped counts the sessions that are not sent yet.
func (e *Exporter) CountUnsent(on bool) { e.countUnsent.Store(on) }

// Flush waits until Run has sent all sessions, at most FlushTimeout.
func (e *Exporter) Flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, FlushTimeout)
	defer cancel()
	for slices.ContainsFunc(e.signals, func(s *signal) bool { return s.unsent.Load() > 0 }) {
		if certs.Pause(ctx, flushTick) != nil {
			return
		}
	}
}

// Run sends until ctx ends, and then what is left, at most FlushTimeout long.
func (e *Exporter) Run(ctx context.Context) {
	within, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(FlushTimeout, cancel)
		context.AfterFunc(within, func() { timer.Stop() })
	})()
	var work sync.WaitGroup
	for _, s := range e.signals {
		work.Go(func() { s.run(ctx, within) })
	}
	work.Wait()
}
