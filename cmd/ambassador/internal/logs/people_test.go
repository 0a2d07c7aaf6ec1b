package logs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/outcome"
)

func TestTerminalOfTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		env  string
		want terminal
	}{
		{"TERM=xterm LANG=de_DE.UTF-8", terminal{color: true}},
		{"TERM=xterm LANG=C.utf8", terminal{color: true}},
		{"TERM=xterm LANG=C.UTF-8 NO_COLOR=1", terminal{}},
		{"TERM=dumb LANG=C.UTF-8", terminal{}},
		{"LANG=C.UTF-8", terminal{}},
		{"TERM=xterm LANG=en_US.ISO-8859-1", terminal{color: true, ascii: true}},
		{"TERM=xterm LANG=C.UTF-8 LC_ALL=C", terminal{color: true, ascii: true}},
		{"TERM=xterm LANG=C.UTF-8 LC_CTYPE=POSIX", terminal{color: true, ascii: true}},
		{"TERM=xterm LANG=C LC_CTYPE=C.UTF-8", terminal{color: true}},
		{"TERM=xterm", terminal{color: true, ascii: true}},
	} {
		env := map[string]string{}
		for pair := range strings.FieldsSeq(c.env) {
			key, value, _ := strings.Cut(pair, "=")
			env[key] = value
		}
		if got := terminalOf(func(key string) (string, bool) { v, ok := env[key]; return v, ok }); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.env, got, c.want)
		}
	}
}

func TestLinesOfSessionsForPeople(t *testing.T) {
	closed := func(edit func(*outcome.Record)) *outcome.Record {
		r := &outcome.Record{ID: "AB-1", Listener: "postgres", Client: "127.0.0.1:38354", Upstream: "orders_db", Endpoint: "db.internal:5432", Address: "10.0.0.7:5432",
			Stage: outcome.StageRelay, Reason: outcome.Closed, Attempts: 1, BytesUp: 42, BytesDown: 1400, Establish: outcome.Seconds(time.Millisecond), Duration: outcome.Seconds(90 * time.Second)}
		edit(r)
		return r
	}
	failed := func(reason outcome.Reason, cause string, edit func(*outcome.Record)) *outcome.Record {
		return closed(func(r *outcome.Record) {
			r.Reason, r.Cause, r.BytesUp, r.BytesDown, r.Establish = reason, cause, 0, 0, 0
			edit(r)
		})
	}
	none := func(*outcome.Record) {}
	for _, c := range []struct {
		r    *outcome.Record
		want string
	}{
		{closed(none), `✓ postgres 127.0.0.1:38354 → db.internal:5432  42 B up, 1.4 KiB down, 1m30s`},
		{failed(outcome.UpstreamTLS, `certificate issued by "Corp CA", not in tls.ca`, none),
			`✗ postgres 127.0.0.1:38354 → db.internal:5432  upstream_tls: certificate issued by "Corp CA", not in tls.ca  (why 38354)`},
		{failed(outcome.BreakerOpen, "no address", func(r *outcome.Record) { r.Endpoint, r.Upstream = "", "postgres" }), `✗ postgres 127.0.0.1:38354  breaker_open: no address  (why 38354)`},
		{failed(outcome.BreakerOpen, "no address", func(r *outcome.Record) { r.Endpoint = "" }), `✗ postgres 127.0.0.1:38354 → orders_db  breaker_open: no address  (why 38354)`},
		{failed(outcome.Denied, "rule #3", func(r *outcome.Record) { r.Destination, r.User = "evil.example:443", "batch" }),
			`✗ postgres 127.0.0.1:38354 (batch) → evil.example:443  denied: rule #3  (why 38354)`},
		{failed(outcome.Refused, "", func(r *outcome.Record) { r.Client = "unix:/run/app.sock" }), `✗ postgres unix:/run/app.sock → db.internal:5432  refused  (why AB-1)`},
		{failed(outcome.Refused, "", func(r *outcome.Record) { r.Client = "[::1]:7" }), `✗ postgres [::1]:7 → db.internal:5432  refused  (why 7)`},
		{closed(func(r *outcome.Record) { r.Reason = outcome.UpstreamReset }), `✗ postgres 127.0.0.1:38354 → db.internal:5432  upstream_reset  42 B up, 1.4 KiB down, 1m30s  (why 38354)`},
		{closed(func(r *outcome.Record) { r.Reason = outcome.Idle }), `· postgres 127.0.0.1:38354 → db.internal:5432  idle  42 B up, 1.4 KiB down, 1m30s`},
		{closed(func(r *outcome.Record) { r.Reason, r.KilledBy = outcome.Killed, "uid 7" }), `· postgres 127.0.0.1:38354 → db.internal:5432  killed  42 B up, 1.4 KiB down, 1m30s, killed by uid 7`},
		{failed(outcome.Probe, "", none), `· postgres 127.0.0.1:38354 → db.internal:5432  probe: the client sent nothing and left`},
		{closed(func(r *outcome.Record) { r.Truncated = true }), `✓ postgres 127.0.0.1:38354 → db.internal:5432  42 B up, 1.4 KiB down, 1m30s, TLS ended without close_notify`},
		{closed(func(r *outcome.Record) { r.Verdict, r.VerdictReason = "would_deny", "not yet" }), `✓ postgres 127.0.0.1:38354 → db.internal:5432  42 B up, 1.4 KiB down, 1m30s, would be denied: not yet`},
	} {
		if got := string(sessionLine(terminal{}, cmdtest.Noon(), c.r, true)); got != "12:00:00 "+c.want+"\n" {
			t.Errorf("%s: %q, want %q", c.r.Reason, got, c.want)
		}
	}
	if got := string(sessionLine(terminal{}, cmdtest.Noon(), refusedRecord("x"), false)); strings.Contains(got, "why") {
		t.Errorf("nobody can ask why: %q", got)
	}
	if got, want := string(sessionLine(terminal{ascii: true}, cmdtest.Noon(), refusedRecord("ü … \U0001f600"), true)),
		"12:00:00 x front 127.0.0.1:40000 -> db  refused: \\u00fc ... \\U0001f600  (why 40000)\n"; got != want {
		t.Errorf("in ASCII: %q, want %q", got, want)
	}
	if got, want := string(sessionLine(terminal{color: true}, cmdtest.Noon(), refusedRecord("x"), true)),
		"\x1b[2m12:00:00\x1b[0m \x1b[31m✗\x1b[0m front 127.0.0.1:40000 → db  \x1b[31mrefused\x1b[0m: x\x1b[2m  (why 40000)\x1b[0m\n"; got != want {
		t.Errorf("in colour: %q, want %q", got, want)
	}
}

