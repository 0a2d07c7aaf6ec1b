package integration

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
)

// collector is an OpenTelemetry collector of a test. It reads what it gets as the official
// one does.
type collector struct {
	spans chan ptrace.Span
	logs  chan string // bodies
}

// handler takes every request.
func (c *collector) handler(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the process was killed
		}
		switch r.URL.Path {
		case "/v1/traces":
			q := ptraceotlp.NewExportRequest()
			if err := q.UnmarshalJSON(body); err != nil {
				t.Errorf("%v: %s", err, body)
			}
			spans := q.Traces().ResourceSpans().At(0).ScopeSpans().At(0).Spans()
			for i := range spans.Len() {
				c.spans <- spans.At(i)
			}
		case "/v1/logs":
			c.logs <- string(body)
		default:
			t.Errorf("a request to %s", r.URL.Path)
		}
		io.WriteString(w, "{}")
	})
}

func newCollector() *collector {
	return &collector{spans: make(chan ptrace.Span, 1000), logs: make(chan string, 100)}
}

// session waits for the spans of a session, of which there are n.
func (c *collector) session(t *testing.T, n int) (whole ptrace.Span, phases []ptrace.Span) {
	t.Helper()
	for i := range n {
		select {
		case s := <-c.spans:
			if i == 0 {
				whole = s
				continue
			}
			phases = append(phases, s)
		case <-time.After(patience):
			t.Fatalf("%d spans of %d came", i, n)
		}
	}
	return whole, phases
}

// none fails if spans wait to be looked at.
func (c *collector) none(t *testing.T) {
	t.Helper()
	select {
	case s := <-c.spans:
		t.Errorf("a span more: %s", s.Name())
	default:
	}
}

// popOverTLS is a POP3 server with STARTTLS, which expects a PROXY header, and echoes once
// TLS has begun. Each step takes a while. The times just before it agrees to STARTTLS, and
// before it begins TLS, go to answered, if that has room.
func popOverTLS(t *testing.T, cfg *tls.Config, answered chan<- [2]time.Time) *server {
	const while = 20 * time.Millisecond
	return startServer(t, nil, func(s *server, c duplex) {
		in := bufio.NewReader(c)
		if header, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(header, "PROXY ") {
			s.report("no header: " + header)
			return
		}
		s.pause(while)
		io.WriteString(c, "+OK\r\n")
		if said, err := in.ReadString('\n'); err != nil || said != "STLS\r\n" {
			return
		}
		s.pause(while)
		agreed := time.Now()
		io.WriteString(c, "+OK\r\n")
		s.pause(while)
		select {
		case answered <- [2]time.Time{agreed, time.Now()}:
		default:
		}
		over := tls.Server(c, cfg)
		if over.Handshake() == nil {
			echo(s, over)
		}
	})
}

const (
	callersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	callersSpan  = "00f067aa0ba902b7"
)

// tracedAmbassador serves CONNECT with the given collector and share of sampled sessions.
func tracedAmbassador(t *testing.T, keys *pki, collector, more string) *ambassador {
	return start(t, "run", "-c", writeFile(t, "ambassador.yaml", fmt.Sprintf(`
tracing: {otlp: %q, %s}
identities: {app: {files: {cert: %s, key: %s, ca: %s}}}
upstreams:
  mail: {dynamic: true, proxy_protocol: v1, starttls: pop3, tls: {identity: app}, connect: {attempts: 1}}
listeners:
  in: {listen: "127.0.0.1:0", context: true, http_connect: {}, rules: [{ip: [127.0.0.0/8, "::1/128"], upstream: mail}]}
`, collector, more, keys.file("client.crt"), keys.file("client.key"), keys.file("ca.crt"))))
}

// connectTo asks for a destination with further headers, talks to the server if it is
// there, and ends. It returns the client's address.
func (a *ambassador) connectTo(to, headers string) (client string) {
	a.t.Helper()
	c := a.connect("in")
	defer c.Close()
	fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n%[2]s\r\n", to, headers)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		a.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		if greeting, err := in.ReadString('\n'); err != nil || greeting != "+OK\r\n" {
			a.t.Errorf("%q, %v", greeting, err)
		}
		io.WriteString(c, "hello\n")
		if said, err := in.ReadString('\n'); err != nil || said != "hello\n" {
			a.t.Errorf("%q, %v", said, err)
		}
	}
	return c.LocalAddr().String()
}

