package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"ambassador/cmd/ambassador/internal/cmdtest"
	"ambassador/l4/outcome"
)

// Each flag chooses sessions by one field of the record.
func TestSessionFlags(t *testing.T) {
	body := `{"sessions": [
		{"id": "a", "start": "2026-11-23T11:00:00Z", "duration": 60, "user": "batch", "uid": 1000, "listener": "egress", "destination": "[2001:db8::1]:5432", "upstream": "net", "reason": "denied"},
		{"id": "b", "start": "2026-11-23T11:00:00Z", "duration": 3590, "uid": 0, "listener": "pg", "upstream": "db", "address": "10.0.0.1:5432", "establish": 0.2, "reason": "closed"},
		{"id": "d", "start": "2026-11-23T10:00:00Z", "uid": 7, "listener": "x", "upstream": "web", "establish": 1.5, "reason": "closed", "duration": 2},
		{"id": "c", "start": "2026-11-23T11:59:30Z", "listener": "pg"}]}`
	for _, tt := range []struct {
		flags sessionFlags
		want  string
	}{
		{sessionFlags{uid: -1}, "a b d c"}, {sessionFlags{uid: -1, slow: true}, "d b"}, {sessionFlags{uid: -1, slow: true, dest: "db"}, "b"},
		{sessionFlags{uid: -1, user: "batch"}, "a"}, {sessionFlags{uid: 1000}, "a"}, {sessionFlags{uid: 0}, "b"}, {sessionFlags{uid: 8}, ""},
		{sessionFlags{uid: -1, dest: "2001:db8::1"}, "a"}, {sessionFlags{uid: -1, dest: "[2001:db8::1]:5432"}, "a"}, {sessionFlags{uid: -1, dest: "10.0.0.1:5432"}, "b"}, {sessionFlags{uid: -1, dest: "db"}, "b"},
		{sessionFlags{uid: -1, reasons: []string{"denied", "closed"}}, "a b d"}, {sessionFlags{uid: -1, listener: "pg"}, "b c"},
		{sessionFlags{uid: -1, since: "10m"}, "b c"}, {sessionFlags{uid: -1, since: "11:59"}, "b c"}, {sessionFlags{uid: -1, since: "2026-11-23T11:59:40Z"}, "b"},
	} {
		if err := tt.flags.check(cmdtest.Noon()); err != nil {
			t.Fatal(err)
		}
		all, err := tt.flags.chosen("x", []byte(body))
		var got []string
		for _, r := range all {
			got = append(got, r.ID)
		}
		if strings.Join(got, " ") != tt.want || err != nil {
			t.Errorf("%+v: %v, %v, want %s", tt.flags, got, err, tt.want)
		}
		filtered, err := tt.flags.filter([]byte(body))
		if err != nil || !json.Valid(filtered) || strings.Contains(string(filtered), `"uid": 1000`) != strings.Contains(tt.want, "a") {
			t.Errorf("%+v as JSON: %s, %v", tt.flags, filtered, err)
		}
	}
	for _, flags := range []sessionFlags{{slow: true, follow: true}, {since: "yesterday"}, {since: "-5m"}, {reasons: []string{"refuse"}}} {
		if err := flags.check(cmdtest.Noon()); err == nil {
			t.Errorf("%+v is taken", flags)
		}
	}
}

// `why` of what the rules refused ends in a rule and a flag to paste.
func TestWhyOfADenial(t *testing.T) {
	for _, r := range []outcome.Record{
		{Reason: outcome.Denied, Verdict: "deny", VerdictReason: "never"}, {Reason: outcome.NoRoute, Verdict: "none"}, {Reason: outcome.SpecialAddress, Upstream: "net"},
	} {
		f := cmdtest.NewFakeServer()
		f.Upstreams[1].Dynamic, f.Upstreams[1].Name = true, "net"
		r.ID, r.Listener, r.Stage, r.Destination, r.Start = "K7QX-50", "egress", outcome.StageRoute, "db.internal:5432", time.Now()
		f.Over = append([]outcome.Record{r}, f.Over...)
		a, out := runningAdmin(t, f)
		if err := runClient(t.Context(), a, "why", "db.internal"); err != nil {
			t.Fatal(err)
		}
		if want := "To allow it, put this before the rule in listeners.egress.rules (socks5: --allow 'db.internal:5432'):\n  - {host: \"db.internal\", port: 5432, upstream: net}\n"; !strings.HasSuffix(out.String(), want) {
			t.Errorf("%s:\n%s\nwant at its end\n%s", r.Reason, out, want)
		}
	}
}

// `why` takes a tag, a user, a destination or an upstream, and --last the newest alone.
func TestWhyByName(t *testing.T) {
	f := cmdtest.NewFakeServer()
	f.Over[0].Tag, f.Over[0].User, f.Over[0].Destination = "job-7", "batch", "db.internal:5432"
	for _, tt := range []struct{ args, want string }{
		{"job-7", "K7QX-40"}, {"batch", "K7QX-40"}, {"db.internal", "K7QX-40"}, {"db.internal:5432", "K7QX-40"}, {"orders_db --last", "K7QX-41"}, {"--last", "K7QX-40"},
	} {
		a, out := runningAdmin(t, f)
		err := runClient(t.Context(), a, append([]string{"why"}, strings.Fields(tt.args)...)...)
		if err != nil || !strings.HasPrefix(out.String(), "session "+tt.want) || strings.Count(out.String(), "session K") != 1 {
			t.Errorf("why %s: %v, want %s alone:\n%s", tt.args, err, tt.want, out)
		}
	}
	f.Over = f.Over[1:]
	a, _ := runningAdmin(t, f)
	if err := runClient(t.Context(), a, "why", "--last"); err == nil || !strings.Contains(fmt.Sprint(err), "has failed") {
		t.Errorf("no failure: %v", err)
	}
}