// What the process logs, with the attributes that it has there.
func TestLinesOfEventsForPeople(t *testing.T) {
	for _, c := range []struct {
		level slog.Level
		text  string
		args  []any
		want  string
	}{
		{slog.LevelInfo, "reloaded", nil, `· reloaded`},
		{slog.LevelInfo, "draining", []any{"sessions", 3, "delay", 5 * time.Second}, `· draining (sessions 3, delay 5s)`},
		{slog.LevelInfo, "draining", []any{"sessions", 0, "delay", time.Duration(0)}, `· draining`},
		{slog.LevelInfo, "sandbox", []any{"state", "landlock ABI 7: files"}, `· sandbox: landlock ABI 7: files`},
		{slog.LevelWarn, "breaker", []any{"upstream", "db", "endpoint", "db.internal:5432", "address", "10.0.0.7:5432", "from", "closed", "to", "open", "cause", "refused", "retry_in", 4600 * time.Millisecond},
			`! db db.internal:5432 10.0.0.7:5432  breaker closed → open: refused (retry in 4.6s)`},
		{slog.LevelInfo, "breaker", []any{"upstream", "db", "endpoint", "10.0.0.7:1", "address", "10.0.0.7:1", "from", "half_open", "to", "closed", "cause", ""}, `✓ db 10.0.0.7:1  breaker half_open → closed`},
		{slog.LevelWarn, "health", []any{"upstream", "db", "address", "10.0.0.7:1", "from", "healthy", "to", "unhealthy", "cause", "timeout"}, `! db 10.0.0.7:1  health healthy → unhealthy: timeout`},
		{slog.LevelInfo, "health", []any{"upstream", "db", "address", "10.0.0.7:1", "from", "unhealthy", "to", "healthy", "cause", ""}, `✓ db 10.0.0.7:1  health unhealthy → healthy`},
		{slog.LevelInfo, "identity renewed", []any{"identity", "me", "generation", uint64(2), "names", []string{"dns:a", "dns:b"}, "not_after", time.Date(2026, 11, 30, 6, 0, 0, 0, time.Local)},
			`· me  identity renewed (generation 2, names dns:a, dns:b, not after 2026-11-30 06:00:00)`},
		{slog.LevelWarn, "unsafe setting", []any{"setting", "listeners.x: unsafe_plaintext_listen"}, `! unsafe setting: listeners.x: unsafe_plaintext_listen`},
		{slog.LevelWarn, "no admin socket", []any{"cause", "in use", "hint", "set admin.listen"}, `! no admin socket: in use; fix: set admin.listen`},
		{slog.LevelError, "reload failed; the old configuration stays in use", []any{"cause", "a.yaml:3:1: no\nsuch key"}, `✗ reload failed; the old configuration stays in use: a.yaml:3:1: no\nsuch key`},
		{slog.LevelError, "panic", []any{"part", "x", "panic", "nil map", "stack", "goroutine 1\n\tf()\n"}, "✗ panic: nil map (part x)\n    goroutine 1\n    \\tf()"},
	} {
		out := cmdtest.NewOutput()
		l := newLog(out, true)
		l.Log(t.Context(), c.level, c.text, c.args...)
		l.Close()
		if _, got, _ := strings.Cut(strings.TrimSuffix(out.String(), "\n"), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.text, got, c.want)
		}
	}
}

