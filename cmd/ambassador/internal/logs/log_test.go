package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/outcome"
)

func TestSessionLevel(t *testing.T) {
	want := map[outcome.Reason]slog.Level{}
	for level, reasons := range map[slog.Level]string{
		slog.LevelInfo:  "closed probe idle half_close_idle lifetime drained shutdown killed downstream_reset downstream_lost",
		slog.LevelWarn:  "upstream_reset upstream_lost limit denied no_route auth_failed special_address loop downstream_tls bad_greeting handshake_timeout no_endpoint breaker_open dns refused timeout unreachable starttls_refused upstream_tls upstream_tls_rejected upstream_early_close",
		slog.LevelError: "internal no_identity local_exhausted",
	} {
		for r := range strings.FieldsSeq(reasons) {
			want[outcome.Reason(r)] = level
		}
	}
	for _, r := range outcome.Reasons() {
		level, known := want[r]
		if !known {
			t.Errorf("%s: nobody has decided on its level", r)
		} else if got := sessionLevel(r); got != level {
			t.Errorf("%s: level %v, want %v", r, got, level)
		}
	}
}

func TestResetAfterTheClientsEndIsNoTrouble(t *testing.T) {
	for first, want := range map[string]slog.Level{"": slog.LevelWarn, "upstream": slog.LevelWarn, "downstream": slog.LevelInfo} {
		if got := Level(&outcome.Record{Reason: outcome.UpstreamReset, FirstClose: first}); got != want {
			t.Errorf("first_close %q: level %v, want %v", first, got, want)
		}
		if got := Level(&outcome.Record{Reason: outcome.UpstreamLost, FirstClose: first}); got != slog.LevelWarn {
			t.Errorf("lost, first_close %q: level %v", first, got)
		}
	}
}

func someRecord() *outcome.Record {
	return &outcome.Record{ID: "AB-1", Start: cmdtest.Noon(), Listener: "front", Client: "127.0.0.1:40000", Upstream: "db", Stage: outcome.StageRelay,
		Reason: outcome.Closed, BytesUp: 3, Establish: outcome.Seconds(1500 * time.Microsecond), Duration: outcome.Seconds(90 * time.Second)}
}

func TestTheLineOfASession(t *testing.T) {
	out := cmdtest.NewOutput()
	l := New(out, nil)
	l.Session(someRecord())
	l.Close()
	var line map[string]any
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	for key, want := range map[string]any{"msg": "session", "level": "INFO", "id": "AB-1", "listener": "front", "client": "127.0.0.1:40000",
		"stage": "relay", "reason": "closed", "bytes_up": 3., "establish": 0.0015, "duration": 90., "start": "2026-11-23T12:00:00Z"} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}

	out = cmdtest.NewOutput()
	l = New(out, nil)
	l.Set(slog.LevelInfo, "text")
	l.Session(someRecord())
	l.Close()
	for _, want := range []string{"level=INFO msg=session id=AB-1 start=2026-11-23T12:00:00Z listener=front", "establish=1.5ms duration=1m30s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q: want %q in it", out, want)
		}
	}
}

// The fast line is the one that the JSON handler would write.
func TestTheLineOfASessionIsTheHandlers(t *testing.T) {
	awkward := someRecord()
	awkward.Cause, awkward.User = "quotes \" and \\ and\nlines, ü, \x00 and \xff", "<html> & co"
	awkward.Truncated, awkward.Limit, awkward.Attempts = true, "limits.connections", 3
	for _, r := range []*outcome.Record{someRecord(), {}, awkward} {
		var want bytes.Buffer
		h := slog.NewJSONHandler(&want, &slog.HandlerOptions{ReplaceAttr: inSeconds})
		line := slog.NewRecord(cmdtest.Noon(), slog.LevelWarn, "session", 0)
		line.AddAttrs(slices.Collect(r.Attrs())...)
		if err := h.Handle(t.Context(), line); err != nil {
			t.Fatal(err)
		}
		var gotFields, wantFields map[string]any
		got := appendSession(nil, cmdtest.Noon(), slog.LevelWarn, r)
		if err := errors.Join(json.Unmarshal(got, &gotFields), json.Unmarshal(want.Bytes(), &wantFields)); err != nil {
			t.Fatalf("%v in %s", err, got)
		}
		if diff := cmp.Diff(wantFields, gotFields); diff != "" {
			t.Errorf("%s\n%s", got, diff)
		}
	}
}