// idsOf are trace_id and span_id of the log's record of a client's session.
func (a *ambassador) idsOf(client string) (trace, span string) {
	a.t.Helper()
	m, err := a.stderr.awaitAfter(0, regexp.MustCompile(`(?m)^.*"client":"`+regexp.QuoteMeta(client)+`".*"reason":.*$`), patience, a.exited)
	if err != nil {
		a.t.Fatal(err)
	}
	var ids struct {
		Trace string `json:"trace_id"`
		Span  string `json:"span_id"`
	}
	if err := json.Unmarshal([]byte(m[0]), &ids); err != nil {
		a.t.Fatal(err)
	}
	return ids.Trace, ids.Span
}

// stop ends the ambassador, which first sends the last spans.
func (a *ambassador) stop() {
	a.t.Helper()
	a.signal(syscall.SIGTERM)
	a.ended(0)
}

func attribute(a pcommon.Map, key string) string {
	v, _ := a.Get("ambassador." + key)
	return v.AsString()
}

// TestSpansReachACollector proves that a session through STARTTLS and TLS becomes a span
// with a child for each phase, whose times nest; that it joins the trace of its client;
// that record and log meet it; and that a refused dial has the error.
func TestSpansReachACollector(t *testing.T) {
	t.Parallel()
	keys, got := newPKI(t), newCollector()
	web := httptest.NewServer(got.handler(t))
	defer web.Close()
	answered := make(chan [2]time.Time, 1)
	server := popOverTLS(t, keys.mtls(t), answered)
	a := tracedAmbassador(t, keys, web.URL, "sample: 0, logs: true")

	client := a.connectTo("localhost:"+hostPort(server.addr), "traceparent: 00-"+callersTrace+"-"+callersSpan+"-01\r\nAmbassador-Context: tag=job-7\r\n")
	trace, span := a.idsOf(client)
	whole, phases := got.session(t, 7)
	if whole.Name() != "session in" || whole.TraceID().String() != callersTrace || whole.ParentSpanID().String() != callersSpan || trace != callersTrace || whole.SpanID().String() != span {
		t.Errorf("%s, trace %s, parent %s, span %s; the record has %s %s", whole.Name(), whole.TraceID(), whole.ParentSpanID(), whole.SpanID(), trace, span)
	}
	for key, want := range map[string]string{"reason": "closed", "tag": "job-7", "listener": "in", "upstream": "mail", "destination": "localhost:" + hostPort(server.addr), "client": client, "bytes_up": "6"} {
		if got := attribute(whole.Attributes(), key); got != want {
			t.Errorf("%s of the session is %q, want %q", key, got, want)
		}
	}
	// Each phase ends after the server's answer, however busy the machine is.
	times := <-answered
	answers := map[string]time.Time{"starttls": times[0], "tls": times[1]}
	names, last := "", whole.StartTimestamp()
	for _, p := range phases {
		names += p.Name() + " "
		if p.ParentSpanID() != whole.SpanID() || p.TraceID() != whole.TraceID() || p.StartTimestamp() < last || p.EndTimestamp() < p.StartTimestamp() || p.EndTimestamp() > whole.EndTimestamp() {
			t.Errorf("%s from %d to %d, after one that ends at %d, of a session from %d to %d", p.Name(), p.StartTimestamp(), p.EndTimestamp(), last, whole.StartTimestamp(), whole.EndTimestamp())
		}
		last = p.EndTimestamp()
		if at := pcommon.NewTimestampFromTime(answers[p.Name()]); !answers[p.Name()].IsZero() && (last < at || p.Name() == "starttls" && p.StartTimestamp() > at) {
			t.Errorf("%s from %d to %d; the server answered at %d", p.Name(), p.StartTimestamp(), last, at)
		}
	}
	if names != "dns dial proxy starttls tls relay " {
		t.Errorf("phases %s", names)
	}
	if body := <-got.logs; !strings.Contains(body, `"traceId":"`+callersTrace+`","spanId":"`+span+`"`) {
		t.Errorf("the log record: %s", body)
	}

	dead := closedPort(t).addr
	a.connectTo(dead, "Ambassador-Context: traceparent=00-"+callersTrace+"-"+callersSpan+"-01\r\n")
	whole, phases = got.session(t, 2)
	for _, s := range []ptrace.Span{whole, phases[0]} {
		if s.Status().Code() != ptrace.StatusCodeError || !strings.HasPrefix(s.Status().Message(), "refused: ") || attribute(s.Attributes(), "reason") != "refused" || attribute(s.Attributes(), "address") != dead {
			t.Errorf("%s: status %v %q, %v", s.Name(), s.Status().Code(), s.Status().Message(), s.Attributes().AsRaw())
		}
	}
	if phases[0].Name() != "dial" {
		t.Errorf("the phase that failed is %s", phases[0].Name())
	}

	// Not asked for: no span. The record has the IDs of the trace that the client names.
	for header, want := range map[string]string{
		"": "",
		"traceparent: 00-" + callersTrace + "-" + callersSpan + "-00\r\n":                     callersTrace,
		"traceparent: ff-" + callersTrace + "-" + callersSpan + "-01\r\n":                     "",
		"Ambassador-Context: traceparent=00-" + callersTrace + "-0000000000000000-01\r\n":     "",
		"Ambassador-Context: traceparent=" + strings.ToUpper(callersTrace) + ",tag=job-8\r\n": "",
	} {
		if trace, _ := a.idsOf(a.connectTo(server.addr, header)); trace != want {
			t.Errorf("%q: the record has the trace %q, want %q", header, trace, want)
		}
	}
	a.stop()
	got.none(t)
}