// An open breaker that is tried again and again is one line until it closes; JSON has every
// trial.
func TestTrialsOfABreakerAreNotForPeople(t *testing.T) {
	for person, want := range map[bool]string{true: "closed open, half_open closed, ", false: "closed open, open half_open, half_open open, open half_open, half_open closed, "} {
		out := cmdtest.NewOutput()
		l := newLog(out, person)
		states := []string{"closed", "open", "half_open", "open", "half_open", "closed"}
		for i, to := range states[1:] {
			l.With("address", "10.0.0.7:1").Warn("breaker", "from", states[i], "to", to, "cause", "refused")
		}
		l.Close()
		got := ""
		for _, m := range regexp.MustCompile(`breaker (\w+) → (\w+)|"from":"(\w+)","to":"(\w+)"`).FindAllStringSubmatch(out.String(), -1) {
			got += m[1] + m[3] + " " + m[2] + m[4] + ", "
		}
		if got != want {
			t.Errorf("terminal %v: %s, want %s; printed:\n%s", person, got, want, out)
		}
	}
}

func TestAttributesOfALoggerForPeople(t *testing.T) {
	out := cmdtest.NewOutput()
	l := newLog(out, true)
	l.Set(slog.LevelWarn, "auto")
	derived := l.With("upstream", "db").WithGroup("g").With("part", "one")
	derived.Info("not this")
	derived.Warn("this", "took", time.Second)
	l.Close()
	if got := out.String(); !strings.HasSuffix(got, " ! db  this (g.part one, g.took 1s)\n") || strings.Contains(got, "not this") {
		t.Errorf("%q", got)
	}
}

// The format of the configuration is what is written, terminal or not.
func TestWhichFormIsWritten(t *testing.T) {
	for _, c := range []struct {
		person bool
		format string
		want   string
	}{
		{true, "", "12"}, {true, "auto", "12"}, {true, "text", "time="}, {true, "json", `{"time"`},
		{false, "", `{"time"`}, {false, "auto", `{"time"`}, {false, "text", "time="}, {false, "json", `{"time"`},
	} {
		out := cmdtest.NewOutput()
		l := newLog(out, c.person)
		l.Set(slog.LevelInfo, c.format)
		synctest.Test(t, func(t *testing.T) { // from midnight UTC on
			l.Session(someRecord())
			l.Close()
		})
		if got := out.String(); c.want == "12" != (strings.Contains(got, " ✓ front ")) || c.want != "12" && !strings.HasPrefix(got, c.want) {
			t.Errorf("terminal %v, format %q: %q", c.person, c.format, got)
		}
	}
}