func TestLoggingIsSetWhileItIsUsed(t *testing.T) {
	out := cmdtest.NewOutput()
	l := New(out, nil)
	derived := l.With("part", "one").WithGroup("g") // made before the change
	l.Set(slog.LevelWarn, "text")
	derived.Info("not this")
	derived.Warn("this", "took", time.Second)
	l.Close()
	if got := out.String(); !strings.Contains(got, "level=WARN msg=this part=one g.took=1s") || strings.Contains(got, "not this") {
		t.Errorf("text at level warn: %q", got)
	}
	l.Set(slog.LevelDebug, "")
	derived.Debug("that", "took", time.Second)
	l.Close()
	if got := out.String(); !strings.Contains(got, `"level":"DEBUG","msg":"that","part":"one","g":{"took":1}`) {
		t.Errorf("no format is JSON where there is no terminal: %q", got)
	}
}

func TestSessionsAreLoggedFromTheirLevelOn(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		out := cmdtest.NewOutput()
		l := New(out, nil)
		l.Set(slog.LevelWarn, format)
		l.Session(someRecord())
		refused := someRecord()
		refused.Reason = outcome.Refused
		l.Session(refused)
		l.Close()
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "refused") {
			t.Errorf("%s at level warn: %q", format, got)
		}
	}
}

func TestTextOnATerminalIsBrief(t *testing.T) {
	for _, c := range []struct {
		attr slog.Attr
		want string
	}{
		{slog.Time(slog.TimeKey, cmdtest.Noon().Add(5*time.Millisecond)), "12:00:00.005"},
		{slog.Time("start", cmdtest.Noon()), "12:00:00.000"},
		{slog.Duration("duration", 1234567*time.Nanosecond), "1.235ms"},
		{slog.String("client", "127.0.0.1:1"), "127.0.0.1:1"},
	} {
		if got := brief(nil, c.attr).Value.String(); got != c.want {
			t.Errorf("%v is written %q, want %q", c.attr, got, c.want)
		}
	}
}

func TestParseLevel(t *testing.T) {
	for in, want := range map[string]slog.Level{"": slog.LevelInfo, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		if got, err := ParseLevel(in); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"loud", "INFO", "warning", "info+2"} {
		if _, err := ParseLevel(in); err == nil || !strings.Contains(err.Error(), "debug, info, warn or error") {
			t.Errorf("%q: %v, want an error with the words to use", in, err)
		}
	}
}

// Every log record is one line of visible characters, in both formats, whichever package wrote it.
func TestLogLinesCanBeSeen(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		out := cmdtest.NewOutput()
		l := New(out, nil)
		l.Set(slog.LevelInfo, format)
		r := someRecord()
		r.User, r.Tag, r.Cause, r.Destination = cmdtest.Evil, cmdtest.Evil, cmdtest.Evil, cmdtest.Evil
		l.Session(r)
		l.Warn("something", "cause", cmdtest.Evil, "err", errors.New(cmdtest.Evil), "list", []string{cmdtest.Evil}, "addr", &net.AddrError{Err: cmdtest.Evil})
		l.With("users_file", cmdtest.Evil).WithGroup("g").Error(cmdtest.Evil, "since", time.Second)
		l.Close()
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 3 {
			t.Errorf("%s: %d lines, want 3:\n%s", format, len(lines), out)
		}
		cmdtest.MustBeVisible(t, format, out.String())
		want := strings.ToValidUTF8(cmdtest.Evil, "\ufffd")
		for i, key := range map[int]string{0: "user", 1: "cause", 2: "users_file"} {
			var line map[string]any
			if format == "text" {
				continue
			}
			if err := json.Unmarshal([]byte(lines[i]), &line); err != nil || line[key] != want {
				t.Errorf("%s: %q, %v; want %q", lines[i], line[key], err, want)
			}
		}
	}
}

// What is logged of a record is what was put in, and can be seen.
func FuzzAppendString(f *testing.F) {
	f.Add(cmdtest.Evil)
	f.Add("\U0001f600\ufffd\\ud800\"<&>")
	f.Fuzz(func(t *testing.T, s string) {
		plain, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var got, want string
		if err := json.Unmarshal(plain, &want); err != nil { // another string than s where that is no UTF-8
			t.Fatal(err)
		}
		text := appendString(nil, s)
		if err := json.Unmarshal(text, &got); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", text, got, err, want)
		}
		cmdtest.OnlyVisible(t, "appendString", string(text))
	})
}
