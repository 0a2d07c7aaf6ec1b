package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"ambassador/l4"
)

// evil has one of each kind that may not reach a terminal.
const evil = "a\x1b]0;b\a\r\nmsg=c\t\x00\x7f\u0085\u009b31m\u00ad\u061c\u200b\u200e\u202e\u2028\u2029\u2066\ufeff\U000e0041\xff"

// mustBeVisible fails if a text has something that cannot be seen, or a line that
// begins with a part of evil.
func mustBeVisible(t *testing.T, what, text string) {
	t.Helper()
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "msg=c") {
			t.Errorf("%s: a line was made of a text: %q", what, text)
		}
		onlyVisible(t, what, line)
	}
}

func onlyVisible(t *testing.T, what, line string) {
	t.Helper()
	for i, r := range line {
		if _, n := utf8.DecodeRuneInString(line[i:]); !unicode.IsPrint(r) || r == utf8.RuneError && n == 1 {
			t.Fatalf("%s: %U is in %q", what, r, line)
		}
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		`a b\n "ü" 日本`:          `a b\n "ü" 日本`,
		"a\nb\tc\x1b[31mr\x00":  `a\nb\tc\x1b[31mr\x00`,
		"\u009b31m\x9b31m":      `\u009b31m\x9b31m`,
		"a\u202eb\u2028c\ufeff": `a\u202eb\u2028c\ufeff`,
		"\U000e0041\u00a0":      `\U000e0041\u00a0`,
	} {
		if got := visible(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if got, want := visibleLines("a\x1b\nb\tc\n"), "a\\x1b\nb\\tc\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	mustBeVisible(t, "visible", visible(evil))
}

func TestVisibleJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"a": "ü"}`:       `{"a": "ü"}`,
		"{\n\t\"a\":\r1}":  "{\n\t\"a\": 1}",
		"\"\u0085\u202e\"": `"\u0085\u202e"`,
		"\"\U000e0041\"":   `"\udb40\udc41"`,
		"\"\x7f\xff\x1b\"": `"\u007f\ufffd\u001b"`,
	} {
		var out bytes.Buffer
		if n, err := (jsonWriter{&out}).Write([]byte(in)); n != len(in) || err != nil || out.String() != want {
			t.Errorf("%q: %d, %v, %s, want %s", in, n, err, &out, want)
		}
	}
}

// What is printed is what was put in, and can be seen.
func FuzzVisibleJSON(f *testing.F) {
	f.Add(evil)
	f.Add("\U0001f600\ufffd\\ud800\"<&>")
	f.Fuzz(func(t *testing.T, s string) {
		plain, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var want string
		if err := json.Unmarshal(plain, &want); err != nil { // another string than s where that is no UTF-8
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := writeJSON(&out, s); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{"appendVisibleJSON": appendVisibleJSON(nil, plain), "appendString": appendString(nil, s), "writeJSON": out.Bytes()} {
			var got string
			if err := json.Unmarshal(text, &got); err != nil || got != want {
				t.Errorf("%s: %s is %q, %v; want %q", name, text, got, err, want)
			}
			onlyVisible(t, name, strings.TrimSuffix(string(text), "\n"))
		}
		onlyVisible(t, "visible", visible(s))
	})
}

// fill puts a text into every string below v.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fill(f, text)
			}
		}
	}
}

// Whatever an ambassador says of its sessions and upstreams, its commands print it
// without what speaks to a terminal.
func TestCommandsPrintWhatCanBeSeen(t *testing.T) {
	var status statusReply
	var record l4.Record
	var e explanation
	fill(reflect.ValueOf(&status).Elem(), evil)
	fill(reflect.ValueOf(&record).Elem(), evil)
	fill(reflect.ValueOf(&e).Elem(), evil)
	status.Readiness.Ready, status.Readiness.Draining = false, false
	record.Start = noon()
	all := []l4.Record{record}
	for what, write := range map[string]func(w *bytes.Buffer) error{
		"status":               func(w *bytes.Buffer) error { return writeStatus(w, status, noon()) },
		"sessions":             func(w *bytes.Buffer) error { return writeSessions(w, all, false, noon()) },
		"sessions --recent":    func(w *bytes.Buffer) error { return writeSessions(w, all, true, noon()) },
		"why":                  func(w *bytes.Buffer) error { return writeStories(w, stories(nil, all), 1, noon()) },
		"why --json":           func(w *bytes.Buffer) error { return writeStoriesJSON(w, stories(all, all)) },
		"check --explain":      func(w *bytes.Buffer) error { return e.write(w, &question{text: evil}) },
		"status --json":        func(w *bytes.Buffer) error { return writeJSON(w, status) },
		"an answer, as it was": func(w *bytes.Buffer) error { return writeAnswer(w, []byte("{\"a\":\"\x9b\u202e\x7f\",\r\n\"b\": 1}")) },
	} {
		var out bytes.Buffer
		if err := write(&out); err != nil || out.Len() == 0 {
			t.Errorf("%s: %v, %q", what, err, &out)
		}
		mustBeVisible(t, what, out.String())
	}
	if err := writeAnswer(&bytes.Buffer{}, []byte("\x1b[31mno JSON")); err == nil || !strings.Contains(err.Error(), `\x1b[31mno JSON`) {
		t.Errorf("an answer that is no JSON: %v", err)
	}
}

// What the admin API answers, and what a command makes of it.
func TestAnswersCanBeSeen(t *testing.T) {
	f := newFakeServer()
	f.readiness = l4.Readiness{Waiting: []string{evil}}
	f.over[0].User, f.over[0].Tag = evil, evil
	h := newAdminHandler(f.deps(), adminOptions{})
	for _, path := range []string{"/readyz", "/v1/status", "/v1/sessions/recent", "/v1/%1b%c2%9b%e2%80%ae"} {
		_, body := askHandler(h, "GET", path)
		mustBeVisible(t, path, body)
	}
	a, out := runningAdmin(t, f)
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"sessions", "--recent"}, {"sessions", "--recent", "--json"}} {
		out.Reset()
		if err := runClient(t.Context(), a, args...); err != nil {
			t.Errorf("%q: %v", args, err)
		}
		mustBeVisible(t, strings.Join(args, " "), out.String())
	}
	errs := newOutput()
	code := run(t.Context(), []string{"status", "--admin", "unix:/nowhere\x1b[31m\u202e\x9b"}, strings.NewReader(""), newOutput(), errs)
	if code == 0 {
		t.Error("an admin socket that is not there answers")
	}
	mustBeVisible(t, "the error", errs.String())
}

// A key, a value and the names of files are printed as they can be seen.
func TestCheckPrintsWhatCanBeSeen(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "a\x1b[31m\u202e\nmsg=c")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "a.yaml")
	const esc = `\e[31m\n\u202emsg=c\x7f`
	for name, text := range map[string]string{
		"good":       good,
		"a key":      good + `"a` + esc + `": 1`,
		"a value":    good + `log: {level: "a` + esc + `"}`,
		"a name":     good + `identities: {"a` + esc + `": {}}`,
		"a listener": strings.Replace(good, `"127.0.0.1:1"`, `"a`+esc+`"`, 1),
		"a path":     good + `admin: {token_file: "a` + esc + `"}`,
		"a warning":  strings.Replace(ruled(`socks5: {users_file: "users`+esc+`"}`, allowAll), "listen: 127.0.0.1:1", `listen: "unix:a`+esc+`"`, 1),
		"a rule":     ruled("socks5: {}", `{name: "a`+esc+`", upstream: net}`),
		"a deny":     ruled("socks5: {}", `{deny: "a`+esc+`", name: x}`, `{deny: x, report: "`+esc+`"}`),
	} {
		writeFile(t, path, text)
		for _, args := range [][]string{{"-c", path}, {"-c", path, "--json"}, {"-c", path, "--explain", "dest=a\x1b\u202e:1"}} {
			out, errs, _ := explained(t, args...)
			if out+errs == "" {
				t.Errorf("%s: %q print nothing", name, args)
			}
			mustBeVisible(t, name, out+errs)
		}
	}
}

// A line of the log has one line and can be seen, in both formats, whoever made it.
func TestLogLinesCanBeSeen(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		out := newOutput()
		l := newLogging(out)
		l.set(slog.LevelInfo, format)
		r := someRecord()
		r.User, r.Tag, r.Cause, r.Destination = evil, evil, evil, evil
		l.session(r)
		l.Warn("something", "cause", evil, "err", errors.New(evil), "list", []string{evil}, "addr", &net.AddrError{Err: evil})
		l.With("users_file", evil).WithGroup("g").Error(evil, "since", time.Second)
		l.close()
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 3 {
			t.Errorf("%s: %d lines, want 3:\n%s", format, len(lines), out)
		}
		mustBeVisible(t, format, out.String())
		want := strings.ToValidUTF8(evil, "\ufffd")
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