// Nothing from outside reaches a terminal as it is: not in a session's line, not in an event's,
// and no colour of its own.
func TestControlBytesNeverReachTheTerminal(t *testing.T) {
	evil := cmdtest.Evil + "\x1b[31mred\x1b[0m"
	var texts []string
	for _, kind := range []terminal{{}, {ascii: true}, {color: true}, {color: true, ascii: true}} {
		out := cmdtest.NewOutput()
		l := newLog(out, true)
		l.terminal = kind
		for range 3 {
			r := someRecord()
			r.Reason = outcome.UpstreamTLS
			r.Listener, r.Client, r.Upstream, r.Endpoint, r.ID = evil, evil, evil, evil, evil
			r.User, r.Cause, r.Destination, r.KilledBy, r.Verdict, r.VerdictReason = evil, evil, evil, evil, "would_deny", evil
			l.Session(r)
		}
		l.Warn(evil, "cause", evil, "err", errors.New(evil), "list", []string{evil}, "addr", &net.AddrError{Err: evil}, evil, evil, "from", evil, "to", evil, "stack", strings.ReplaceAll(evil, "\n", ""), "hint", evil)
		l.Close()
		text := out.String()
		if n := strings.Count(text, "\n"); n != 4 || strings.Count(text, "2 more in") != 1 {
			t.Errorf("%+v: %d lines: %q", kind, n, text)
		}
		if !kind.color {
			cmdtest.MustBeVisible(t, fmt.Sprintf("%+v", kind), text)
		}
		if kind.ascii && strings.ContainsFunc(text, func(r rune) bool { return r > '~' }) {
			t.Errorf("not ASCII: %q", text)
		}
		texts = append(texts, text)
	}
	for i, colored := range texts[2:] {
		if got := withoutColor.Replace(colored); got[8:] != texts[i][8:] { // behind the time
			t.Errorf("without its colours it is %q, want %q", got, texts[i])
		}
	}
}

// A failure that goes on is one line, and a count every foldFor.
func TestRepeatedFailuresAreFolded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := cmdtest.NewOutput()
		l := newLog(out, true)
		fail := func(n, port int) {
			for i := range n {
				r := refusedRecord("connection refused")
				r.Client = fmt.Sprint("127.0.0.1:", port+i)
				l.Session(r)
			}
		}
		start := time.Now()
		fail(215, 38000)
		<-time.After(foldFor + time.Second)
		fail(3, 39000)
		l.Warn("something else")
		<-time.After(foldFor + time.Second)
		<-time.After(foldFor + time.Second)
		fail(2, 40000)
		<-time.After(3 * time.Second)
		l.Close()
		at := func(d time.Duration) string { return start.Add(d).Format("15:04:05 ") }
		want := at(0) + "✗ front 127.0.0.1:38000 → db  refused: connection refused  (why 38000)\n" +
			at(foldFor) + "… 214 more of these in 10 s (last: why 38214)\n" +
			at(foldFor+time.Second) + "! something else\n" +
			at(2*foldFor) + "… 3 more in 10 s (last: why 39002): front → db  refused: connection refused\n" +
			at(3*foldFor+3*time.Second) + "✗ front 127.0.0.1:40000 → db  refused: connection refused  (why 40000)\n" +
			at(3*foldFor+6*time.Second) + "… 1 more of these in 3 s (last: why 40001)\n"
		if got := out.String(); got != want {
			t.Errorf("printed:\n%s\nwant:\n%s", got, want)
		}
	})
}

// JSON and text have every line, and a change to them loses no count.
func TestOnlyLinesForPeopleAreFolded(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		out := cmdtest.NewOutput()
		l := newLog(out, true)
		for range 5 {
			l.Session(refusedRecord("x"))
		}
		l.Set(slog.LevelInfo, format)
		for range 5 {
			l.Session(refusedRecord("x"))
		}
		l.Close()
		if got := out.String(); strings.Count(got, "\n") != 7 || !strings.Contains(got, " … 4 more of these in 1 s") {
			t.Errorf("%s:\n%s", format, got)
		}
	}
}

// The page shows the lines without colours.
func TestTailHasNoColors(t *testing.T) {
	l := newLog(cmdtest.NewOutput(), true)
	l.terminal = terminal{color: true}
	l.Session(refusedRecord("x\x1b[31m"))
	l.Close()
	if got := l.Tail(); len(got) != 1 || !strings.HasSuffix(got[0], ` ✗ front 127.0.0.1:40000 → db  refused: x\x1b[31m  (why 40000)`) {
		t.Errorf("%q", got)
	}
}