// TestEverySessionIsSampled proves that with sample: 1 sessions begin traces of their own,
// those too that end while their client greets.
func TestEverySessionIsSampled(t *testing.T) {
	t.Parallel()
	keys, got := newPKI(t), newCollector()
	web := httptest.NewServer(got.handler(t))
	defer web.Close()
	server := popOverTLS(t, keys.mtls(t), nil)
	a := tracedAmbassador(t, keys, web.URL, "sample: 1")
	trace, _ := a.idsOf(a.connectTo(server.addr, ""))
	whole, phases := got.session(t, 6)
	if whole.TraceID().String() != trace || !whole.ParentSpanID().IsEmpty() || phases[0].Name() != "dial" {
		t.Errorf("trace %s of the span, %s of the record; parent %s; %s first", whole.TraceID(), trace, whole.ParentSpanID(), phases[0].Name())
	}
	c := a.connect("in")
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	io.Copy(io.Discard, c)
	if whole, _ = got.session(t, 1); attribute(whole.Attributes(), "reason") != "bad_greeting" || whole.TraceID().String() == trace {
		t.Errorf("%v, trace %s", whole.Attributes().AsRaw(), whole.TraceID())
	}
	a.connectTo(server.addr, "traceparent: 00-"+callersTrace+"-"+callersSpan+"-00\r\n") // its trace is not sampled
	a.stop()
	got.none(t)
}

// TestCollectorOverTLS proves that the certificate of an https collector is verified by
// the system's roots, which SSL_CERT_FILE names, in a sandboxed process too.
func TestCollectorOverTLS(t *testing.T) {
	keys := newPKI(t)
	server := popOverTLS(t, keys.mtls(t), nil)
	for _, roots := range []string{"ca.crt", "other.crt"} {
		got := newCollector()
		web := httptest.NewUnstartedServer(got.handler(t))
		cfg, err := keys.server("server", "")
		if err != nil {
			t.Fatal(err)
		}
		web.TLS = cfg
		web.Config.ErrorLog = log.New(io.Discard, "", 0)
		web.StartTLS()
		t.Setenv("SSL_CERT_FILE", keys.file(roots))
		a := tracedAmbassador(t, keys, strings.Replace(web.URL, "127.0.0.1", "localhost", 1), "sample: 1")
		a.connectTo(server.addr, "")
		if roots == "ca.crt" {
			got.session(t, 6)
		} else if _, err := a.stderr.awaitAfter(0, regexp.MustCompile(`the collector of tracing.otlp does not take the traces.*certificate signed by unknown authority`), patience, a.exited); err != nil {
			t.Error(err)
		}
		a.stop()
		web.Close()
		got.none(t)
	}
}
